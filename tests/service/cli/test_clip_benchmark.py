"""Our metrics against CLIP_benchmark's own definitions, written out as loops.

The loops follow clip_benchmark 1.6.2, metrics/zeroshot_retrieval.py (`recall_at_k`, `batchify`,
`evaluate`) and metrics/zeroshot_classification.py (`accuracy`, `zero_shot_classifier`,
`run_classification`; `balanced_accuracy_score` is scikit-learn's).
https://github.com/LAION-AI/CLIP_benchmark
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.evaluation.measures import ZeroShotLogits, zero_shot_metrics
from models.labels.zeroshot import class_matrix
from models.metrics import mean_per_class_recall, retrieval_recall, top_k_accuracy


def recall_at_k(scores: list[list[float]], positive: list[list[bool]], k: int) -> list[float]:
    """For each row: true positives among the k best, over all positives; theirs is one-hot."""
    recalls = []
    for row, truth in zip(scores, positive, strict=True):
        best = sorted(range(len(row)), key=lambda j: -row[j])[:k]
        recalls.append(sum(truth[j] for j in best) / sum(truth))
    return recalls


def their_retrieval(images: np.ndarray, texts: np.ndarray, owner: list[int], k: int) -> list[float]:
    """[image_retrieval_recall@k, text_retrieval_recall@k]: the share of rows with recall > 0."""
    scores = [[float(t @ i) for i in images] for t in texts]
    positive = [[owner[m] == n for n in range(len(images))] for m in range(len(texts))]
    transposed = [list(column) for column in zip(*scores, strict=True)]
    positive_t = [list(column) for column in zip(*positive, strict=True)]
    found = []
    for matrix, truth in ((scores, positive), (transposed, positive_t)):
        hits = [recall > 0 for recall in recall_at_k(matrix, truth, k)]
        found.append(sum(hits) / len(hits))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_retrieval_with_several_captions_a_picture(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = int(rng.integers(12, 40))
    owner = [at for at in range(pictures) for _ in range(int(rng.integers(1, 6)))]
    rng.shuffle(owner)
    images = rng.normal(size=(pictures, 6))
    texts = images[owner] + 0.8 * rng.normal(size=(len(owner), 6))
    ours = retrieval_recall(images, texts, owner)
    for k in (1, 5, 10):
        theirs = their_retrieval(images, texts, owner, k)
        assert ours[f"image_retrieval_recall@{k}"] == pytest.approx(theirs[0], abs=1e-12)
        assert ours[f"text_retrieval_recall@{k}"] == pytest.approx(theirs[1], abs=1e-12)
    assert 0.05 < ours["image_retrieval_recall@1"] < 0.95  # the numbers are of a hard case


def test_recall_is_a_hit_and_not_a_share_of_the_captions() -> None:
    """What CLIP_benchmark's comment insists on: one of five captions found counts in full."""
    images = np.array([[1.0, 0.0], [0.0, 1.0]])
    texts = np.array([[1.0, 0.0], *[[0.1, 0.2]] * 4, [0.0, 1.0]])
    owner = [0] * 5 + [1]
    assert recall_at_k([[1.0, 0.1, 0.1, 0.1, 0.1, 0.0]], [[True] * 5 + [False]], 1) == [0.2]
    assert their_retrieval(images, texts, owner, 1)[1] == 1.0
    assert retrieval_recall(images, texts, owner, ks=(1,))["text_retrieval_recall@1"] == 1.0


def their_accuracy(logits: np.ndarray, target: list[int], k: int) -> float:
    right = 0
    for row, label in zip(logits, target, strict=True):
        best = sorted(range(len(row)), key=lambda c: -row[c])[:k]
        right += label in best
    return right / len(target)


def balanced_accuracy(logits: np.ndarray, target: list[int]) -> float:
    """Recall of each class that occurs, averaged."""
    recalls = []
    for label in sorted(set(target)):
        rows = [at for at, one in enumerate(target) if one == label]
        recalls.append(sum(int(logits[at].argmax()) == label for at in rows) / len(rows))
    return sum(recalls) / len(recalls)


@pytest.mark.parametrize("seed", range(6))
def test_classification_of_random_logits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures, classes = 120, int(rng.integers(5, 20))
    # classes of very different size, one of which does not occur
    target = rng.choice(classes - 1, pictures, p=rng.dirichlet(np.ones(classes - 1))).tolist()
    logits = rng.normal(size=(pictures, classes))
    logits[np.arange(pictures), target] += 1.0
    ours = zero_shot_metrics(ZeroShotLogits(logits, target, classes))
    assert ours["acc1"] == pytest.approx(their_accuracy(logits, target, 1), abs=1e-12)
    assert ours["acc5"] == pytest.approx(their_accuracy(logits, target, 5), abs=1e-12)
    assert ours["mean_per_class_recall"] == pytest.approx(
        balanced_accuracy(logits, target), abs=1e-12
    )
    assert ours["acc1"] == top_k_accuracy(logits, target, 1)
    assert ours["mean_per_class_recall"] != pytest.approx(ours["acc1"], abs=1e-6)
    assert mean_per_class_recall(logits, target) == ours["mean_per_class_recall"]


def test_fewer_than_five_classes_have_no_top_5() -> None:
    found = ZeroShotLogits(np.eye(4), [0, 1, 2, 3], 4)
    assert "acc5" not in zero_shot_metrics(found)


def test_the_class_matrix_is_their_zero_shot_classifier() -> None:
    """Normalise each prompt's embedding, average over the templates, normalise again."""
    torch.manual_seed(0)
    table: dict[str, torch.Tensor] = {}

    class Hashed:
        dim = 8

        def prepare_text(self, text: str) -> str:
            table.setdefault(text, torch.randn(8))
            return text

        def embed_texts(self, texts: list[str]) -> np.ndarray:
            rows = torch.stack([table[text] for text in texts])
            return torch.nn.functional.normalize(rows, dim=-1).numpy()

    names, templates = ["cat", "dog", "eel"], ["a {c}", "the {c}.", "{c}!"]
    ours = class_matrix(Hashed(), names, templates)  # type: ignore[arg-type]
    theirs = []
    for name in names:
        rows = torch.stack([table[template.format(c=name)] for template in templates])
        mean = torch.nn.functional.normalize(rows, dim=-1).mean(dim=0)
        theirs.append(mean / mean.norm())
    assert np.allclose(ours, torch.stack(theirs).numpy(), atol=1e-6)
