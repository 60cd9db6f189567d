"""From what segments' scanners find to one ranked list: `candidates`, `ranked`, `fuse`, `distinct`.

`indexer.search.searcher` calls them in this order. They know rows, scores and ids, nothing of
queries, items or files.

**Candidates.** FAISS computes in float32 and in an order of its own, so two equal vectors may score
a rounding apart and which of many equals it returns is arbitrary. Here its answer only proposes:
every row that could belong to the top k given the rounding bound is kept, scored again in float64
row by row (so a row's score depends on nothing but the row and the query) and rounded to float32.
`ranked` sorts by that score and breaks ties by id.

**Fusion** with a ranking by words is reciprocal rank fusion (Cormack, Clarke & Buettcher 2009):
ranks, unlike cosines and BM25 scores, compare across methods, queries and indexes.

    fused(row) = (1 - w) / (60 + rank by cosine) + w / (60 + rank by words)

A rank beyond `DEPTH` adds nothing. That bound is fixed, so the fused order does not depend on the
page that is asked for; after every fused row come the others by cosine.

Shapes: Q queries, K the best, M rows of a ranking or candidates, N rows of a segment, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from indexer.format.segment import HalfVectors, Segment
from models.vectors import Vectors

_SLACK: Final = 16
STEP: Final = 16
"""How many are asked for first; recall and latency of a structure are measured at this step."""
_WIDER: Final = 4
RRF_K: Final = 60
DEPTH: Final = 200
"""Measured on captioned photographs: 50 loses up to 1.5 points of recall@10, 1000 gains none."""

_CHUNK: Final = 256


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

    def rows(self) -> npt.NDArray[np.int64]: ...


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
    floor: float | None = None,
) -> list[Candidates]:
    """For each query a set of rows that holds its `keep` best and all that tie with the last.

    Where a scanner only proposes, what it finds depends on how many it is asked for, and yet pages
    must fit together. So it is asked in fixed steps, whatever the page: for the 16 best, for 64,
    256 ... until `keep` are found. The rows of a step are those that no earlier one had, and stand
    after them (`tiers`), even where one of them scores higher. The first step in which a row scores
    below `floor` is the last: so what reaches the floor stands before all that does not, as it does
    where the order is exact, and how deep to look does not depend on the page.

    Args:
        scanners: one per segment.
        vectors: float16 [N, D] per segment, the rows behind the scanner.
        queries_QD: float32 [Q, D], unit rows.
        keep: how many results are wanted, at least 1.
        floor: the lowest cosine that is wanted; lower ones may be among what is returned.
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
        open_Q = open_Q[[_goes_on(listed[query], keep, floor) for query in open_Q]]
        depth, tier = depth * _WIDER, tier + 1
    return [_join(tiers) for tiers in listed]


def _goes_on(listed: Sequence[Candidates], keep: int, floor: float | None) -> bool:
    """Whether another step may find more that is wanted."""
    if sum(len(one.rows) for one in listed) >= keep:
        return False
    return floor is None or bool(reaching(listed[-1].scores, floor).all())


def reaching(scores_M: npt.NDArray[np.float32], floor: float) -> npt.NDArray[np.bool_]:
    """Which cosines are not below a floor, bool [M]; a rounded row may be a hair longer than 1."""
    reach_M: npt.NDArray[np.bool_] = np.clip(scores_M.astype(np.float64), -1.0, 1.0) >= floor
    return reach_M


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


# -- order, fusion, near-duplicates ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ranked:
    """Rows in order.

    Attributes:
        segments_M: int64 [M], positions of segments.
        rows_M: int64 [M], rows in them.
        scores_M: float32 [M], cosines; not necessarily falling.
        ids: M item ids; empty where `ranked` had no need of them.
        fused_M: float64 [M], where rankings were fused.
    """

    segments_M: npt.NDArray[np.int64]
    rows_M: npt.NDArray[np.int64]
    scores_M: npt.NDArray[np.float32]
    ids: Sequence[str]
    fused_M: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.rows_M)

    def take(self, order: Sequence[int]) -> Ranked:
        """Some of the rows, in this order."""
        chosen = np.array(order, dtype=np.int64)
        return Ranked(
            self.segments_M[chosen],
            self.rows_M[chosen],
            self.scores_M[chosen],
            [self.ids[i] for i in order],
            None if self.fused_M is None else self.fused_M[chosen],
        )


def ranked(
    segments: Sequence[Segment], found: Candidates, keep: int, *, named: bool = True
) -> Ranked:
    """The `keep` best candidates by tier, then score, then id.

    Without `named` the ids of rows that tie with no other are left empty: reading them costs more
    than all the rest.
    """
    found = _cut(found, keep)
    names = np.full(len(found.rows), "", dtype=object)
    asked = np.ones(len(names), dtype=np.bool_) if named else _tied(found.scores)
    for position in np.unique(found.segments[asked]).tolist():
        (where,) = np.nonzero(asked & (found.segments == position))
        ids = segments[position].items.ids(found.rows[where].tolist())
        names[where] = [ids[int(row)] for row in found.rows[where]]
    scores = found.scores.tolist()
    tiers = [0] * len(scores) if found.tiers is None else found.tiers.tolist()
    order = sorted(range(len(names)), key=lambda i: (tiers[i], -scores[i], names[i]))
    return Ranked(found.segments, found.rows, found.scores, names.tolist()).take(order[:keep])


