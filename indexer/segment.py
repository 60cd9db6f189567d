"""A segment: an immutable batch of rows of one modality, as a directory of two files.

    vectors.npy     float16 [N, D], unit rows, C order: the truth
    items.sqlite    what each row is (`indexer.items`)

`Segment` checks size and sha256 of both files before it uses a byte of either;
`indexer.segment_writer` made them. It knows nothing of versions, tombstones or search.
"""

from __future__ import annotations

import io
import mmap
import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from indexer.fs import digest_fd, open_regular
from indexer.items import ItemsReader
from indexer.manifest import (
    HINT,
    ITEMS_FILE,
    SEGMENTS,
    VECTORS_FILE,
    FileEntry,
    SegmentEntry,
    unreadable,
)
from indexer.npy import check_npy
from models.errors import IndexCorruptError

HalfVectors: TypeAlias = npt.NDArray[np.float16]
"""float16 [N, D]: unit rows as stored; each entry is off by at most 2**-11 of itself."""


class Segment:
    """A verified segment, ready to read from any thread.

    Attributes:
        entry: its manifest entry.
        vectors_ND: float16 [N, D], memory-mapped, read-only.
        items: the items by row.
    """

    def __init__(self, root: Path, entry: SegmentEntry, dim: int) -> None:
        """Verify and open.

        Raises:
            IndexCorruptError: a file is missing, differs in size or hash, or does not hold what
                the manifest says.
        """
        self.entry = entry
        self.name = f"{SEGMENTS}/{entry.id}"
        verify_file(root, f"{self.name}/{ITEMS_FILE}", entry.files[ITEMS_FILE]).close()
        with verify_file(root, f"{self.name}/{VECTORS_FILE}", entry.files[VECTORS_FILE]) as file:
            # mapped through the descriptor that was hashed, so a swapped path changes nothing
            self.vectors_ND = map_vectors(file, f"{self.name}/{VECTORS_FILE}", entry.rows, dim)
        self.items = ItemsReader(
            root / SEGMENTS / entry.id / ITEMS_FILE,
            entry.modality,
            name=f"{self.name}/{ITEMS_FILE}",
        )
        try:
            found = self.items.count()
            if found != entry.rows:
                raise IndexCorruptError(
                    f"{self.name}/{ITEMS_FILE}",
                    f"it has {found} rows, the manifest says {entry.rows}",
                    hint=HINT,
                )
        except BaseException:
            self.items.close()
            raise

    def close(self) -> None:
        """Close the database; the mapping goes when its last array does."""
        self.items.close()


def verify_file(root: Path, name: str, entry: FileEntry) -> io.FileIO:
    """Open a file of the index after checking its size and sha256.

    Returns:
        The open file whose bytes were checked; the caller closes it.

    Raises:
        IndexCorruptError: missing, not a regular file, or different from the manifest.
    """
    try:
        fd = open_regular(root / name)
    except OSError as error:
        raise unreadable(name, error) from error
    try:
        size = os.fstat(fd).st_size
        if size != entry.size:  # cheap, and a clearer message than a wrong hash
            raise IndexCorruptError(
                name, f"it has {size} bytes, the manifest says {entry.size}", hint=HINT
            )
        found = digest_fd(fd)
        if found.sha256 != entry.sha256:
            raise IndexCorruptError(
                name,
                f"sha256 is {found.sha256[:12]}.., the manifest says {entry.sha256[:12]}..",
                hint=HINT,
            )
    except OSError as error:
        os.close(fd)
        raise unreadable(name, error) from error
    except BaseException:
        os.close(fd)
        raise
    return io.FileIO(fd, "rb")


def map_vectors(file: io.FileIO, name: str, rows: int, dim: int) -> HalfVectors:
    """The rows of a vectors file whose bytes were checked, mapped read-only.

    Raises:
        IndexCorruptError: it does not hold `rows` rows of `dim`.
    """
    size = os.fstat(file.fileno()).st_size
    start = os.pread(file.fileno(), 4096, 0)
    offset = check_npy(name, start, size, "<f2", (rows, dim))
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, dtype="<f2", count=rows * dim, offset=offset).reshape(rows, dim)
