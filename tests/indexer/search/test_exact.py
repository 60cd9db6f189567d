"""Exact search against brute force: many segments, dead rows, ties, every k and offset."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.search.ranking import candidates, rescore
from indexer.search.vector_index import ExactIndex
from models.vectors import unit_rows

Half = npt.NDArray[np.float16]
Mask = npt.NDArray[np.bool_]


def brute_force(
    parts: Sequence[tuple[Half, Mask]], query_D: npt.NDArray[np.float32], k: int
) -> list[tuple[int, int]]:
    """(segment, row) of the k best live rows, ties by position: one loop, float64."""
    scored = []
    for segment, (vectors_ND, live_N) in enumerate(parts):
        for row, vector_D in enumerate(vectors_ND):
            if live_N[row]:
                pairs = zip(vector_D, query_D, strict=True)
                score = np.float32(sum(float(a) * float(b) for a, b in pairs))
                scored.append((-float(score), segment, row))
    return [(segment, row) for _, segment, row in sorted(scored)[:k]]


def ranked(
    parts: Sequence[tuple[Half, Mask]], queries_QD: npt.NDArray[np.float32], k: int
) -> list[list[tuple[int, int]]]:
    scanners = [ExactIndex(vectors_ND, live_N) for vectors_ND, live_N in parts]
    found = candidates(scanners, [vectors for vectors, _ in parts], queries_QD, k)
    answers = []
    for one in found:
        order = np.lexsort((one.rows, one.segments, -one.scores.astype(np.float64)))[:k]
        answers.append([(int(one.segments[i]), int(one.rows[i])) for i in order])
    return answers


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    dim=st.sampled_from([1, 3, 8, 33, 64]),
    k=st.integers(1, 80),
    distinct=st.sampled_from([1, 2, 5, 1000]),
    dead=st.sampled_from([0.0, 0.3, 0.95]),
)
def test_the_top_k_is_that_of_brute_force(
    seed: int, sizes: list[int], dim: int, k: int, distinct: int, dead: float
) -> None:
    rng = np.random.default_rng(seed)
    # few distinct vectors make ties everywhere, across segments and at the cut
    pool = unit_rows(rng.standard_normal((distinct, dim))).astype(np.float16)
    parts = [(pool[rng.integers(0, distinct, size)], rng.random(size) >= dead) for size in sizes]
    queries_QD = unit_rows(rng.standard_normal((3, dim)))
    got = ranked(parts, queries_QD, k)
    assert got == [brute_force(parts, query_D, k) for query_D in queries_QD]


def test_all_of_many_equal_rows_are_candidates() -> None:
    row = unit_rows(np.arange(1.0, 65.0)[None]).astype(np.float16)
    parts = [(np.repeat(row, 700, axis=0), np.ones(700, dtype=bool)) for _ in range(3)]
    assert ranked(parts, row.astype(np.float32), 5) == [[(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)]]


def test_equal_rows_score_equal_wherever_they_are() -> None:
    rng = np.random.default_rng(7)
    vectors_ND = unit_rows(rng.standard_normal((257, 77))).astype(np.float16)
    vectors_ND[[0, 100, 256]] = vectors_ND[31]
    scores = rescore(vectors_ND, unit_rows(rng.standard_normal((1, 77)))[0])
    assert len({float(scores[row]) for row in (0, 31, 100, 256)}) == 1


def test_dead_rows_never_come_back_even_as_the_only_match() -> None:
    vectors_ND = np.eye(8, dtype=np.float16)
    live_N = np.ones(8, dtype=bool)
    live_N[3] = False
    index = ExactIndex(vectors_ND, live_N)
    _, rows = index.search(np.eye(8, dtype=np.float32)[3][None], 7)
    assert sorted(rows[0].tolist()) == [0, 1, 2, 4, 5, 6, 7]
    _, above = index.above(np.eye(8, dtype=np.float32)[3], -2.0)
    assert 3 not in above
    # the same search over all rows does find it: the mask is what hides it
    _, all_rows = ExactIndex(vectors_ND, np.ones(8, dtype=bool)).search(
        np.eye(8, dtype=np.float32)[3][None], 1
    )
    assert all_rows.tolist() == [[3]]


@pytest.mark.parametrize("threads", [8])
def test_searching_from_many_threads_gives_the_same_answers(threads: int) -> None:
    rng = np.random.default_rng(3)
    vectors_ND = unit_rows(rng.standard_normal((500, 16))).astype(np.float16)
    index = ExactIndex(vectors_ND, rng.random(500) > 0.2)
    queries_QD = unit_rows(rng.standard_normal((40, 16)))
    expected = [index.search(query_D[None], 9)[1].tolist() for query_D in queries_QD]
    wrong: list[int] = []

    def work() -> None:
        for number, query_D in enumerate(queries_QD):
            if index.search(query_D[None], 9)[1].tolist() != expected[number]:
                wrong.append(number)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
