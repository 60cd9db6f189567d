"""Writes and opens a segment: an immutable batch of rows of one modality, as a directory of files.

    vectors.npy     float16 [N, D], unit rows, C order: the truth
    items.sqlite    what each row is (`indexer.format.items`)
    ann.faiss       optional: a search structure derived from the vectors
                    (`indexer.search.vector_index`)

    writer.add(vectors, rows) ...         vectors go to a scratch file, so memory stays flat
    writer.vectors()                      what was added, mapped; for building an ANN structure
    writer.attach_ann(chunks, entry)      optional
    writer.finish()                       every file durable; the directory may be renamed

`Segment` has every file checked (`indexer.format.integrity`) before it uses a byte of it. Versions
share what they have in common: a segment that is open in this process, and whose files nobody has
touched since, is opened once (`open_segments`). Putting a finished directory in place is
`indexer.store.commit`'s business. This knows nothing of versions, tombstones or search.
"""

from __future__ import annotations

import io
import mmap
import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from indexer.files.fs import FileDigest, Fs, Spool
from indexer.filters.declared import Field
from indexer.format.entries import (
    ANN_FILE,
    ITEMS_FILE,
    VECTORS_FILE,
    AnnEntry,
    FileEntry,
    Modality,
    SegmentEntry,
)
from indexer.format.integrity import (
    THREADS,
    Checked,
    Identity,
    Recent,
    Verify,
    identity,
    is_settled,
    open_checked,
)
from indexer.format.items import ItemsReader, ItemsWriter, NewRow
from indexer.format.manifest import HINT, SEGMENTS, unreadable
from indexer.format.npy import check_npy, npy_header
from models.errors import IndexCorruptError
from models.vectors import Vectors

_Key: TypeAlias = tuple[tuple[str, str, Identity], ...]
"""Name, sha256 and identity of each file of a segment."""
HalfVectors: TypeAlias = npt.NDArray[np.float16]
"""float16 [N, D]: unit rows as stored; each entry is off by at most 2**-11 of itself."""
LENGTH_TOLERANCE: Final = 2e-3
"""How far a stored row's length may be from 1, its entries being off by so much."""
_AT_ONCE: Final = 64
"""So many segments' files are open while they are checked."""
_COUNTED: Final = Recent[tuple[Identity, str, int], bool](65_536)
"""(identity of a database, sha256, rows): it was looked through, and has so many."""
_SHARING: Final = threading.Lock()
_SHARED: Final[dict[_Key, Segment]] = {}


class Segment:
    """A verified segment, ready to read from any thread; several versions may hold it.

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
        self._holders = 1
        self._key: _Key | None = None
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
            self._count(name, identity(os.fstat(checked.files[name].fileno())))
        except BaseException:
            self.items.close()
            raise
        name = f"{self.name}/{ANN_FILE}"
        self.ann = checked.take(name)
        self.ann_damage = checked.damage.get(name)

    def _count(self, name: str, file: Identity) -> None:
        """Make sure that the rows are there; SQLite has to walk through all of them."""
        fact = file, self.entry.files[ITEMS_FILE].sha256, self.entry.rows
        if _COUNTED.get(fact):
            return
        found = self.items.count()
        if found != self.entry.rows:
            why = f"it has {found} rows, the manifest says {self.entry.rows}"
            raise IndexCorruptError(name, why, hint=HINT)
        if is_settled(file, time.time_ns()):
            _COUNTED.add(fact, value=True)

    def give_up_ann(self, why: str) -> None:
        """Do without `ann.faiss`, whose bytes are sound and whose content is not."""
        self.ann_damage = IndexCorruptError(f"{self.name}/{ANN_FILE}", why, hint=HINT)
        if self.ann is not None:
            self.ann.close()
            self.ann = None

    def close(self) -> None:
        """Let go; the last to do so closes the files. The mapping goes when its last array does."""
        with _SHARING:
            self._holders -= 1
            if self._holders:
                return
            if self._key is not None and _SHARED.get(self._key) is self:
                del _SHARED[self._key]
        self.items.close()
        if self.ann is not None:
            self.ann.close()

    def _offer(self, key: _Key | None) -> None:
        """Let later versions have this segment, which was opened from these files."""
        if key is not None and self.ann_damage is None:
            with _SHARING:
                if _SHARED.setdefault(key, self) is self:
                    self._key = key

    @staticmethod
    def _open_already(key: _Key | None) -> Segment | None:
        with _SHARING:
            found = None if key is None else _SHARED.get(key)
            if found is None or found.ann_damage is not None:
                return None
            found._holders += 1
            return found


def open_segments(
    root: Path, entries: Sequence[SegmentEntry], dim: int, *, verify: Verify = "fast"
) -> list[Segment]:
    """Open segments, which the caller closes; a damaged `ann.faiss` is told, not raised.

    With `fast`, one that is open in this process already is shared; with `full`, all are read.

    Raises:
        IndexCorruptError: a file is missing, damaged, or does not hold what its entry says.
        StoreError: the operating system refused to open or read.
    """
    keys = [_key(root, entry) if verify == "fast" else None for entry in entries]
    found = [Segment._open_already(key) for key in keys]
    try:
        missing = [at for at, one in enumerate(found) if one is None]
        for start in range(0, len(missing), _AT_ONCE):
            some = missing[start : start + _AT_ONCE]
            files = {k: file for at in some for k, file in segment_files(entries[at]).items()}
            with open_checked(
                root, files, verify=verify, tolerate=may_miss(files), threads=THREADS
            ) as checked:
                for at in some:
                    same = _key(root, entries[at]) if keys[at] else None
                    found[at] = opened = Segment(root, entries[at], dim, checked)
                    # not if somebody wrote to a file, or replaced one, meanwhile
                    opened._offer(keys[at] if same == keys[at] else None)
    except BaseException:
        for one in found:
            if one is not None:
                one.close()
        raise
    return [one for one in found if one is not None]


def _key(root: Path, entry: SegmentEntry) -> _Key | None:
    """What a segment's files are now; None where one is missing, or written to just now."""
    now, parts = time.time_ns(), []
    for name, file in segment_files(entry).items():
        try:
            seen = identity((root / name).lstat())
        except OSError:
            return None
        if not is_settled(seen, now):
            return None
        parts.append((name, file.sha256, seen))
    return tuple(parts)


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
        for new in rows:
            self._items.add(new)
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
