"""Merges small segments as they come, so that many small writes leave few of them.

A commit that adds rows takes the live rows of small segments into its own new segment and drops
them: no commit more, no step of a commit that there was not before, and readers of older versions
keep what they have open. Which ones is decided as log-structured stores decide it (O'Neil et al.
1996): segments of a modality are sorted into tiers by their live rows, each tier holding those up
to four times as large as the one below, and when a tier has four of them, the new one included,
they become one of the next. A row is copied once a tier, so that n single puts cost n log n copies
and leave at most three segments a tier: 21 of fewer than `SMALL_ROWS` rows.

Larger segments are left alone, and so are those with a search structure, which would be lost, and
those of format 1, which lack words: these are `indexer.maintain.optimize`'s. A segment without a
live row is dropped whatever its size.

`indexer.store.writer` calls it. It knows entries, open segments and segment writers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from indexer.format.entries import Modality, SegmentEntry
from indexer.format.manifest import Manifest
from indexer.format.segment import SegmentWriter, open_segments
from indexer.format.word_table import IN_TURN
from indexer.store.copies import copy_rows

SMALL_ROWS: Final = IN_TURN
"""A segment of so many rows is not small: a build's segments have as many, and stay as they are."""
MANY: Final = 64
"""More segments than these are not opened at once by what can do without."""
_SEVERAL: Final = 4
_TIERS: Final = 7
"""4 to the power of 7 is the first above `SMALL_ROWS`."""


@dataclass(slots=True)
class Merged:
    """What a merge makes of a version.

    Attributes:
        writers: filled segments, those given first.
        drop: positions of segments whose live rows are in `writers`, or that had none.
        moved: for each of those, by its id, the segment that has its rows and where they are there,
            int64 [N], -1 for rows that are gone.
    """

    writers: list[SegmentWriter]
    drop: list[int] = field(default_factory=list)
    moved: dict[str, tuple[str, npt.NDArray[np.int64]]] = field(default_factory=dict)


def merge(
    root: Path,
    base: Manifest,
    dead: Sequence[npt.NDArray[np.bool_]],
    writers: Sequence[SegmentWriter],
    new_segment: Callable[[Modality], SegmentWriter],
    *,
    every: bool = False,
) -> Merged:
    """Take small segments of a version into the segments that are about to follow it.

    Args:
        dead: per segment of `base`, bool [N]: rows that will not live in the next version.
        writers: the next version's new segments, in which rows are appended.
        new_segment: makes one of a modality, where `writers` has none.
        every: take every small segment, due or not.

    Raises:
        IndexCorruptError: a segment to be merged is damaged.
        NoSpaceError, StoreError: the rows cannot be written.
    """
    found = Merged(list(writers))
    for modality in ("image", "text"):
        own = [one for one in found.writers if one.modality == modality]
        live = {
            at: entry.rows - int(dead[at].sum())
            for at, entry in enumerate(base.segments)
            if entry.modality == modality
        }
        small = {at: rows for at, rows in live.items() if rows and _is_small(base.segments[at])}
        taken = set(small) if every else choose(small, own[0].rows if own else 0)
        found.drop += [at for at, rows in live.items() if not rows]
        if taken:
            if not own:
                own = [new_segment(modality)]
                found.writers += own
            _take(root, base, dead, sorted(taken), own[0], found)
    return found


def choose(small: dict[int, int], added: int) -> set[int]:
    """Which small segments become part of a new one.

    Args:
        small: live rows, at least one, by position.
        added: rows of the new segment, none if there is nothing else to write.
    """
    taken: set[int] = set()
    for tier in range(_TIERS):
        peers = [at for at, rows in small.items() if _tier(rows) == tier]
        if len(peers) + (added > 0 and _tier(added) == tier) >= _SEVERAL:
            taken |= set(peers)
            added += sum(small[at] for at in peers)
    return taken


def _is_small(entry: SegmentEntry) -> bool:
    return entry.ann is None and entry.rows < SMALL_ROWS


def _tier(rows: int) -> int:
    return (rows.bit_length() - 1) // 2


def _take(
    root: Path,
    base: Manifest,
    dead: Sequence[npt.NDArray[np.bool_]],
    positions: Collection[int],
    target: SegmentWriter,
    found: Merged,
) -> None:
    for at in positions:  # in turn: there may be more than can be open at once
        entry = base.segments[at]
        [source] = open_segments(root, [entry], base.dim)
        try:
            if not source.items.has_words:
                continue
            rows, first = np.flatnonzero(~dead[at]), target.rows
            copy_rows(source, rows.tolist(), target, base.declared)
        finally:
            source.close()
        target_N = np.full(entry.rows, -1, dtype=np.int64)
        target_N[rows] = np.arange(first, target.rows)
        found.moved[entry.id] = target.id, target_N
        found.drop.append(at)
