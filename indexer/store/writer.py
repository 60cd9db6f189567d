"""Writes an index: the lock, new segments, and commits. Whatever changes an index uses it.

    with IndexWriter(root, fingerprint) as writer:
        segment = writer.new_segment("image")
        segment.add(vectors, rows)
        writer.commit([segment])

A writer whose rows take long to make is `shared`: it has the lock while it opens, and for each
commit (`turn`), and others may write in between. Its unfinished segments are in a folder of its own
below `scratch/`, which nobody sweeps while it lives.

How a version is made and made durable is `indexer.store.commit`'s business, which repairs share;
what belongs to versions no longer kept is removed by `indexer.store.sweep`. The writer knows
nothing of encoders or sources.
"""

from __future__ import annotations

import dataclasses
import functools
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from indexer.files.fs import Fs
from indexer.files.lock import WriterLock
from indexer.filters.declared import Field, check_fields
from indexer.format.entries import Modality, RelevanceEntry
from indexer.format.erasures import Erased, Erasures, read_erasures
from indexer.format.manifest import (
    CURRENT,
    FOLDERS,
    LOCK,
    RELEVANCE,
    SCRATCH,
    FieldEntry,
    Manifest,
    Operation,
    SourceEntry,
    check_encoder,
    only_unborn,
    read_head,
    read_manifest,
)
from indexer.format.segment import SegmentWriter
from indexer.format.version import dead_rows, read_tombstones
from indexer.search.options import Target
from indexer.search.relevance_file import (
    describe,
    encode_background,
    measure_version,
    read_background,
    stale_targets,
)
from indexer.store.commit import Changes, Draft, commit, create_index
from indexer.store.merge import MANY, Merged, merge
from indexer.store.sweep import KEEPING, Keeping, Sweeper, empty_scratch, require_alone
from models.encoder import Fingerprint
from models.errors import (
    DiptychError,
    IndexLockedError,
    IndexNotFoundError,
    InputError,
    StoreError,
)
from models.vectors import Vectors

_MERGING: Final = frozenset({"build", "add", "delete", "import"})
_LOOK: Final = 0.5
"""Seconds after which a writer that waits for its turn sees whether it is still wanted."""
_OURS: Final = frozenset({CURRENT, LOCK, *FOLDERS})


