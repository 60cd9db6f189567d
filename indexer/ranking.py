"""Exact top-k over several segments, with ties in a fixed order.

FAISS computes in float32 and in an order of its own, so two equal vectors may score a rounding
apart and which of many equals it returns is arbitrary. Here its answer only proposes candidates:
every row that could belong to the top k given the rounding bound is kept, scored again in float64
row by row (so a row's score depends on nothing but the row and the query) and rounded to float32.
Who calls it sorts by that score and breaks ties by id. It knows rows and scores, not items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from indexer.segment import HalfVectors
from models.vectors import Vectors

_SLACK: Final = 16


class Scanner(Protocol):
    """What `indexer.vector_index.ExactIndex` offers."""

    live: int

    def search(
        self, queries_QD: Vectors, k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]: ...

    def above(
        self, query_D: Vectors, floor: float
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]: ...


@dataclass(frozen=True, slots=True)
class Candidates:
    """One query's candidates: [M] positions of segments, rows in them, and float32 scores."""

    segments: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]


def candidates(
    scanners: Sequence[Scanner],
    vectors: Sequence[HalfVectors],
    queries_QD: Vectors,
    keep: int,
) -> list[Candidates]:
    """For each query a set of rows that holds its `keep` best and all that tie with the last.

    Args:
        scanners: one per segment.
        vectors: float16 [N, D] per segment, the rows behind the scanner.
        queries_QD: float32 [Q, D], unit rows.
        keep: how many results are wanted, at least 1.
    """
    slack = max(_SLACK, keep // 4)
    wanted = [min(keep + slack, scanner.live) for scanner in scanners]
    answers = [
        scanner.search(queries_QD, k) if k else None
        for scanner, k in zip(scanners, wanted, strict=True)
    ]
    # |float32 dot - exact dot| <= D * 2**-24 * sum |a_i b_i|, and the sum is at most 1 (Cauchy);
    # doubled for the norm of a rounded row, and again because both ends of a comparison err
    error = 4.0 * (queries_QD.shape[1] + 2) * 2.0**-24
    found = []
    for position, query_D in enumerate(queries_QD):
        per_segment = [
            (answer[0][position], answer[1][position]) if answer else None for answer in answers
        ]
        pool = np.concatenate([part[0] for part in per_segment if part] or [np.zeros(0)])
        floor = -np.inf
        if len(pool) > keep:
            floor = float(np.partition(pool, len(pool) - keep)[len(pool) - keep]) - error
        pieces = []
        for number, part in enumerate(per_segment):
            if part is None:
                continue
            scores_K, rows_K = part
            if wanted[number] < scanners[number].live and scores_K[-1] >= floor:
                # the cut fell among equals: fetch them all
                scores_K, rows_K = scanners[number].above(query_D, floor)
            rows_K = rows_K[scores_K >= floor]
            exact = rescore(vectors[number][rows_K], query_D)
            pieces.append((np.full(len(rows_K), number, dtype=np.int64), rows_K, exact))
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


def _join(
    pieces: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]],
) -> Candidates:
    if not pieces:
        none = np.zeros(0, dtype=np.int64)
        return Candidates(none, none, np.zeros(0, dtype=np.float32))
    segments, rows, scores = zip(*pieces, strict=True)
    return Candidates(np.concatenate(segments), np.concatenate(rows), np.concatenate(scores))
