"""A segment: an immutable batch of rows of one modality, as a directory of files.

    vectors.npy     float16 [N, D], unit rows, C order: the truth
    items.sqlite    what each row is (`indexer.format.items`)
    ann.faiss       optional: a search structure derived from the vectors
    (`indexer.search.vector_index`)

`Segment` has every file checked (`indexer.format.checking`) before it uses a byte of it;
`indexer.format.segment_writer` made them. It knows nothing of versions, tombstones or search.
"""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from indexer.format.checking import Checked, open_checked
from indexer.format.items import ItemsReader
from indexer.format.manifest import (
    ANN_FILE,
    HINT,
    ITEMS_FILE,
    SEGMENTS,
    VECTORS_FILE,
    FileEntry,
    SegmentEntry,
    unreadable,
)
from indexer.format.npy import check_npy
from models.errors import IndexCorruptError

HalfVectors: TypeAlias = npt.NDArray[np.float16]
"""float16 [N, D]: unit rows as stored; each entry is off by at most 2**-11 of itself."""


class Segment:
    """A verified segment, ready to read from any thread.

    Attributes:
        entry: its manifest entry.
        name: its directory relative to the index.
        vectors_ND: float16 [N, D], memory-mapped, read-only.
        items: the items by row.
        ann: the verified `ann.faiss`, open at least until `close`; None where there is none, or
            it is damaged: it is derived from the vectors, so the segment can do without it.
        ann_damage: what is wrong with `ann.faiss`; None where nothing is. Whoever loads it and
            finds that it is not what it should be calls `give_up_ann`.
    """

    def __init__(
        self, root: Path, entry: SegmentEntry, dim: int, checked: Checked | None = None
    ) -> None:
        """Open, and verify in full unless `checked` holds the files already.

        Raises:
            IndexCorruptError: a file is missing, differs in size or checksum, or does not hold
                what the manifest says.
        """
        self.entry = entry
        self.name = f"{SEGMENTS}/{entry.id}"
        self.ann: io.FileIO | None = None
        self.ann_damage: IndexCorruptError | None = None
        if checked is not None:
            self._use(root, dim, checked)
            return
        files = segment_files(entry)
        with open_checked(root, files, verify="full", tolerate=may_miss(files)) as checked:
            self._use(root, dim, checked)

    def _use(self, root: Path, dim: int, checked: Checked) -> None:
        # mapped through the descriptor that was summed, so a swapped path changes nothing
        name = f"{self.name}/{VECTORS_FILE}"
        self.vectors_ND = map_vectors(checked.files[name], name, self.entry.rows, dim)
        name = f"{self.name}/{ITEMS_FILE}"
        self.items = ItemsReader(root / name, self.entry.modality, name=name)
        try:
            # SQLite opens by name: make sure that it was the file whose bytes were summed
            _same_file(root, name, checked.files[name])
            found = self.items.count()
            if found != self.entry.rows:
                why = f"it has {found} rows, the manifest says {self.entry.rows}"
                raise IndexCorruptError(name, why, hint=HINT)
        except BaseException:
            self.items.close()
            raise
        name = f"{self.name}/{ANN_FILE}"
        self.ann = checked.take(name)
        self.ann_damage = checked.damage.get(name)

    def give_up_ann(self, why: str) -> None:
        """Do without `ann.faiss`, whose bytes are sound and whose content is not."""
        self.ann_damage = IndexCorruptError(f"{self.name}/{ANN_FILE}", why, hint=HINT)
        if self.ann is not None:
            self.ann.close()
            self.ann = None

    def close(self) -> None:
        """Close the files; the mapping goes when its last array does."""
        self.items.close()
        if self.ann is not None:
            self.ann.close()


def segment_files(entry: SegmentEntry) -> dict[str, FileEntry]:
    """A segment's files by their paths relative to the index."""
    return {f"{SEGMENTS}/{entry.id}/{name}": file for name, file in entry.files.items()}


def may_miss(names: Iterable[str]) -> list[str]:
    """Those among `names` whose damage leaves a segment searchable."""
    return [name for name in names if name.endswith(f"/{ANN_FILE}")]


def map_vectors(file: io.FileIO, name: str, rows: int, dim: int) -> HalfVectors:
    """The rows of a vectors file whose bytes were checked, mapped read-only.

    Raises:
        IndexCorruptError: it does not hold `rows` rows of `dim`.
        StoreError: the operating system refused to map it.
    """
    size = os.fstat(file.fileno()).st_size
    start = os.pread(file.fileno(), 4096, 0)
    offset = check_npy(name, start, size, "<f2", (rows, dim))
    try:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:  # it takes a descriptor of its own
        raise unreadable(name, error) from error
    return np.frombuffer(mapped, dtype="<f2", count=rows * dim, offset=offset).reshape(rows, dim)


def _same_file(root: Path, name: str, file: io.FileIO) -> None:
    try:
        there = (root / name).stat()
    except OSError as error:
        raise unreadable(name, error) from error
    if not os.path.samestat(there, os.fstat(file.fileno())):
        raise IndexCorruptError(name, "it was replaced while it was being opened", hint=HINT)
