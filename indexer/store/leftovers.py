"""What must be nowhere in an index after a purge: byte strings of the items it removed.

Gathered before, from the rows that are dead or erased, and looked for afterwards in every file.
What a living item says too (a shared caption, the same picture under another id) is no leftover.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from indexer.files.scanning import Needles
from indexer.format.erasures import Erasures
from indexer.format.manifest import Manifest
from indexer.format.segment import Segment
from indexer.format.version import OpenVersion, open_version
from indexer.store.history import history, read_version
from models.errors import IndexCorruptError, NotFoundError

_BLOCK: Final = 500
_SLICE: Final = 64
"""Bytes from the end of a thumbnail, where its picture is; it starts like any other JPEG."""


@dataclass(slots=True)
class Remains:
    """Byte strings of removed items; about 500 bytes of memory a row."""

    needles: set[bytes] = field(default_factory=set)

    def collect(self, version: OpenVersion) -> None:
        """Take those of every dead row of an open version.

        Raises:
            IndexCorruptError: a segment is damaged.
        """
        for segment, dead in zip(version.segments, version.dead, strict=True):
            self._take(segment, [int(row) for row in dead.nonzero()[0]])

    def collect_erased(self, version: OpenVersion, erasures: Erasures) -> None:
        """Take those of erased items that only older versions than an open one still hold.

        What cannot be read of them is passed over: it is about to be removed unread.
        """
        seen = {entry.id for entry in version.manifest.segments}
        for about in history(version.root) if len(erasures) else ():
            with suppress(IndexCorruptError, NotFoundError):
                older = read_version(version.root, about.version)
                if seen.issuperset(entry.id for entry in older.segments):
                    continue
                opened = open_version(version.root, older)
                try:
                    for segment in opened.segments:
                        if segment.entry.id not in seen:
                            seen.add(segment.entry.id)
                            self._take(segment, _erased(segment, erasures))
                finally:
                    opened.close()

    def _take(self, segment: Segment, rows: list[int]) -> None:
        for start in range(0, len(rows), _BLOCK):
            for strings in _strings(segment, rows[start : start + _BLOCK]):
                *texts, thumbnail = strings
                self.needles.update([*texts, thumbnail[-_SLICE:]])


def search_files(root: Path, remains: Remains) -> tuple[int, dict[str, set[bytes]]]:
    """Look in every file below the index -> (strings sought, what each file holds of them).

    Raises:
        OSError: a file cannot be read.
    """
    finder = Needles(remains.needles)
    paths = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return finder.count, {
        str(path.relative_to(root)): finder.find_in_file(path)[0] for path in paths
    }


def unexplained(root: Path, manifest: Manifest, hits: dict[str, set[bytes]]) -> list[str]:
    """The files among `hits` that hold something which no living item says.

    Raises:
        IndexCorruptError, StoreError: the index cannot be read.
    """
    needles = set().union(*hits.values())
    finder = Needles(needles)
    version = open_version(root, manifest)
    try:
        for segment, dead in zip(version.segments, version.dead, strict=True):
            rows = [int(row) for row in (~dead).nonzero()[0]]
            for start in range(0, len(rows), _BLOCK):
                for strings in _strings(segment, rows[start : start + _BLOCK]):
                    text = b"\0".join(strings)
                    # the words of an item are stored in lower case
                    lower = text.decode("utf-8", "replace").casefold().encode()
                    needles -= finder.find(text) | finder.find(lower)
    finally:
        version.close()
    return sorted(name for name, found in hits.items() if found & needles)


def _erased(segment: Segment, erasures: Erasures) -> list[int]:
    return [
        row
        for row, item_id, record, _ in segment.items.records()
        if item_id in erasures or record in erasures
    ]


def _strings(segment: Segment, rows: list[int]) -> Iterator[list[bytes]]:
    """Per row, everything in it that could identify the item; its thumbnail comes last."""
    items = segment.items.items(rows)
    for row in rows:
        item = items[row]
        texts = [item.id, item.uri, item.text or "", *_leaves(item.attributes)]
        yield [
            *(text.encode() for text in texts),
            segment.vectors_ND[row].tobytes(),
            segment.items.thumbnail(row) or b"",
        ]


def _leaves(value: object) -> Iterator[str]:
    """The strings in a record's attributes, escaped as they are stored."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _leaves(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)
