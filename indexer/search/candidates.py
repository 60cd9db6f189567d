"""Top-k over several segments, with ties in a fixed order.

FAISS computes in float32 and in an order of its own, so two equal vectors may score a rounding
apart and which of many equals it returns is arbitrary. Here its answer only proposes candidates:
every row that could belong to the top k given the rounding bound is kept, scored again in float64
row by row (so a row's score depends on nothing but the row and the query) and rounded to float32.
Who calls it sorts by that score and breaks ties by id. It knows rows and scores, not items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from indexer.format.segment import HalfVectors
from models.vectors import Vectors

_SLACK: Final = 16
STEP: Final = 16
"""How many are asked for first; recall and latency of a structure are measured at this step."""
_WIDER: Final = 4


class Scanner(Protocol):
    """What `indexer.search.vector_index.ExactIndex` offers: no row that belongs is left out."""

    exact: Literal[True]
    live: int

    def search(
        self, queries_QD: Vectors, k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]: ...

    def above(
        self, query_D: Vectors, floor: float
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]: ...


class Proposer(Protocol):
    """What `indexer.search.scanners.AnnScan` offers: rows that are likely to be among the best."""

    exact: Literal[False]
    live: int

    def propose(self, queries_QD: Vectors, k: int) -> list[npt.NDArray[np.int64]]:
        """For each query k rows or more, or all that live, without repeats."""
        ...


@dataclass(frozen=True, slots=True)
class Candidates:
    """One query's candidates: [M] positions of segments, rows in them, and float32 scores.

    Their order is by tier where there are tiers, then score falling, then id.
    """

    segments: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    tiers: npt.NDArray[np.int64] | None = None


def candidates(
    scanners: Sequence[Scanner | Proposer],
    vectors: Sequence[HalfVectors],
    queries_QD: Vectors,
    keep: int,
) -> list[Candidates]:
    """For each query a set of rows that holds its `keep` best and all that tie with the last.

    Where a scanner only proposes, what it finds depends on how many it is asked for, and yet pages
    must fit together. So it is asked in fixed steps, whatever the page: for the 16 best, for 64,
    256 ... until `keep` are found. The rows of a step are those that no earlier one had, and stand
    after them (`tiers`), even where one of them scores higher.

    Args:
        scanners: one per segment.
        vectors: float16 [N, D] per segment, the rows behind the scanner.
        queries_QD: float32 [Q, D], unit rows.
        keep: how many results are wanted, at least 1.
    """
    if all(scanner.exact for scanner in scanners):
        return _round(scanners, vectors, queries_QD, keep)
    live = sum(scanner.live for scanner in scanners)
    listed: list[list[Candidates]] = [[] for _ in queries_QD]
    open_Q = np.arange(len(queries_QD))
    depth, tier = STEP, 0
    while len(open_Q):
        found = _round(scanners, vectors, queries_QD[open_Q], min(depth, live))
        for query, one in zip(open_Q, found, strict=True):
            listed[query].append(_fresh(one, listed[query], min(depth, live), tier))
        if depth >= live:
            break
        counts = [sum(len(one.rows) for one in listed[query]) for query in open_Q]
        open_Q = open_Q[np.array(counts) < keep]
        depth, tier = depth * _WIDER, tier + 1
    return [_join(tiers) for tiers in listed]


def _fresh(found: Candidates, listed: list[Candidates], depth: int, tier: int) -> Candidates:
    """The `depth` best and their ties, without those that are listed."""
    scores = found.scores
    if not listed and len(scores) <= depth:
        return replace(found, tiers=np.full(len(scores), tier, dtype=np.int64))
    chosen = np.ones(len(scores), dtype=np.bool_)
    if len(scores) > depth:
        chosen = scores >= np.partition(scores, len(scores) - depth)[len(scores) - depth]
    for one in listed:
        for segment in np.unique(one.segments):
            known = one.rows[one.segments == segment]
            chosen &= (found.segments != segment) | ~np.isin(found.rows, known)
    tiers = np.full(int(chosen.sum()), tier, dtype=np.int64)
    return Candidates(found.segments[chosen], found.rows[chosen], scores[chosen], tiers)


def _round(
    scanners: Sequence[Scanner | Proposer],
    vectors: Sequence[HalfVectors],
    queries_QD: Vectors,
    keep: int,
) -> list[Candidates]:
    """Candidates of one step: from exact scanners all that may belong."""
    slack = max(_SLACK, keep // 4)
    wanted = [min(keep + slack, scanner.live) for scanner in scanners]
    exact = [
        scanner.search(queries_QD, k) if scanner.exact and k else None
        for scanner, k in zip(scanners, wanted, strict=True)
    ]
    proposed = [
        None if scanner.exact or not k else scanner.propose(queries_QD, min(keep, k))
        for scanner, k in zip(scanners, wanted, strict=True)
    ]
    # |float32 dot - exact dot| <= D * 2**-24 * sum |a_i b_i|, and the sum is at most 1 (Cauchy);
    # doubled for the norm of a rounded row, and again because both ends of a comparison err
    error = 4.0 * (queries_QD.shape[1] + 2) * 2.0**-24
    found = []
    for position, query_D in enumerate(queries_QD):
        pieces = []
        for number, rows in enumerate(proposed):
            if rows is not None:
                scores = rescore(vectors[number][rows[position]], query_D)
                pieces.append(_piece(number, rows[position], scores))
        if not any(exact):
            found.append(_join(pieces))
            continue
        pool = [one.scores for one in pieces] + [part[0][position] for part in exact if part]
        pool_M = np.concatenate(pool or [np.zeros(0)])
        floor = -np.inf
        if len(pool_M) > keep:
            floor = float(np.partition(pool_M, len(pool_M) - keep)[len(pool_M) - keep]) - error
        for number, (part, scanner) in enumerate(zip(exact, scanners, strict=True)):
            if part is None or not scanner.exact:
                continue
            scores_K, rows_K = part[0][position], part[1][position]
            if wanted[number] < scanner.live and scores_K[-1] >= floor:
                # the cut fell among equals: fetch them all
                scores_K, rows_K = scanner.above(query_D, floor)
            rows_K = rows_K[scores_K >= floor]
            pieces.append(_piece(number, rows_K, rescore(vectors[number][rows_K], query_D)))
        found.append(_join(pieces))
    return found


def rescore(rows_MD: HalfVectors, query_D: Vectors) -> npt.NDArray[np.float32]:
    """`[sum_d row[d] * query[d] for row in rows]` in float64, rounded to float32 [M].

    A product of a float16 and a float32 is exact in float64, and the sum runs within the row, so
    equal rows get equal scores wherever they are stored.
    """
    products_MD = rows_MD.astype(np.float64) * query_D.astype(np.float64)
    scores_M: npt.NDArray[np.float32] = products_MD.sum(axis=1).astype(np.float32)
    return scores_M


def _piece(number: int, rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]) -> Candidates:
    return Candidates(np.full(len(rows), number, dtype=np.int64), rows, scores)


def _join(pieces: list[Candidates]) -> Candidates:
    """One set of several, which are of the same round or a tier each."""
    if len(pieces) == 1:
        return pieces[0]
    none = np.zeros(0, dtype=np.int64)
    pieces = pieces or [Candidates(none, none, none.astype(np.float32))]
    tiers = [one.tiers for one in pieces if one.tiers is not None]
    return Candidates(
        np.concatenate([one.segments for one in pieces]),
        np.concatenate([one.rows for one in pieces]),
        np.concatenate([one.scores for one in pieces]),
        np.concatenate(tiers) if tiers else None,
    )