def _cut(found: Candidates, keep: int) -> Candidates:
    """Without those whose score alone puts them behind the `keep` best."""
    if found.tiers is not None or len(found.scores) <= keep:
        return found
    last = np.partition(found.scores, len(found.scores) - keep)[len(found.scores) - keep]
    chosen = found.scores >= last
    return Candidates(found.segments[chosen], found.rows[chosen], found.scores[chosen])


def _tied(scores_M: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which scores occur more than once."""
    order = np.argsort(scores_M)
    same = np.diff(scores_M[order]) == 0
    tied_M = np.zeros(len(scores_M), dtype=np.bool_)
    tied_M[order[1:]] |= same
    tied_M[order[:-1]] |= same
    return tied_M


def fuse(by_cosine: Ranked, by_words: Ranked, weight: float) -> Ranked:
    """One ranking of two; see the module.

    Args:
        by_cosine: at least `DEPTH` rows, or all there are.
        by_words: `scores_M` are cosines here too, the order is that of the words.
        weight: of the words, in [0, 1].

    Returns:
        As many rows as `by_cosine` has, or more. Ties go by cosine, then id.
    """
    fused: dict[tuple[int, int], float] = {}
    places: dict[tuple[int, int], int] = {}
    offset = len(by_cosine)
    for rows, share, first in ((by_cosine, 1.0 - weight, 0), (by_words, weight, offset)):
        for rank, key in enumerate(_keys(rows)[:DEPTH], start=1):
            fused[key] = fused.get(key, 0.0) + share / (RRF_K + rank)
            places.setdefault(key, first + rank - 1)
    both = _joined(by_cosine, by_words)
    order = sorted(
        places.items(),
        key=lambda one: (-fused[one[0]], -float(both.scores_M[one[1]]), both.ids[one[1]]),
    )
    rest = [
        place
        for place, key in enumerate(_keys(by_cosine)[DEPTH:], start=DEPTH)
        if key not in places
    ]
    result = both.take([place for _, place in order] + rest)
    values = [fused[key] for key, _ in order] + [0.0] * len(rest)
    return Ranked(result.segments_M, result.rows_M, result.scores_M, result.ids, np.array(values))


def distinct(
    rows: Ranked, vectors: Sequence[HalfVectors], threshold: float, want: int
) -> list[tuple[int, list[int]]]:
    """The first `want` rows that are no near-duplicate of an earlier one, best first.

    A row belongs to the first row kept before it whose cosine to it reaches the threshold.

        for row in rows: join the first kept row with dot(row, kept) >= threshold, or be kept

    Args:
        vectors: float16 [N, D] per segment.

    Returns:
        (place of a kept row, places of the rows that belong to it among those seen) each; fewer
        than `want` where the ranking holds no more.
    """
    kept: list[tuple[int, list[int]]] = []
    kept_VD = np.zeros((0, vectors[0].shape[1] if vectors else 0))
    for start in range(0, len(rows), _CHUNK):
        chunk_CD = _gather(rows, vectors, start, min(start + _CHUNK, len(rows)))
        # in float64 and rounded, so that how rows are grouped into products decides nothing
        known_CV = (chunk_CD @ kept_VD.T).astype(np.float32) >= np.float32(threshold)
        among_CC = (chunk_CD @ chunk_CD.T).astype(np.float32) >= np.float32(threshold)
        first, fresh = len(kept), np.zeros(0, dtype=np.int64)
        for at in range(len(chunk_CD)):
            if known_CV[at].any():
                kept[int(known_CV[at].argmax())][1].append(start + at)
            elif among_CC[at, fresh].any():
                kept[first + int(among_CC[at, fresh].argmax())][1].append(start + at)
            elif len(kept) == want:
                return kept
            else:
                fresh = np.append(fresh, at)
                kept.append((start + at, []))
        kept_VD = np.concatenate([kept_VD, chunk_CD[fresh]])
    return kept


def _keys(rows: Ranked) -> list[tuple[int, int]]:
    return list(zip(rows.segments_M.tolist(), rows.rows_M.tolist(), strict=True))


def _joined(one: Ranked, two: Ranked) -> Ranked:
    return Ranked(
        np.concatenate([one.segments_M, two.segments_M]),
        np.concatenate([one.rows_M, two.rows_M]),
        np.concatenate([one.scores_M, two.scores_M]),
        [*one.ids, *two.ids],
    )


def _gather(
    rows: Ranked, vectors: Sequence[HalfVectors], start: int, stop: int
) -> npt.NDArray[np.float64]:
    """Unit rows, float64 [C, D]."""
    places = zip(
        rows.segments_M[start:stop].tolist(), rows.rows_M[start:stop].tolist(), strict=True
    )
    return np.stack([vectors[segment][row] for segment, row in places]).astype(np.float64)
