"""The writer: the only code that changes an index.

The order of a commit is what makes a crash harmless, whenever it comes:

    1. segments, the tombstone file and the background, written under `scratch/`, fsynced
    2. renamed into place; nothing refers to them yet; their directories fsynced
    3. the manifest, likewise
    4. `CURRENT`, by one atomic rename, then its directory fsynced: only now is it acknowledged

Before step 4 the old version stands and what was added is litter, which the next writer sweeps;
after it the new one does. Readers need no lock: nothing that any manifest up to the current one
names is ever changed here. The writer knows nothing of encoders or sources.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

from indexer.fields import Field, check_fields
from indexer.fs import FileDigest, Fs
from indexer.lock import WriterLock
from indexer.manifest import (
    CURRENT,
    FORMAT,
    LOCK,
    MANIFESTS,
    RELEVANCE,
    SCRATCH,
    SEGMENTS,
    TOMBSTONES,
    FieldEntry,
    Head,
    Live,
    Manifest,
    Modality,
    RelevanceEntry,
    SegmentEntry,
    SourceEntry,
    TombstoneEntry,
    check_encoder,
    manifest_path,
    only_unborn,
    parse_manifest,
    read_head,
    read_manifest,
)
from indexer.relevance import (
    describe,
    encode_background,
    measure_version,
    read_background,
    still_good,
)
from indexer.segment import SegmentWriter
from indexer.sweeping import empty_scratch, sweep
from indexer.version import encode_tombstones, read_tombstones
from models.encoder import Fingerprint
from models.errors import IndexNotFoundError, InputError, StoreError
from models.vectors import Vectors

_OURS: Final = frozenset({CURRENT, LOCK, MANIFESTS, SEGMENTS, TOMBSTONES, RELEVANCE, SCRATCH})


class IndexWriter:
    """Exclusive write access to an index directory, which is created if need be.

    Use as a context manager; leaving it drops what was not committed and releases the lock.

    Attributes:
        manifest: the current version.
    """

    manifest: Manifest

    def __init__(
        self,
        root: Path,
        fingerprint: Fingerprint,
        *,
        fields: Sequence[Field] | None = None,
        fs: Fs | None = None,
    ) -> None:
        """Lock the index, sweep what a crashed writer left, and read the current version.

        Args:
            fields: the filterable fields of a new index; None declares none, or keeps those an
                existing index has.

        Raises:
            InputError: the index has rows, and other fields than these.
            IndexLockedError: another writer holds it.
            EncoderMismatchError: it was built with another encoder pair.
            IndexCorruptError: `CURRENT` or the manifest is damaged.
            NoSpaceError, StoreError: the directory cannot be made, is something else, or the file
                system has no locks.
        """
        self.root = root
        self._fs = fs or Fs()
        self._background: tuple[Vectors, str] | None = None
        self._open: list[SegmentWriter] = []
        require_index_or_empty(root)
        self._fs.make_dir(root, exist_ok=True)
        self._lock = WriterLock(root / LOCK)
        try:
            for name in (MANIFESTS, SEGMENTS, TOMBSTONES, RELEVANCE, SCRATCH):
                self._fs.make_dir(root / name, exist_ok=True)
            try:
                self.manifest = read_manifest(root)
            except IndexNotFoundError:
                sweep(self._fs, self.root, None)
                self._create(fingerprint, _entries(fields or ()))
            else:
                check_encoder(self.manifest.fingerprint, fingerprint)
                if fields is not None:
                    self._declare(_entries(fields))
                sweep(self._fs, self.root, self.manifest)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop whatever was not committed and release the lock."""
        for writer in self._open:
            writer.abort()
        self._open.clear()
        with suppress(StoreError):  # after a failed fsync the next writer sweeps
            empty_scratch(self._fs, self.root)
        self._lock.release()

    def use_background(self, queries_QD: Vectors, queries: str) -> None:
        """Measure every version from the next on against these queries, the list of this sha256.

        An index that has a background keeps measuring with the queries it stored.
        """
        self._background = queries_QD, queries

    def new_segment(self, modality: Modality) -> SegmentWriter:
        """Start a segment of the next version."""
        name = f"{self.manifest.version + 1:08d}-{modality}-{uuid.uuid4().hex[:8]}"
        scratch, manifest = self.root / SCRATCH, self.manifest
        writer = SegmentWriter(self._fs, scratch, name, modality, manifest.dim, manifest.declared)
        self._open.append(writer)
        return writer

    def commit(
        self,
        segments: Sequence[SegmentWriter],
        dead: Iterable[tuple[int, int]] = (),
        *,
        sources: Sequence[SourceEntry] = (),
    ) -> Manifest:
        """Commit the next version: the current one plus segments, minus rows.

        Args:
            segments: filled writers from `new_segment`; empty ones are dropped.
            dead: rows to bury, as (position of the segment in the current manifest, row).
            sources: where the rows came from; added to the manifest's list once.

        Returns:
            The new manifest, once it is durable.

        Raises:
            NoSpaceError, StoreError: nothing was committed; the current version is untouched.
                (Only if the very last fsync fails may the new version stand nevertheless.)
        """
        placed: list[Path] = []
        published = False
        old = self.manifest
        try:
            entries = [*old.segments]
            for writer in segments:
                if not writer.rows:
                    continue
                entries.append(writer.finish())
                self._place(writer.directory, self.root / SEGMENTS / writer.id, placed)
            if len(entries) > len(old.segments):
                self._fs.sync_dir(self.root / SEGMENTS)
            tombstones = self._bury(entries, dead, placed)
            known = {(source.name, source.kind) for source in old.sources}
            new = old.model_copy(
                update={
                    "format": FORMAT,
                    "version": old.version + 1,
                    "parent": old.version,
                    "created": _now(),
                    "writer": _writer(),
                    "segments": entries,
                    "tombstones": tombstones,
                    "live": self._count(entries, tombstones),
                    "sources": [
                        *old.sources,
                        *(s for s in sources if (s.name, s.kind) not in known),
                    ],
                }
            )
            new = new.model_copy(update={"relevance": self._measure(new, placed)})
            current = self._write_head(self._write_manifest(new, placed))
            published = True  # from here on the new version may stand, so nothing is taken back
            self._publish(current)
        except BaseException:
            if not published:
                for path in placed:
                    with suppress(StoreError):
                        self._fs.remove(path)
            raise
        self.manifest = new
        for writer in segments:
            self._open.remove(writer)
            if not writer.rows:
                writer.abort()
        with suppress(StoreError):  # committed: litter is no reason to report failure
            empty_scratch(self._fs, self.root)
        return new

    def _declare(self, fields: dict[str, FieldEntry]) -> None:
        """Take the fields for the next commit, unless rows were stored under others."""
        if fields == self.manifest.fields:
            return
        if self.manifest.segments:
            declared = ", ".join(str(one) for one in self.manifest.declared) or "none"
            raise InputError(
                f"the index declares other filterable fields: {declared}",
                hint="leave --filterable out to keep them, or build another index",
            )
        self.manifest = self.manifest.model_copy(update={"fields": fields})

    def _create(self, fingerprint: Fingerprint, fields: dict[str, FieldEntry]) -> None:
        """Commit the empty version 0, so that any later manifest implies a `CURRENT`."""
        manifest = Manifest(
            format=FORMAT,
            index=uuid.uuid4().hex,
            version=0,
            parent=None,
            created=_now(),
            writer=_writer(),
            encoder=fingerprint.to_dict(),
            metric="inner-product",
            segments=[],
            tombstones=None,
            live=Live(images=0, texts=0),
            ann=None,
            sources=[],
            fields=fields,
        )
        self._fs.sync_dir(self.root)
        self._fs.sync_dir(self.root.absolute().parent)
        self._publish(self._write_head(self._write_manifest(manifest, [])))
        self.manifest = manifest

    def _place(self, source: Path, target: Path, placed: list[Path]) -> None:
        placed.append(target)
        self._fs.rename(source, target)

    def _write(self, name: str, data: bytes) -> tuple[Path, FileDigest]:
        path = self.root / SCRATCH / f"{name}.{uuid.uuid4().hex[:8]}"
        return path, self._fs.write_file(path, [data])

    def _bury(
        self, entries: list[SegmentEntry], dead: Iterable[tuple[int, int]], placed: list[Path]
    ) -> TombstoneEntry | None:
        fresh = np.array(sorted(set(dead)), dtype=np.int64).reshape(-1, 2)
        if not len(fresh):
            return self.manifest.tombstones  # the file of an earlier version serves unchanged
        old = read_tombstones(self.root, self.manifest)
        pairs = np.unique(np.concatenate([old, fresh]), axis=0)
        rows = np.array([entry.rows for entry in entries], dtype=np.int64)
        assert (pairs >= 0).all()
        assert (pairs[:, 1] < rows[pairs[:, 0]]).all()
        name = f"{self.manifest.version + 1:08d}.npy"
        scratch, digest = self._write(name, encode_tombstones(pairs))
        self._place(scratch, self.root / TOMBSTONES / name, placed)
        self._fs.sync_dir(self.root / TOMBSTONES)
        return TombstoneEntry(file=name, size=digest.size, sha256=digest.sha256, count=len(pairs))

    def _count(self, entries: list[SegmentEntry], tombstones: TombstoneEntry | None) -> Live:
        totals = {"image": 0, "text": 0}
        for entry in entries:
            totals[entry.modality] += entry.rows
        manifest = self.manifest.model_copy(update={"segments": entries, "tombstones": tombstones})
        pairs = read_tombstones(self.root, manifest)
        for entry, dead in zip(
            entries, np.bincount(pairs[:, 0], minlength=len(entries)), strict=True
        ):
            totals[entry.modality] -= int(dead)
        return Live(images=totals["image"], texts=totals["text"])

    def _measure(self, new: Manifest, placed: list[Path]) -> RelevanceEntry | None:
        """The background of a version whose segments and tombstones are in place."""
        old = new.relevance
        if old is not None and self._background is None:
            stored = read_background(self.root, self.manifest)
            assert stored is not None
            self._background = stored.queries_QD, old.queries
        if self._background is None:
            return None
        queries_QD, queries = self._background
        if old is not None and old.queries == queries and still_good(old, new.live):
            return old  # the file of an earlier version serves unchanged
        background = measure_version(queries_QD, self.root, new)
        name = f"{new.version:08d}.npy"
        scratch, digest = self._write(name, encode_background(background))
        self._place(scratch, self.root / RELEVANCE / name, placed)
        self._fs.sync_dir(self.root / RELEVANCE)
        return describe(background, name, digest, queries=queries)

    def _write_manifest(self, manifest: Manifest, placed: list[Path]) -> Head:
        data = manifest.encode()
        parse_manifest("the new manifest", data)  # what we write, every reader must accept
        scratch, digest = self._write("manifest", data)
        self._place(scratch, self.root / manifest_path(manifest.version), placed)
        self._fs.sync_dir(self.root / MANIFESTS)
        assert digest.sha256 == hashlib.sha256(data).hexdigest()
        return Head(manifest.version, digest.sha256)

    def _write_head(self, head: Head) -> Path:
        path, _ = self._write(CURRENT, head.encode())
        return path

    def _publish(self, current: Path) -> None:
        self._fs.rename(current, self.root / CURRENT)
        self._fs.sync_dir(self.root)


def require_index_or_empty(root: Path) -> None:
    """Refuse to write into a directory that is something else.

    Raises:
        StoreError: a file, or a directory with content that is not an index's.
        IndexCorruptError: its `CURRENT` is gone, or is not one of ours.
    """
    if not root.exists() and not root.is_symlink():
        return
    if not root.is_dir():
        raise StoreError(f"{root} exists and is not a directory", code="not-an-index")
    names = {path.name for path in root.iterdir()}
    if names <= _OURS and CURRENT not in names and only_unborn(root):
        return
    if CURRENT in names or names <= _OURS:
        # other software has files of this name too (LevelDB): look before touching anything
        read_head(root)
        return
    raise StoreError(
        f"{root} exists and is not an index",
        code="not-an-index",
        hint="name a new or empty directory with --out",
    )


def _entries(fields: Sequence[Field]) -> dict[str, FieldEntry]:
    return {one.name: FieldEntry(type=one.type, path=one.path) for one in check_fields(fields)}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _writer() -> str:
    try:
        return f"diptych {package_version('diptych')}"
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "diptych"
