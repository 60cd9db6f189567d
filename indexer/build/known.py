"""Which records an index holds already, and whether one that comes again is any news.

Per record the hash of its content and of its location: 40 bytes, about 200 of memory in all. It
reads the segments of one opened version, and decides nothing about what to do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from typing import Final, Literal

from indexer.format.version import OpenVersion
from models.data.records import Record

State = Literal["new", "unchanged", "moved", "changed"]

_BATCH: Final = 500
_URI_BYTES: Final = 8
_SCAN: Final = 65_536
_COLUMNS: Final = "row, record, content_hash, uri"


class KnownRecords:
    """The live records of a version, or those of some keys."""

    def __init__(self, base: OpenVersion, only: Collection[str] | None = None) -> None:
        """Read them.

        Args:
            base: stays open as long as this is used.
            only: keys to look up; None reads all there are.

        Raises:
            IndexCorruptError: a segment's database is damaged.
        """
        self._base = base
        self._states: dict[str, bytes] = {}
        for position, dead in enumerate(base.dead):
            for row, record, digest, uri in self._rows(position, only):
                if not dead[row]:
                    self._states[record] = digest + _short(uri)

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, key: str) -> bool:
        return key in self._states

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def state(self, record: Record, digest: str) -> State:
        """What a record of this content hash (hex) is to the index; moved: only its `uri` is."""
        stored = self._states.get(record.key)
        if stored is None:
            return "new"
        if stored[:-_URI_BYTES] != bytes.fromhex(digest):
            return "changed"
        return "unchanged" if stored[-_URI_BYTES:] == _short(record.uri) else "moved"

    def holds(self, key: str, content: bytes, uri: str) -> bool:
        """Whether a record is in the index with this start of its content hash, and this `uri`."""
        stored = self._states.get(key)
        return (
            stored is not None
            and stored[: len(content)] == content
            and stored[-_URI_BYTES:] == _short(uri)
        )

    def live_rows(self, key: str) -> list[tuple[int, int]]:
        """(position of the segment, row) of everything live that came from a record."""
        return [
            (position, row)
            for position, segment in enumerate(self._base.segments)
            for row in segment.items.rows_of(key)
            if not self._base.dead[position][row]
        ]

    def _rows(
        self, position: int, only: Collection[str] | None
    ) -> Iterator[tuple[int, str, bytes, str]]:
        query = self._base.segments[position].items.query
        if only is not None:
            keys = list(only)
            for start in range(0, len(keys), _BATCH):
                part = keys[start : start + _BATCH]
                marks = ", ".join("?" * len(part))
                yield from query(
                    f"SELECT {_COLUMNS} FROM items WHERE record IN ({marks})",  # noqa: S608
                    part,
                )
            return
        start = 0
        select = f"SELECT {_COLUMNS} FROM items WHERE row >= ? ORDER BY row LIMIT ?"  # noqa: S608
        while block := query(select, (start, _SCAN)):
            yield from block
            start = block[-1][0] + 1


def _short(uri: str) -> bytes:
    return hashlib.blake2b(uri.encode(), digest_size=_URI_BYTES).digest()
