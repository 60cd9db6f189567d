"""Items by number, for protocols that know no other ids: a row's place in one version of an index.

The segments of a version, pictures and texts alike, are laid end to end in the manifest's order. A
number stays an item's own for as long as its segment keeps its place: adding and deleting move
none, merging segments moves all of them. So a number means something together with the version,
and not beyond it.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from indexer.format.items import Item
from indexer.search.snapshot import Snapshot
from models.errors import NotFoundError


class Numbering:
    """The numbers of one snapshot, which must stay open meanwhile."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._segments = snapshot._open.segments
        self._starts = [0, *accumulate(segment.entry.rows for segment in self._segments)]

    def number(self, item: Item) -> int:
        """The number of a live item.

        Raises:
            NotFoundError: this snapshot has no such item.
        """
        for position, segment in enumerate(self._segments):
            if segment.entry.modality == item.modality:
                row = segment.items.find(item.id)
                if row is not None and self._snapshot._live[position][row]:
                    return self._starts[position] + row
        raise NotFoundError("no item has this id")

    def item(self, number: int) -> Item:
        """The live item of a number.

        Raises:
            NotFoundError: out of range, or deleted.
        """
        if 0 <= number < self._starts[-1]:
            position = bisect_right(self._starts, number) - 1
            row = number - self._starts[position]
            if self._snapshot._live[position][row]:
                return self._segments[position].items.items([row])[row]
        raise NotFoundError("no item has this number")