class IndexWriter:
    """Write access to an index directory, which is created if need be; exclusive, or `shared`.

    Use as a context manager; leaving it drops what was not committed and releases the lock.

    Attributes:
        manifest: the current version.
        erasures: its erasure list, which whoever adds rows must ask.
        overtaken: whether others have committed since a shared writer was opened: positions of
            segments are other ones then.
        collected: how many older versions `keeping` removed.
    """

    manifest: Manifest
    erasures: Erasures
    overtaken: bool
    collected: int

    def __init__(
        self,
        root: Path,
        fingerprint: Fingerprint,
        *,
        fields: Sequence[Field] | None = None,
        keeping: Keeping = KEEPING,
        shared: bool = False,
        alone: bool = False,
        patience: float = 0.0,
        fs: Fs | None = None,
    ) -> None:
        """Lock the index, sweep what a crashed writer left, and read the current version.

        Args:
            fields: the filterable fields of a new index; None declares none, or keeps those an
                existing index has.
            shared: let others write between `turn`s.
            alone: refuse to work beside a shared writer.
            patience: seconds to wait for another writer.
            keeping: which versions every commit leaves; where one is asked for, so does a
                writer that had nothing to commit, when its `with` ends well.

        Raises:
            InputError: the index has rows, and other fields than these.
            IndexLockedError: another writer holds it.
            EncoderMismatchError: it was built with another encoder pair.
            IndexCorruptError: `CURRENT` or the manifest is damaged.
            NoSpaceError, StoreError: the directory cannot be made, is something else, or the file
                system has no locks.
        """
        self.root = root
        self.collected = 0
        self._keeping = keeping
        self._kept_to = keeping is KEEPING  # one that is asked for may equal it
        self._fs = fs or Fs()
        self._sweeper = Sweeper(self._fs, root)
        self._background: tuple[Vectors, str] | None = None
        self._open: list[SegmentWriter] = []
        self._moved: dict[str, tuple[str, npt.NDArray[np.int64]]] = {}
        self._fields = None if fields is None else _entries(fields)
        self._own: Path | None = None
        self._given_up = False
        self.overtaken = False
        require_index_or_empty(root)
        self._fs.make_dir(root, exist_ok=True)
        self._lock: WriterLock | None = WriterLock(root / LOCK, patience=patience)
        try:
            for name in FOLDERS:
                self._fs.make_dir(root / name, exist_ok=True)
            try:
                self._head = read_head(root)
            except IndexNotFoundError:
                self._sweeper.sweep(None)
                self.manifest, self._head = create_index(
                    self._fs, root, fingerprint, _entries(fields or ())
                )
                self.erasures = Erasures()
            else:
                self.manifest = read_manifest(root, self._head)
                check_encoder(self.manifest.fingerprint, fingerprint)
                self.erasures = read_erasures(root, self.manifest)
                self._declare()
                self._sweeper.sweep(self.manifest)
            if alone:
                require_alone(root)
            if shared:
                self._own = root / SCRATCH / f"writer-{uuid.uuid4().hex[:8]}"
                self._fs.make_dir(self._own)
                self._alive = WriterLock(self._own / LOCK)
                self._release()
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        try:
            if error is None and not self._kept_to:
                with suppress(DiptychError), self.turn():
                    self._collect()
        finally:
            self.close()

    def close(self) -> None:
        """Drop whatever was not committed and release the lock."""
        for writer in self._open:
            writer.abort()
        self._open.clear()
        if self._own is not None:
            self._alive.release()
            with suppress(IndexLockedError, StoreError):  # whoever has the lock sweeps at its end
                self._lock = self._lock or WriterLock(self.root / LOCK)
        if self._lock is not None:
            with suppress(StoreError):  # after a failed fsync the next writer sweeps
                empty_scratch(self._fs, self.root)
        self._release()

    def give_up(self) -> None:
        """Wait no longer for the lock: the build is at its end. From any thread."""
        self._given_up = True

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Have the lock, and `manifest` and `erasures` of the version that is current now.

        A writer that is not shared has it always.

        Raises:
            IndexLockedError: somebody else had it when `give_up` was called.
            InputError: others declared other filterable fields meanwhile.
            StoreError: the index was replaced by another.
        """
        if self._lock is not None:
            yield
            return
        self._wait()
        try:
            self._catch_up()
            yield
        finally:
            self._release()

    def _wait(self) -> None:
        while True:
            try:
                self._lock = WriterLock(self.root / LOCK, patience=_LOOK)
                return
            except IndexLockedError:
                if self._given_up:
                    raise

    def _catch_up(self) -> None:
        head = read_head(self.root)
        if head == self._head:
            return
        manifest = read_manifest(self.root, head)
        if manifest.index != self.manifest.index:
            raise StoreError(f"{self.root} was replaced by another index meanwhile")
        check_encoder(manifest.fingerprint, self.manifest.fingerprint)
        self.erasures = read_erasures(self.root, manifest)
        self.manifest, self._head, self.overtaken = manifest, head, True
        self._declare()
        self._sweeper.sweep(manifest)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def use_background(self, queries_QD: Vectors, queries: str) -> None:
        """Measure every version from the next on against these queries, the list of this sha256.

        An index that has a background keeps measuring with the queries it stored.
        """
        self._background = queries_QD, queries

    def new_segment(
        self, modality: Modality, *, fields: Sequence[Field] | None = None
    ) -> SegmentWriter:
        """Start a segment of the next version, with the index's fields unless told others."""
        name = f"{self.manifest.version + 1:08d}-{modality}-{uuid.uuid4().hex[:8]}"
        scratch, manifest = self._own or self.root / SCRATCH, self.manifest
        declared = manifest.declared if fields is None else fields
        writer = SegmentWriter(self._fs, scratch, name, modality, manifest.dim, declared)
        self._open.append(writer)
        return writer

    def commit(
        self,
        segments: Sequence[SegmentWriter] = (),
        dead: Iterable[tuple[int, int]] = (),
        *,
        drop: Collection[int] = (),
        sources: Sequence[SourceEntry] = (),
        erase: Iterable[Erased] = (),
        unerase: Iterable[Erased] = (),
        operation: Operation = "build",
        remeasure: bool = False,
    ) -> Manifest:
        """Commit the next version: the current one plus segments, minus rows and segments.

        Small segments that are due are merged by the way, where rows come or go one by one.

        Args:
            segments: filled writers from `new_segment`; they, `dead`, `drop`, `sources` and
                `operation` are as in `indexer.store.commit.Changes`.
            erase: what to put on the erasure list; `unerase` are taken off it first.
            remeasure: measure the background anew, even where the old one would do.

        Returns:
            The new manifest, once it is durable.

        Raises:
            NoSpaceError, StoreError: nothing was committed; the current version is untouched.
                (Only if the very last fsync fails may the new version stand nevertheless.)
        """
        base = self.manifest
        if remeasure:
            base = base.model_copy(update={"relevance": None})
        changed = self.erasures.changed(erase=erase, unerase=unerase)
        erasures = None if changed == self.erasures else changed
        changes = Changes(operation, segments, list(dead), drop, sources, erasures)
        # a new row that is dead already has an id that a merged segment may have, too
        stillborn = any(position >= len(base.segments) for position, _ in changes.dead)
        if operation not in _MERGING or stillborn:
            return self._commit(base, changes)
        return self._commit_merged(base, changes, self._merge(base, changes))

    def merge_small(self) -> int:
        """Merge all small segments of an index of many, opening them in turn -> how many are gone.

        Raises:
            IndexCorruptError: one is damaged; nothing was committed.
            NoSpaceError, StoreError: as `commit`.
        """
        base = self.manifest
        if len(base.segments) <= MANY:
            return 0
        changes = Changes("optimize")
        merged = self._merge(base, changes, every=True)
        if not merged.drop:
            return 0
        return len(base.segments) - len(self._commit_merged(base, changes, merged).segments)

    def _commit_merged(self, base: Manifest, changes: Changes, merged: Merged) -> Manifest:
        changes = dataclasses.replace(changes, segments=merged.writers, drop=merged.drop)
        manifest = self._commit(base, changes)
        self._moved |= merged.moved
        return manifest

    def places(
        self, version: Manifest, rows: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        """Rows of a version since this writer was opened -> where they are in the current one.

        Commits merge small segments. Rows are (position of the segment, row); those that are not
        there any more are left out.
        """
        positions = {entry.id: at for at, entry in enumerate(self.manifest.segments)}
        for position, row in rows:
            name = version.segments[position].id
            while row >= 0 and name in self._moved:
                name, target_N = self._moved[name]
                row = int(target_N[row])
            if row >= 0 and name in positions:
                yield positions[name], row

    def restore(
        self,
        target: Manifest,
        segments: Sequence[SegmentWriter] = (),
        dead: Iterable[tuple[int, int]] = (),
    ) -> Manifest:
        """Commit a next version with the content of an earlier one, less what was erased since.

        Args:
            target: the manifest of a kept version, whose files the caller has verified.
            segments, dead: as `commit`, with `target` in place of the current version.

        Raises:
            NoSpaceError, StoreError: as `commit`.
        """
        base = target.model_copy(update={"erased": self.manifest.erased})
        return self._commit(base, Changes("rollback", segments, dead))

    def drop_versions(self) -> None:
        """Remove every version but the current one, durably.

        Raises:
            StoreError: something could not be removed; run again.
        """
        self._sweeper.collect(self.manifest, Keeping(versions=1))
        for name in FOLDERS:
            self._fs.sync_dir(self.root / name)

    def _merge(self, base: Manifest, changes: Changes, *, every: bool = False) -> Merged:
        """Small segments that are due, in the new ones of the changes."""
        pairs = read_tombstones(self.root, base, verify="fast")
        dead = dead_rows([one.rows for one in base.segments], pairs)
        for position, row in changes.dead:
            if position < len(dead):
                dead[position][row] = True
        for position in changes.drop:
            dead[position][:] = True
        new = functools.partial(self.new_segment, fields=base.declared)
        return merge(self.root, base, dead, changes.segments, new, every=every)

    def _commit(self, base: Manifest, changes: Changes) -> Manifest:
        self.manifest, self._head = commit(
            self._fs,
            self.root,
            base,
            dataclasses.replace(changes, measure=functools.partial(self._measure, base)),
            version=self.manifest.version + 1,
            parent=self._head,
        )
        if changes.erasures is not None:
            self.erasures = changes.erasures
        for writer in changes.segments:
            self._open.remove(writer)
            if not writer.rows:
                writer.abort()
        self._tidy()
        with suppress(StoreError):  # committed: litter is no reason to report failure
            empty_scratch(self._fs, self.root)
            self._collect()
        return self.manifest

    def _collect(self) -> None:
        self._kept_to = True
        self.collected += self._sweeper.collect(self.manifest, self._keeping)

    def drop(self, segments: Sequence[SegmentWriter]) -> None:
        """Drop segments that are not to be committed."""
        for writer in segments:
            self._open.remove(writer)
            writer.abort()
        self._tidy()

    def _tidy(self) -> None:
        """Empty the own scratch folder of what no open segment has there."""
        if self._own is None:
            return
        kept = tuple(writer.id for writer in self._open)
        with suppress(StoreError, OSError):
            for path in sorted(self._own.iterdir()):
                if path.name != LOCK and not path.name.startswith(kept):
                    self._fs.remove(path)

    def _declare(self) -> None:
        """Take the fields for the next commit, unless rows were stored under others."""
        fields = self._fields
        if fields is None or fields == self.manifest.fields:
            return
        if self.manifest.segments:
            declared = ", ".join(str(one) for one in self.manifest.declared) or "none"
            raise InputError(
                f"the index declares other filterable fields: {declared}",
                hint="leave --filterable out to keep them, or build another index",
            )
        self.manifest = self.manifest.model_copy(update={"fields": fields})

    def _measure(self, base: Manifest, draft: Draft, new: Manifest) -> RelevanceEntry | None:
        """The background of a version whose segments and tombstones are in place."""
        old = base.relevance
        queries = self._background[1] if self._background else old and old.queries
        stale: Collection[Target] = ("images", "texts")
        if old is not None and old.queries == queries:
            stale = stale_targets(old, new.live, new.segments)
            if not stale:
                return old  # the file of an earlier version serves unchanged
        before = base if old is not None else self.manifest
        stored = read_background(self.root, before)
        if self._background is None:
            if stored is None or before.relevance is None:
                return None
            self._background = stored.queries_QD, before.relevance.queries
        queries_QD, queries = self._background
        kept = stored if len(stale) == 1 else None
        background = measure_version(queries_QD, self.root, new, kept, stale)
        name, digest = draft.write_array(RELEVANCE, encode_background(background))
        return describe(background, name, digest, queries=queries)


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
