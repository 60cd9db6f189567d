"""Does what can be done about a damaged index without guessing, and says what cannot.

    a search structure    built again from the vectors it was derived from, by the same recipe
    the background        left out; the next build measures another
    a list of deletions   put together again, byte for byte, where its sum proves it; no version is
                          gone back to for its sake, since that would undo deletions. Otherwise
                          `without_lists` goes on with what is known, and says what may come back
    CURRENT               names the version again whose sum it nearly has, or the newest
    a manifest            the newest kept version that is sound becomes the newest again, less what
                          was deleted since: the erasure lists that can be read are all honoured
    vectors, items        what is lost is lost: with `drop_damaged` the segment goes, and the ids
                          that have to be indexed again are told
    an older version      can no longer be gone back to, and is forgotten

Whatever loses rows or versions waits for `yes`. A repair is a version like any other: one commit,
which a kill leaves done or not done. The files of the damaged version are removed by a later
writer, when no kept version names them.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from indexer.files.fs import Fs
from indexer.files.lock import WriterLock
from indexer.format.entries import ANN_FILE
from indexer.format.integrity import open_checked
from indexer.format.manifest import (
    CURRENT,
    FOLDERS,
    LOCK,
    MANIFESTS,
    RELEVANCE,
    SCRATCH,
    SEGMENTS,
    Head,
    Manifest,
    manifest_bytes,
    manifest_path,
    read_head,
)
from indexer.format.segment import Segment, SegmentWriter, may_miss, segment_files
from indexer.format.version import dead_rows, open_version, read_tombstones
from indexer.maintain.deletions import Deletions, later_erasures
from indexer.maintain.salvage import erased_records, plan_loss
from indexer.search.relevance_file import read_background
from indexer.search.vector_index import build_ann, make_canaries
from indexer.store.commit import Changes, commit
from indexer.store.copies import copy_rows
from indexer.store.history import meant, vouched
from indexer.store.sweep import empty_scratch, manifest_numbers, require_alone
from models.errors import IndexCorruptError, IndexNotFoundError


@dataclass(slots=True)
class RepairReport:
    """What was found and done.

    Attributes:
        version: the current one afterwards; None where there is none to stand on.
        found: damage, one line each.
        done: what was done about it.
        lost: ids of records that have to be indexed again.
        unknown: rows lost, or that would be, whose ids cannot be read.
        forgotten: lists of deletions that were given up, and what of them may come back.
        needs: what was not done, and what allows it.
    """

    version: int | None = None
    found: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unknown: int = 0
    forgotten: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing damaged is left that was looked for."""
        return not self.needs and self.version is not None

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def repair(
    root: Path,
    *,
    yes: bool = False,
    drop_damaged: bool = False,
    without_lists: bool = False,
    fs: Fs | None = None,
) -> RepairReport:
    """See the module.

    Args:
        yes: also do what loses rows or versions.
        drop_damaged: also drop segments whose vectors or items are damaged.
        without_lists: also go on with what is known of damaged tombstones and erasure lists.

    Raises:
        IndexNotFoundError: there is no index.
        IndexLockedError: a writer is at work.
        NoSpaceError, StoreError: the index is as it was.
    """
    fs = fs or Fs()
    if not root.is_dir() or not (root / MANIFESTS).is_dir():
        raise IndexNotFoundError(f"no index at {root}")
    lock = WriterLock(root / LOCK)
    try:
        for name in FOLDERS:
            fs.make_dir(root / name, exist_ok=True)
        require_alone(root)
        empty_scratch(fs, root)  # what a killed writer or repair left
        work = _Repair(root, fs, yes, drop_damaged, without_lists)
        work.run()
        empty_scratch(fs, root)
        return work.report
    finally:
        lock.release()


