"""Retrieval and classification metrics against loops, enumeration of ties, and their examples."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
import pytest

import models.metrics as metrics
from models.metrics import hits_at_k, mean_per_class_recall, retrieval_recall, top_k_accuracy


def test_the_worked_examples() -> None:
    outcome = doctest.testmod(metrics)
    assert outcome.failed == 0
    assert outcome.attempted >= 6


def enumerate_ties(scores: list[float], relevant: list[bool], k: int) -> float:
    """Every order that sorts the scores, equally likely: how often does a relevant one reach k?"""
    candidates = range(len(scores))
    orders = [
        order
        for order in itertools.permutations(candidates)
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    hits = [any(relevant[at] for at in order[:k]) for order in orders]
    return sum(hits) / len(hits)


def test_ties_are_an_average_over_all_orders() -> None:
    random = np.random.default_rng(0)
    for _ in range(150):
        size = int(random.integers(1, 6))
        scores = random.integers(0, 3, size) / 2
        relevant = random.random(size) < 0.4
        k = int(random.integers(1, 7))
        expected = enumerate_ties(scores.tolist(), relevant.tolist(), k)
        assert hits_at_k(scores[None], relevant[None], k)[0] == pytest.approx(expected)


def test_a_collapsed_model_scores_chance() -> None:
    """All embeddings alike: a sort would put every right answer first, or last."""
    same = np.ones((50, 3))
    found = retrieval_recall(same, same, list(range(50)))
    assert found["image_retrieval_recall@1"] == pytest.approx(1 / 50)
    assert found["text_retrieval_recall@10"] == pytest.approx(10 / 50)


def loop_recall(similarity: np.ndarray, owner: list[int], ks: tuple[int, ...]) -> dict[str, float]:
    """similarity [images, texts], without ties; as the literature words it."""
    images, texts = similarity.shape
    result = {}
    for k in ks:
        hit = 0
        for text in range(texts):
            ranked = sorted(range(images), key=lambda image: -similarity[image, text])
            hit += owner[text] in ranked[:k]
        result[f"image_retrieval_recall@{k}"] = hit / texts
        hit = 0
        described = [image for image in range(images) if image in owner]
        for image in described:
            ranked = sorted(range(texts), key=lambda text: -similarity[image, text])
            hit += any(owner[text] == image for text in ranked[:k])
        result[f"text_retrieval_recall@{k}"] = hit / len(described)
    return result


@pytest.mark.parametrize("seed", range(5))
def test_recall_against_loops(seed: int) -> None:
    random = np.random.default_rng(seed)
    images = random.standard_normal((20, 6))
    owner = random.integers(0, 18, 45).tolist()  # uneven; the last two have no text
    texts = images[owner] + 1.2 * random.standard_normal((45, 6))
    found = retrieval_recall(images, texts, owner, ks=(1, 5, 10))
    assert found == pytest.approx(loop_recall(images @ texts.T, owner, (1, 5, 10)))
    assert 0 < found["image_retrieval_recall@1"] < found["image_retrieval_recall@10"]


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    images, texts = random.standard_normal((9, 4)), random.standard_normal((9, 4))
    whole = retrieval_recall(images, texts, list(range(9)))
    monkeypatch.setattr(metrics, "_CHUNK", 2)
    assert retrieval_recall(images, texts, list(range(9))) == pytest.approx(whole)


def test_accuracy_against_loops() -> None:
    random = np.random.default_rng(2)
    scores = random.standard_normal((60, 7))
    target = random.integers(0, 6, 60).tolist()  # class 6 never occurs
    for k in (1, 5):
        right = [t in np.argsort(-row)[:k] for row, t in zip(scores, target, strict=True)]
        assert top_k_accuracy(scores, target, k) == pytest.approx(np.mean(right))
    by_class = [
        np.mean([scores[i].argmax() == c for i in range(60) if target[i] == c]) for c in range(6)
    ]
    assert mean_per_class_recall(scores, target) == pytest.approx(np.mean(by_class))


def test_a_constant_classifier_gets_no_credit_for_argmax_order() -> None:
    assert top_k_accuracy(np.zeros((4, 10)), [0, 0, 0, 0], 1) == pytest.approx(0.1)
