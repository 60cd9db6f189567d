"""Gathers near-duplicate rows around the ones kept; for `index duplicates` and caption checks.

    in order of preference: a row joins the first kept one whose cosine to it reaches the
    threshold, or is kept

Every row that is not kept is close to the one that is, and not merely to one that is close to it,
as a chain of neighbours would have it. Here every pair is compared, a block of kept rows with all
that are left at a time, in memory of some 32 bytes a row however many duplicates there are;
`indexer.search.duplicates` asks search structures for neighbours instead. It knows vectors and
their order, not what they are of.

Shapes: R rows by their number in the order of preference, B a block, V kept of it, M some rows,
D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from models.vectors import Vectors

HalfVectors: TypeAlias = npt.NDArray[np.float16]
OnProgress: TypeAlias = Callable[[int, int], None]
Star: TypeAlias = tuple[int, list[tuple[int, float]]]
"""The number of a kept row, and those that joined it, each with its cosine."""

Numbers: TypeAlias = npt.NDArray[np.int64]

_BLOCK: Final = 512
_CHUNK: Final = 16_384


def stars(
    vectors: Sequence[HalfVectors], places_R2: Numbers, threshold: float, on_progress: OnProgress
) -> Iterator[Star]:
    """The kept rows that others joined, in the order of preference.

    Args:
        vectors: float16 [N, D] per segment.
        places_R2: (segment, row) in the order of preference.
        on_progress: (rows that are kept or joined, rows in all).
    """
    floor, total = np.float32(threshold), len(places_R2)
    free_R = np.ones(total, dtype=np.bool_)
    start = 0
    while start < total:
        block = np.flatnonzero(free_R[start:])[:_BLOCK] + start
        if not len(block):
            break
        block_BD = vectors_of(vectors, places_R2[block])
        members: dict[int, list[tuple[int, float]]] = {
            at: [(int(block[other]), score) for other, score in others]
            for at, others in within(block_BD, floor).items()
        }
        kept = list(members)
        free_R[block] = False
        start = int(block[-1]) + 1
        kept_VD = block_BD[kept]
        for first in range(start, total, _CHUNK):
            rest = np.flatnonzero(free_R[first : first + _CHUNK]) + first
            if not len(rest):
                continue
            close_VM = kept_VD @ vectors_of(vectors, places_R2[rest]).T
            found, owners, scores = first_owners(close_VM, floor)
            for other, owner, score in zip(rest[found], owners, scores, strict=True):
                members[kept[owner]].append((int(other), float(score)))
            free_R[rest[found]] = False
        for at, others in members.items():
            if others:
                yield int(block[at]), others
        on_progress(total - int(free_R.sum()), total)


def within(block_BD: Vectors, floor: np.float32) -> dict[int, list[tuple[int, float]]]:
    """The stars of a block by itself, in places of the block; those that nobody joined, too."""
    scores_BB = block_BD @ block_BD.T
    members: dict[int, list[tuple[int, float]]] = {}
    for at in range(len(block_BD)):
        earlier = [one for one in members if scores_BB[at, one] >= floor]
        if earlier:
            members[earlier[0]].append((at, float(scores_BB[at, earlier[0]])))
        else:
            members[at] = []
    return members


def first_owners(
    close_VM: npt.NDArray[np.float32], floor: np.float32
) -> tuple[Numbers, Numbers, npt.NDArray[np.float32]]:
    """The columns that reach the floor, the first row of each that does, and the score there."""
    found = np.flatnonzero((close_VM >= floor).any(axis=0))
    owners = (close_VM[:, found] >= floor).argmax(axis=0)
    return found, owners, close_VM[owners, found]


def vectors_of(vectors: Sequence[HalfVectors], places_M2: Numbers) -> Vectors:
    """Unit rows, float32 [M, D], by segment and row."""
    vectors_MD = np.empty((len(places_M2), vectors[0].shape[1]), dtype=np.float32)
    for position in np.unique(places_M2[:, 0]).tolist():
        (where,) = np.nonzero(places_M2[:, 0] == position)
        vectors_MD[where] = vectors[position][places_M2[where, 1]]
    return vectors_MD