class _Repair:
    def __init__(
        self, root: Path, fs: Fs, yes: bool, drop_damaged: bool, without_lists: bool
    ) -> None:
        self.report = RepairReport()
        self._root = root
        self._fs = fs
        self._yes = yes
        self._drop = drop_damaged
        self._without_lists = without_lists

    def run(self) -> None:
        current = self._standing()
        if current is None:
            return
        self.report.version = current.version
        self._files(current)
        self._older()

    # -- CURRENT, the newest manifest and the lists of deletions

    def _standing(self) -> Manifest | None:
        """The version to stand on; a fallback is committed first."""
        named: Head | None = None
        try:
            named = read_head(self._root)
        except IndexCorruptError as error:
            self.report.found.append(str(error))
        head = meant(self._root) or named
        if named is not None and head != named:
            self.report.found.append(
                f"{CURRENT}: it names version {named.version} with a sum that is nearly that of "
                f"version {head.version if head else named.version}"
            )
        versions, damage = vouched(self._root, head)
        newest = head.version if head else max(manifest_numbers(self._root), default=-1)
        self.report.found += [str(one) for one in damage if one.file == manifest_path(newest)]
        lists = Deletions(self._fs, self._root, versions)
        self.report.found += [str(one) for one in lists.damage.values()]
        self.report.done += lists.heal()
        if head is not None and head.version in versions:
            manifest = versions[head.version]
            if head == named and not lists.damaged(manifest):
                return manifest
            return self._stand_on(manifest, lists, newest)
        for number in sorted(versions, reverse=True):
            if self._sound(versions[number], lists):
                return self._stand_on(versions[number], lists, newest)
        self.report.needs.append(
            "no kept version is sound: restore the index from a copy, or build it again"
        )
        return None

    def _sound(self, manifest: Manifest, lists: Deletions) -> bool:
        """Whether the segments of a version are; no other is taken for the sake of its lists."""
        try:
            if lists.damaged(manifest):
                files = {
                    name: file
                    for entry in manifest.segments
                    for name, file in segment_files(entry).items()
                }
                open_checked(self._root, files, verify="full", tolerate=may_miss(files)).close()
            else:
                open_version(self._root, manifest, verify="full").close()
        except IndexCorruptError:
            return False
        return True

    def _stand_on(self, manifest: Manifest, lists: Deletions, newest: int) -> Manifest | None:
        """Commit the content of a version as the newest, as far as that was agreed to."""
        behind = manifest.version < newest
        later, torn = later_erasures(self._root, manifest.version) if behind else (set(), [])
        damaged = [*lists.damaged(manifest), *torn]
        if not self._may_stand(manifest, newest, damaged):
            return None
        changes = Changes("repair", tombstones_anew=True)
        if damaged or behind:
            tombstones = lists.known_tombstones(manifest)
            erasures = lists.known_erasures(manifest).joined(later)
            dead = dead_rows([entry.rows for entry in manifest.segments], tombstones)
            loss = erased_records(self._root, manifest, dead, erasures)
            self.report.forgotten += lists.told(manifest)
            self.report.forgotten += [f"{one}: it cannot be read to its end" for one in torn]
            self.report.lost += sorted(loss.records)
            changes = Changes(
                "repair",
                dead=loss.dead,
                erasures=erasures,
                tombstones_anew=True,
                tombstones=tombstones,
            )
        standing = self._publish(manifest, changes, newest)
        self._forget(
            one for one in manifest_numbers(self._root) if manifest.version < one < standing.version
        )
        if behind:
            self.report.done.append(
                f"went back to version {manifest.version}; index again what was added after "
                f"{manifest.created}"
            )
        elif damaged:
            self.report.done.append(
                f"went on from version {manifest.version} with what is known of "
                + " and ".join(damaged)
            )
        else:  # only `CURRENT` was damaged, or nothing vouches for what it names
            self.report.done.append(f"CURRENT names the content of version {manifest.version}")
        return standing

    def _may_stand(self, manifest: Manifest, newest: int, damaged: Sequence[str]) -> bool:
        """Whether what standing on a version loses was agreed to; asks for it where it was not."""
        needs: list[str] = []
        if manifest.version < newest and not self._yes:
            needs.append(
                f"the newest sound version is {manifest.version}, of {manifest.created} with "
                f"{manifest.live.images:,} images and {manifest.live.texts:,} texts: what came "
                f"after it, up to version {newest}, would be lost; --yes goes back to it"
            )
        if damaged and not (self._yes and self._without_lists):
            needs.append(
                f"what was deleted is not fully known any more: {' and '.join(damaged)} is damaged "
                "and cannot be put together again. Restore it from a copy of the index, or give "
                "--without-lists --yes to go on with what is known: some of what was deleted may "
                "then come back"
            )
        self.report.needs += needs
        return not needs

    # -- the files of the version that stands

    def _files(self, manifest: Manifest) -> None:
        files = manifest.files()
        with open_checked(self._root, files, verify="full", tolerate=files) as checked:
            damage = dict(checked.damage)
        self.report.found += [str(one) for one in damage.values()]
        by_position = {
            position: {name for name in damage if name.startswith(f"{SEGMENTS}/{entry.id}/")}
            for position, entry in enumerate(manifest.segments)
        }
        gone = [at for at, names in by_position.items() if any(_essential(one) for one in names)]
        structures = [at for at, names in by_position.items() if names and at not in gone]
        background = any(name.startswith(f"{RELEVANCE}/") for name in damage)
        if gone and not self._drop:
            rows = sum(manifest.segments[at].rows for at in gone)
            self.report.needs.append(
                f"{len(gone)} segments with {rows:,} rows are damaged: restore their files from a "
                "copy, go back with `diptych index rollback`, or give --drop-damaged --yes to "
                "drop them"
            )
            gone = []
        if gone:
            gone = self._agreed(manifest, gone)
        if gone or structures or background:
            self._rewrite(manifest, gone, structures, background)

    def _agreed(self, manifest: Manifest, gone: list[int]) -> list[int]:
        loss = plan_loss(self._root, manifest, self._dead(manifest), gone)
        self.report.unknown = loss.unknown
        if self._yes:
            return gone
        self.report.needs.append(
            f"{len(loss.records):,} records, and {loss.unknown:,} rows whose ids cannot be read, "
            "would be lost; --yes drops them"
        )
        self.report.lost += sorted(loss.records)
        return []

    def _rewrite(
        self, manifest: Manifest, gone: list[int], structures: list[int], background: bool
    ) -> None:
        dead = self._dead(manifest)
        loss = plan_loss(self._root, manifest, dead, gone) if gone else None
        buried = loss.dead if loss else set()
        unsure = loss.unsure - buried if loss else set()
        anew = sorted({*structures, *(at for at, _ in unsure)})
        rebuilt: list[_Rebuilt] = []
        try:
            for at in anew:
                alive = ~dead[at]
                alive[[row for position, row in buried if position == at]] = False
                if alive.any():
                    rows = np.flatnonzero(alive).tolist()
                    forget = {row for position, row in unsure if position == at}
                    rebuilt.append(_rebuild(self._fs, self._root, manifest, at, rows, forget))
            drop = {*gone, *anew}
            changes = Changes(
                "repair",
                segments=[one.writer for one in rebuilt],
                dead={pair for pair in buried if pair[0] not in drop},
                drop=drop,
                tombstones_anew=True,
            )
            self.report.version = self._publish(manifest, changes, manifest.version).version
        finally:
            for one in rebuilt:
                one.close()
        if background:
            self.report.done.append("the background is left out; the next build measures another")
        for at in gone:
            self.report.done.append(f"dropped segment {manifest.segments[at].id}")
        for at in structures:
            name = f"{SEGMENTS}/{manifest.segments[at].id}/{ANN_FILE}"
            self.report.done.append(f"built {name} again from its vectors")
        if unsure:
            self.report.done.append(
                f"kept {len(unsure):,} pictures that may have had captions among the texts lost: "
                "index your sources again, which makes them anew"
            )
        if loss is not None:
            self.report.lost += sorted(loss.records)

    # -- older versions

    def _older(self) -> None:
        head = read_head(self._root)
        versions, damage = vouched(self._root, head)
        bad: dict[int, str] = {}
        for error in damage:
            bad[int(Path(error.file).stem)] = str(error)
        checked: dict[str, str | None] = {}
        for number, manifest in versions.items():
            if number == head.version:
                continue
            for name, entry in manifest.files().items():
                if name not in checked:
                    with open_checked(
                        self._root, {name: entry}, verify="full", tolerate=[name]
                    ) as one:
                        told = one.damage.get(name)
                    checked[name] = None if told is None else str(told)
                if checked[name] is not None:
                    bad.setdefault(number, str(checked[name]))
        if not bad:
            return
        names = ", ".join(str(one) for one in sorted(bad))
        self.report.found += [why for why in bad.values() if why not in self.report.found]
        if not self._yes:
            self.report.needs.append(
                f"versions {names} are damaged and cannot be gone back to; --yes forgets them"
            )
            return
        self._forget(bad)
        self.report.done.append(f"forgot versions {names}, which are damaged")

    # -- shared

    def _forget(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._fs.remove(self._root / manifest_path(number))
        self._fs.sync_dir(self._root / MANIFESTS)

    def _dead(self, manifest: Manifest) -> list[Any]:
        pairs = read_tombstones(self._root, manifest)
        return dead_rows([entry.rows for entry in manifest.segments], pairs)

    def _publish(self, base: Manifest, changes: Changes, newest: int) -> Manifest:
        """Commit `base` with changes as a version above every number there is."""
        digest = hashlib.sha256(manifest_bytes(self._root, base.version)).hexdigest()
        try:
            read_background(self._root, base)
        except IndexCorruptError:
            base = base.model_copy(update={"relevance": None})
        number = max([newest, *manifest_numbers(self._root)]) + 1
        parent = Head(base.version, digest)
        manifest, _ = commit(self._fs, self._root, base, changes, version=number, parent=parent)
        return manifest


def _essential(name: str) -> bool:
    return not name.endswith(f"/{ANN_FILE}")


@dataclass(frozen=True, slots=True)
class _Rebuilt:
    """A filled writer, and the segment its words come from, open until it has finished."""

    writer: SegmentWriter
    source: Segment

    def close(self) -> None:
        self.source.close()
        self.writer.abort()


def _rebuild(
    fs: Fs,
    root: Path,
    manifest: Manifest,
    position: int,
    rows: Sequence[int],
    unsure: Collection[int],
) -> _Rebuilt:
    """These rows of a segment in a new one, with the structure that its entry describes.

    Args:
        unsure: as `copy_rows`.

    Raises:
        IndexCorruptError: the vectors or items are damaged.
        NoSpaceError, StoreError: it cannot be written.
    """
    entry = manifest.segments[position]
    # never a name used before: a repair that was killed may have left its own in place
    name = f"{manifest.version + 1:08d}-{entry.modality}-{uuid.uuid4().hex[:8]}"
    source = Segment(root, entry, manifest.dim)
    scratch = root / SCRATCH
    writer = SegmentWriter(fs, scratch, name, entry.modality, manifest.dim, manifest.declared)
    rebuilt = _Rebuilt(writer, source)
    try:
        copy_rows(source, rows, writer, manifest.declared, unsure=unsure)
        if entry.ann is not None:
            ann = entry.ann
            vectors_ND = writer.vectors()
            index = build_ann(vectors_ND, ann.structure, ann.recipe, dict(ann.parameters))
            canaries = make_canaries(index, vectors_ND)
            spool = fs.spool(scratch / f"{name}.ann")
            index.write(spool.write)
            del index  # before the file is hashed and written: one structure in memory
            writer.attach_ann(spool.read(), ann.model_copy(update={"canaries": canaries}))
            spool.remove()
    except BaseException:
        rebuilt.close()
        raise
    return rebuilt
