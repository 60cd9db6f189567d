"""Fills a new segment in a scratch directory and says what it wrote.

    writer.add(vectors, rows) ...         vectors go to a scratch file, so memory stays flat
    writer.vectors()                      what was added, mapped; for building an ANN structure
    writer.attach_ann(chunks, entry)      optional
    writer.finish()                       every file durable; the directory may be renamed

Putting the directory in place is the writer's business (`indexer.store.writer`), reading it that of
`indexer.format.segment`. This knows nothing of versions, tombstones or search.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from indexer.files.fs import Fs, Spool
from indexer.files.hashing import FileDigest
from indexer.filters.declared import Field, Value
from indexer.format.entries import (
    ANN_FILE,
    ITEMS_FILE,
    VECTORS_FILE,
    AnnEntry,
    FileEntry,
    Modality,
    SegmentEntry,
)
from indexer.format.items import Item, ItemsReader, Picture
from indexer.format.items_writer import ItemsWriter
from indexer.format.npy import npy_header
from indexer.format.segment import HalfVectors
from models.vectors import Vectors


@dataclass(frozen=True, slots=True)
class NewRow:
    """An item about to be stored, the key of its source record, and its thumbnail.

    `values` are those of the index's filterable fields, in their order; none are known if empty.
    `texts` are what search by words finds the row by: a picture's texts; None takes the item's own.
    """

    record: str
    item: Item
    thumbnail: bytes | None = None
    values: tuple[Value, ...] = ()
    texts: tuple[str, ...] | None = None
    picture: Picture | None = None


class SegmentWriter:
    """Collects rows into a scratch directory of its own. Not thread-safe."""

    def __init__(
        self,
        fs: Fs,
        scratch: Path,
        segment_id: str,
        modality: Modality,
        dim: int,
        fields: Sequence[Field] = (),
    ) -> None:
        self.id = segment_id
        self.modality: Modality = modality
        self.rows = 0
        self.directory = scratch / segment_id
        self._fs = fs
        self._dim = dim
        self._ann: tuple[FileDigest, AnnEntry] | None = None
        fs.make_dir(self.directory)
        # beside the directory, which is renamed as a whole: the header is not known before the end
        self._spool: Spool = fs.spool(scratch / f"{segment_id}.vectors")
        self._items = ItemsWriter(self.directory / ITEMS_FILE, fields)

    def add(self, vectors_BD: Vectors | HalfVectors, rows: Sequence[NewRow]) -> None:
        """Append B rows; vectors are [B, D], finite unit rows, float32 or as stored before."""
        assert vectors_BD.shape == (len(rows), self._dim)
        assert np.isfinite(vectors_BD).all(), "a vector without a direction is never stored"
        assert self._ann is None, "the structure would not know these rows"
        for position, new in enumerate(rows):
            self._items.add(
                self.rows + position,
                new.record,
                new.item,
                new.thumbnail,
                new.values,
                new.texts,
                new.picture,
            )
        self._spool.write(np.ascontiguousarray(vectors_BD, dtype="<f2").data)
        self.rows += len(rows)

    def take_words(self, source: ItemsReader, target_N: npt.NDArray[np.int64]) -> None:
        """For rows copied from another segment, added with `texts=()`: see `ItemsWriter`."""
        self._items.take_words(source, target_N)

    def vectors(self) -> HalfVectors:
        """The rows added so far, mapped read-only; valid until `finish` or `abort`."""
        assert self.rows
        return np.frombuffer(self._spool.map(), dtype="<f2").reshape(self.rows, self._dim)

    def attach_ann(self, chunks: Iterable[bytes | memoryview], entry: AnnEntry) -> None:
        """Store an ANN structure over all rows, which `entry` describes.

        Raises:
            NoSpaceError, StoreError: it could not be written.
        """
        assert self._ann is None
        self._ann = self._fs.write_file(self.directory / ANN_FILE, chunks), entry

    def finish(self) -> SegmentEntry:
        """Write what is left and make every file durable; the directory may then be renamed.

        Raises:
            NoSpaceError, StoreError: the files could not be written or fsynced.
        """
        assert self.rows, "an empty segment has no place in a manifest"
        self._items.close()
        header = npy_header("<f2", (self.rows, self._dim))
        vectors = self._fs.write_file(self.directory / VECTORS_FILE, self._with_header(header))
        items = self._fs.seal_file(self.directory / ITEMS_FILE)
        self._fs.sync_dir(self.directory)
        self._spool.remove()
        files: dict[Literal["vectors.npy", "items.sqlite", "ann.faiss"], FileEntry] = {
            VECTORS_FILE: _entry(vectors),
            ITEMS_FILE: _entry(items),
        }
        if self._ann is not None:
            files[ANN_FILE] = _entry(self._ann[0])
        return SegmentEntry(
            id=self.id,
            modality=self.modality,
            rows=self.rows,
            files=files,
            ann=None if self._ann is None else self._ann[1],
        )

    def abort(self) -> None:
        """Close without finishing; the caller removes the scratch directory."""
        self._spool.close()
        self._items.abort()

    def _with_header(self, header: bytes) -> Iterable[bytes]:
        yield header
        yield from self._spool.read()


def _entry(digest: FileDigest) -> FileEntry:
    return FileEntry(**digest.fields())
