"""Tombstones as a commit combines them: pairs of (position of a segment, row), int64 [T, 2].

Pure functions on arrays and manifest entries; their file is `indexer.format.version`'s to read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from indexer.format.manifest import Live, SegmentEntry

Pairs = npt.NDArray[np.int64]


def as_pairs(dead: Iterable[tuple[int, int]]) -> Pairs:
    return np.array(list(dead), dtype=np.int64).reshape(-1, 2)


def renumber(slots: Sequence[SegmentEntry | None], pairs: Pairs, drop: Collection[int]) -> Pairs:
    """Pairs whose positions count `slots` -> sorted pairs that count only those not None.

    Args:
        slots: the segments there were, None where one is dropped, and those that are new.
        drop: positions whose pairs go with them.
    """
    there = np.array([entry is not None for entry in slots], dtype=np.bool_)
    rows = np.array([entry.rows if entry else 0 for entry in slots], dtype=np.int64)
    pairs = pairs[~np.isin(pairs[:, 0], list(drop))]
    assert (pairs >= 0).all()
    assert (pairs[:, 1] < rows[pairs[:, 0]]).all()
    positions = np.cumsum(there) - 1
    moved = np.stack([positions[pairs[:, 0]], pairs[:, 1]], axis=1)
    return np.unique(moved.astype(np.int64), axis=0)


def count_live(entries: Sequence[SegmentEntry], pairs: Pairs) -> Live:
    totals = {"image": 0, "text": 0}
    dead = np.bincount(pairs[:, 0], minlength=len(entries))
    for entry, buried in zip(entries, dead, strict=True):
        totals[entry.modality] += entry.rows - int(buried)
    return Live(images=totals["image"], texts=totals["text"])
