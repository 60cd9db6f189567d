"""Commits the next version of an index: the one path, for `IndexWriter` and for repairs alike.

    manifest, head = commit(fs, root, base, changes, version=42, parent=head)

The order of a commit is what makes a crash harmless, whenever it comes:

    1. segments, the tombstone file, the erasure list and the background, written under `scratch/`,
       fsynced
    2. renamed into place; nothing refers to them yet; their directories fsynced
    3. the manifest, likewise
    4. `CURRENT`, by one atomic rename, then its directory fsynced: only now is it acknowledged

Before step 4 the old version stands and what was added is litter, which the next writer sweeps;
after it the new one does. Readers need no lock: nothing that any manifest up to the current one
names is ever changed here.

What the next version holds is `next_manifest`, a pure function of a base version (the current one,
or an earlier one gone back to) and of `Changes`. Whoever commits holds the writer's lock.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import numpy as np

from indexer.files.fs import FileDigest, Fs
from indexer.format.entries import ErasedEntry, RelevanceEntry, SegmentEntry, TombstoneEntry
from indexer.format.erasures import Erasures
from indexer.format.manifest import (
    CURRENT,
    ERASED,
    FORMAT,
    MANIFESTS,
    SCRATCH,
    SEGMENTS,
    TOMBSTONES,
    FieldEntry,
    Head,
    Live,
    Manifest,
    Operation,
    SourceEntry,
    manifest_path,
    parse_manifest,
)
from indexer.format.segment import SegmentWriter
from indexer.format.version import Pairs, count_live, encode_tombstones, read_tombstones
from models.encoder import Fingerprint
from models.errors import StoreError


class Draft:
    """The next version while it is being written: files put in place, then taken back or published.

        with Draft(fs, root, version) as draft:
            ... draft.add_segments, draft.write_array ...    files that no manifest names yet
            draft.publish(manifest)                         CURRENT names it from here on

    Whatever ends the block before `publish` began to replace `CURRENT` removes what was placed. It
    knows the order in which bytes and names become durable, nothing of what the files hold.
    """

    def __init__(self, fs: Fs, root: Path, version: int) -> None:
        self.version = version
        self._fs = fs
        self._root = root
        self._placed: list[Path] = []
        self._published = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or self._published:
            return
        for path in self._placed:
            with suppress(StoreError):  # the next writer sweeps what is left
                self._fs.remove(path)

    def add_segments(self, writers: Sequence[SegmentWriter]) -> list[SegmentEntry | None]:
        """Finish segments and put them in place -> their entries; None for an empty one."""
        entries: list[SegmentEntry | None] = []
        for writer in writers:
            entries.append(writer.finish() if writer.rows else None)
            if writer.rows:
                self._place(writer.directory, self._root / SEGMENTS / writer.id)
        if any(entries):
            self._fs.sync_dir(self._root / SEGMENTS)
        return entries

    def write_array(self, folder: str, data: bytes) -> tuple[str, FileDigest]:
        """Put a file of this version into a folder -> (its name there, its digest)."""
        name = f"{self.version:08d}.npy"
        scratch, digest = self._write(name, data)
        self._place(scratch, self._root / folder / name)
        self._fs.sync_dir(self._root / folder)
        return name, digest

    def publish(self, manifest: Manifest) -> Head:
        """Write the manifest and make `CURRENT` name it; durable when this returns."""
        assert manifest.version == self.version
        data = manifest.encode()
        parse_manifest("the new manifest", data)  # what we write, every reader must accept
        scratch, digest = self._write("manifest", data)
        self._place(scratch, self._root / manifest_path(self.version))
        self._fs.sync_dir(self._root / MANIFESTS)
        head = Head(self.version, digest.sha256)
        current, _ = self._write(CURRENT, head.encode())
        self._published = True  # from here on the new version may stand: nothing is taken back
        self._fs.rename(current, self._root / CURRENT)
        self._fs.sync_dir(self._root)
        return head

    def _write(self, name: str, data: bytes) -> tuple[Path, FileDigest]:
        path = self._root / SCRATCH / f"{name}.{uuid.uuid4().hex[:8]}"
        return path, self._fs.write_file(path, [data])

    def _place(self, source: Path, target: Path) -> None:
        self._placed.append(target)
        self._fs.rename(source, target)


Measure: TypeAlias = Callable[[Draft, Manifest], RelevanceEntry | None]
"""The background of a version whose other files are in place; it may write one to the draft."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a version has that its base has not.

    Attributes:
        operation: what to call the version in the index's history.
        segments: filled writers; empty ones are passed over.
        dead: rows to bury, as (position of the segment in the base, row); positions beyond its end
            are those of `segments`, in their order.
        drop: positions of segments of the base that go; their tombstones go with them.
        sources: where the rows came from; each is added to the base's list once.
        erasures: the whole erasure list from now on; None keeps the base's.
        measure: finds the background; None keeps the base's.
        tombstones_anew: write the tombstones even where the base's file says the same, as a repair
            does: it shares nothing with what it mends that can be written again.
        tombstones: the base's, where its own file is damaged; None reads that.
    """

    operation: Operation
    segments: Sequence[SegmentWriter] = ()
    dead: Iterable[tuple[int, int]] = ()
    drop: Collection[int] = ()
    sources: Sequence[SourceEntry] = ()
    erasures: Erasures | None = None
    measure: Measure | None = None
    tombstones_anew: bool = False
    tombstones: Pairs | None = None


def commit(
    fs: Fs, root: Path, base: Manifest, changes: Changes, *, version: int, parent: Head
) -> tuple[Manifest, Head]:
    """Make and publish version `version`: `base` with `changes`; durable when this returns.

    Args:
        parent: the version it follows, whose manifest it vouches for.

    Raises:
        IndexCorruptError: the base's tombstones, or what `changes` copies, are damaged.
        NoSpaceError, StoreError: nothing was committed. (Only if the very last fsync fails may the
            new version stand nevertheless.)
    """
    with Draft(fs, root, version) as draft:
        added = draft.add_segments(changes.segments)
        buried = changes.tombstones
        if buried is None:
            buried = read_tombstones(root, base, verify="fast")
        new, pairs = next_manifest(
            base, changes, added, buried, version=version, parent=parent, created=_now()
        )
        # an unchanged file of an earlier version serves unchanged
        if changes.tombstones_anew or not np.array_equal(pairs, buried):
            new = new.model_copy(update={"tombstones": _write_tombstones(draft, pairs)})
        if changes.erasures is not None:
            new = new.model_copy(update={"erased": _write_erasures(draft, changes.erasures)})
        if changes.measure is not None:
            new = new.model_copy(update={"relevance": changes.measure(draft, new)})
        return new, draft.publish(new)


def next_manifest(
    base: Manifest,
    changes: Changes,
    added: Sequence[SegmentEntry | None],
    buried: Pairs,
    *,
    version: int,
    parent: Head,
    created: str,
) -> tuple[Manifest, Pairs]:
    """The manifest that changes make of a base, and the tombstones it needs.

    It still names the base's files of tombstones, erasures and background.

    Args:
        added: entries of `changes.segments`, None for an empty one.
        buried: the base's tombstones.
        created: when, ISO 8601.

    Returns:
        The manifest; sorted pairs of the position among its segments and the row.
    """
    kept = [None if at in changes.drop else entry for at, entry in enumerate(base.segments)]
    dead = np.concatenate([buried, as_pairs(changes.dead)])
    pairs = renumber([*kept, *added], dead, changes.drop)
    entries = [entry for entry in (*kept, *added) if entry is not None]
    known = {(source.name, source.kind) for source in base.sources}
    sources = [one for one in changes.sources if (one.name, one.kind) not in known]
    new = base.model_copy(
        update={
            "format": FORMAT,
            "version": version,
            "parent": parent.version,
            "parent_sha256": parent.sha256,
            "created": created,
            "writer": _release(),
            "operation": changes.operation,
            "segments": entries,
            "live": count_live(entries, pairs),
            "sources": [*base.sources, *sources],
        }
    )
    return new, pairs


def create_index(
    fs: Fs, root: Path, fingerprint: Fingerprint, fields: dict[str, FieldEntry]
) -> tuple[Manifest, Head]:
    """Publish the empty version 0 in folders that are there.

    It comes before anything else, so that any later manifest implies a `CURRENT`.

    Raises:
        NoSpaceError, StoreError: it was cut off; the next writer begins again.
    """
    manifest = Manifest(
        format=FORMAT,
        index=uuid.uuid4().hex,
        version=0,
        parent=None,
        created=_now(),
        writer=_release(),
        encoder=fingerprint.to_dict(),
        metric="inner-product",
        segments=[],
        tombstones=None,
        live=Live(images=0, texts=0),
        ann=None,
        sources=[],
        fields=fields,
    )
    fs.sync_dir(root)
    fs.sync_dir(root.absolute().parent)
    # not taken back on failure: a cut-off birth is recognised, an empty directory is not
    return manifest, Draft(fs, root, 0).publish(manifest)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _release() -> str:
    try:
        return f"diptych {package_version('diptych')}"
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "diptych"


def _write_tombstones(draft: Draft, pairs: Pairs) -> TombstoneEntry | None:
    if not len(pairs):
        return None
    name, digest = draft.write_array(TOMBSTONES, encode_tombstones(pairs))
    return TombstoneEntry(file=name, count=len(pairs), **digest.fields())


def _write_erasures(draft: Draft, erasures: Erasures) -> ErasedEntry | None:
    if not len(erasures):
        return None
    name, digest = draft.write_array(ERASED, erasures.encode())
    return ErasedEntry(file=name, count=len(erasures), **digest.fields())


def as_pairs(dead: Iterable[tuple[int, int]]) -> Pairs:
    return np.array(list(dead), dtype=np.int64).reshape(-1, 2)


def renumber(slots: Sequence[SegmentEntry | None], pairs: Pairs, drop: Collection[int]) -> Pairs:
    """Pairs whose positions count `slots` -> sorted pairs that count only those not None.

    Args:
        slots: the segments there were, None where one is dropped, and those that are new.
        drop: positions whose pairs go with them.
    """
    there = np.array([entry is not None for entry in slots], dtype=np.bool_)
    rows = np.array([entry.rows if entry else 0 for entry in slots], dtype=np.int64)
    pairs = pairs[~np.isin(pairs[:, 0], list(drop))]
    assert (pairs >= 0).all()
    assert (pairs[:, 1] < rows[pairs[:, 0]]).all()
    positions = np.cumsum(there) - 1
    # as one number each: sorting pairs takes ten times as long
    moved = np.unique(positions[pairs[:, 0]].astype(np.int64) << 32 | pairs[:, 1])
    return np.stack([moved >> 32, moved & 0xFFFFFFFF], axis=1)
