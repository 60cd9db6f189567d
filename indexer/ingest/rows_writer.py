"""The writing stage: embedded rows into segments, segments into versions.

One thread at a time, in the order of the sources. It knows the writer and the version that the
build began with; nothing of sources, decoding or models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from indexer.format.manifest import Operation, SourceEntry
from indexer.format.segment import SegmentWriter
from indexer.format.version import OpenVersion
from indexer.ingest.batches import Rows
from indexer.ingest.options import Stage
from indexer.store.copies import copy_rows
from indexer.store.writer import IndexWriter
from models.vectors import Vectors

Places = list[tuple[int, int]]
"""(position of a segment, row) of rows in the version that the build began with."""
TEXTS_PER_IMAGE: Final = 16
"""A commit also comes after this many texts per picture of `segment_rows`."""


@dataclass(slots=True)
class _Pending:
    """What the next commit will hold; `moved` is new locations by segment position and row."""

    images: SegmentWriter
    texts: SegmentWriter
    dead: Places = field(default_factory=list)
    moved: dict[int, dict[int, str]] = field(default_factory=dict)
    unerase: list[str] = field(default_factory=list)


class Storing:
    """See the module."""

    def __init__(
        self,
        writer: IndexWriter,
        base: OpenVersion,
        origins: list[SourceEntry],
        operation: Operation,
    ) -> None:
        self._writer = writer
        self._base = base
        self._origins = origins
        self._operation: Operation = operation
        self._erased = writer.erasures
        self._pending: _Pending | None = None

    def add(self, images: Rows, texts: Rows, dead: Places) -> None:
        """Rows of records, whose older ones are `dead`."""
        pending = self._begun()
        _add(pending.images, images)
        _add(pending.texts, texts)
        pending.dead += dead
        stored = {one for _, new in [*images, *texts] for one in (new.record, new.item.id)}
        pending.unerase += [one for one in stored if one in self._erased]

    def move(self, uri: str, places: Places) -> None:
        """The rows of a record are the same, but their picture is elsewhere now."""
        pending = self._begun()
        for position, row in places:
            pending.moved.setdefault(position, {})[row] = uri
        pending.dead += places

    def bury(self, dead: Places) -> None:
        self._begun().dead += dead

    def commit(
        self,
        background: tuple[Vectors, str] | None = None,
        tell: Callable[[Stage], None] = lambda _: None,
    ) -> None:
        """Make what came since the last commit the next version, and tell that one begins.

        Raises:
            NoSpaceError, StoreError: see `IndexWriter.commit`.
        """
        if self._pending is None:
            return
        tell("committing")
        if background is not None:
            self._writer.use_background(*background)
        pending, self._pending = self._pending, None
        for position, rows in pending.moved.items():
            segment = self._base.segments[position]
            target = pending.images if segment.entry.modality == "image" else pending.texts
            copy_rows(segment, sorted(rows), target, self._writer.manifest.declared, moved=rows)
        self._writer.commit(
            [pending.images, pending.texts],
            pending.dead,
            sources=self._origins,
            unerase=pending.unerase,
            operation=self._operation,
        )

    def _begun(self) -> _Pending:
        if self._pending is None:
            new = self._writer.new_segment
            self._pending = _Pending(images=new("image"), texts=new("text"))
        return self._pending


def _add(segment: SegmentWriter, rows: Rows) -> None:
    if rows:
        segment.add(np.stack([vector for vector, _ in rows]), [new for _, new in rows])
