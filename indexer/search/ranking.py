"""Rankings of one query: put in order, fused with a ranking by words, freed of near-duplicates.

Fusion is reciprocal rank fusion (Cormack, Clarke & Buettcher 2009): ranks, unlike cosines and BM25
scores, compare across methods, queries and indexes.

    fused(row) = (1 - w) / (60 + rank by cosine) + w / (60 + rank by words)

A rank beyond `DEPTH` adds nothing. That bound is fixed, so the fused order does not depend on the
page that is asked for; after every fused row come the others by cosine.

It knows rows, scores and ids, nothing of queries or files.

Shapes: M rows of a ranking, best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from indexer.format.segment import HalfVectors, Segment
from indexer.search.candidates import Candidates

RRF_K: Final = 60
DEPTH: Final = 200
"""Measured on captioned photographs: 50 loses up to 1.5 points of recall@10, 1000 gains none."""

_CHUNK: Final = 256


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
