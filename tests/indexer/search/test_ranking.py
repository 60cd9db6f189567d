"""Reciprocal rank fusion and near-duplicate grouping, against loops from their definitions."""

from __future__ import annotations

import random

import numpy as np
import pytest

from indexer.search.ranking import DEPTH, Ranked, distinct, fuse, reaching


def ranking(rows: list[int], cosines: dict[int, float]) -> Ranked:
    """Rows of two segments, told apart by parity."""
    return Ranked(
        np.array([row % 2 for row in rows], dtype=np.int64),
        np.array(rows, dtype=np.int64),
        np.array([cosines[row] for row in rows], dtype=np.float32),
        [f"id{row:05}" for row in rows],
    )


def by_cosine(cosines: dict[int, float], keep: int) -> Ranked:
    order = sorted(cosines, key=lambda row: (-np.float32(cosines[row]), f"id{row:05}"))
    return ranking(order[:keep], cosines)


def fused_by_loop(
    vector: list[int], words: list[int], cosines: dict[int, float], weight: float
) -> list[tuple[int, float]]:
    scores: dict[int, float] = dict.fromkeys(vector, 0.0) | dict.fromkeys(words, 0.0)
    for row in scores:
        if row in vector[:DEPTH]:
            scores[row] += (1 - weight) / (60 + vector.index(row) + 1)
        if row in words:
            scores[row] += weight / (60 + words.index(row) + 1)
    inside = set(vector[:DEPTH]) | set(words)
    return sorted(
        scores.items(),
        key=lambda one: (one[0] not in inside, -one[1], -np.float32(cosines[one[0]]), one[0]),
    )


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("rows", [5, 150, 700])
def test_fusion_equals_the_loop_at_every_depth(weight: float, rows: int) -> None:
    rng = random.Random(rows)
    cosines = {row: rng.choice([0.1, 0.2, rng.random()]) for row in range(rows)}
    everything = by_cosine(cosines, rows)
    found = rng.sample(range(rows), min(rows, rng.randint(1, DEPTH)))
    words = ranking(found, cosines)
    expected = fused_by_loop(everything.rows_M.tolist(), found, cosines, weight)
    for depth in (min(rows, DEPTH), rows):
        fused = fuse(by_cosine(cosines, depth), words, weight)
        assert len(fused) >= depth
        assert fused.rows_M.tolist()[:depth] == [row for row, _ in expected[:depth]]
        assert fused.fused_M is not None
        assert fused.fused_M.tolist()[:depth] == pytest.approx([s for _, s in expected[:depth]])
        assert fused.scores_M.tolist() == pytest.approx([cosines[r] for r in fused.rows_M.tolist()])
        assert fused.ids == [f"id{row:05}" for row in fused.rows_M.tolist()]


def test_without_words_fusion_keeps_the_order_by_cosine() -> None:
    cosines = {row: 1 / (row + 1) for row in range(300)}
    vector = by_cosine(cosines, 300)
    assert fuse(vector, ranking([], cosines), 0.7).ids == vector.ids


def groups_by_loop(vectors: np.ndarray, threshold: float) -> list[tuple[int, list[int]]]:
    kept: list[tuple[int, list[int]]] = []
    for row, vector in enumerate(vectors):
        for first, others in kept:
            if np.float32(sum(vector.astype(float) * vectors[first].astype(float))) >= threshold:
                others.append(row)
                break
        else:
            kept.append((row, []))
    return kept


@pytest.mark.parametrize("count", [1, 40, 700])
def test_distinct_equals_the_loop_and_a_shorter_page_is_its_beginning(count: int) -> None:
    rng = np.random.default_rng(count)
    centres = rng.standard_normal((max(1, count // 4), 6))
    rows = centres[rng.integers(0, len(centres), count)] + 0.15 * rng.standard_normal((count, 6))
    rows = (rows / np.sqrt((rows**2).sum(axis=1))[:, None]).astype(np.float16)
    order = Ranked(
        np.zeros(count, dtype=np.int64),
        np.arange(count),
        np.zeros(count, dtype=np.float32),
        [str(row) for row in range(count)],
    )
    expected = groups_by_loop(rows, 0.97)
    assert count == 1 or any(others for _, others in expected)
    assert distinct(order, [rows], 0.97, count) == expected
    for want in {1, len(expected) // 2, len(expected)} - {0}:
        page = distinct(order, [rows], 0.97, want)
        assert [first for first, _ in page] == [first for first, _ in expected[:want]]


def test_scores_at_the_floor_stay() -> None:
    scores = np.array([0.5, 0.49999997, 1.0000001, -1.0000001], dtype=np.float32)
    assert reaching(scores, 0.5).tolist() == [True, False, True, False]
    assert reaching(scores, 1.0).tolist() == [False, False, True, False]
    assert reaching(scores, -1.0).all(), "a rounded row may be a hair longer than 1"
