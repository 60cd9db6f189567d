"""Checks everything about an index that can be checked, and lists every problem, not the first.

Opening verifies checksums and stops at the first damage; this goes on, and looks inside: finite
unit vectors, sound databases, unique ids, counts that add up. Deep, it does so for every version
kept and every file of theirs, and asks more of the current one: the words of its rows, the answers
of its search structures, and that nothing on the erasure list is there. It repairs nothing
(`indexer.maintain.repair` does), takes no lock, and runs beside a service and writers. A file that
a writer collected meanwhile is no damage: then the version that is current by now is looked at
again, where only what came since has to be read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from indexer.format.entries import ITEMS_FILE, VECTORS_FILE, Modality, SegmentEntry
from indexer.format.erasures import Erasures, erased_rows, read_erasures
from indexer.format.integrity import THREADS, open_checked
from indexer.format.manifest import (
    CURRENT,
    LOCK,
    SEGMENTS,
    Manifest,
    manifest_path,
    read_head,
    read_manifest,
)
from indexer.format.segment import Segment, segment_files
from indexer.format.version import dead_rows, read_tombstones
from indexer.maintain.segment_checks import (
    ann_problems,
    item_problems,
    sample_rows,
    vector_problems,
    word_problems,
)
from indexer.search.relevance_file import read_background
from indexer.store.history import vouched
from indexer.store.sweep import manifest_numbers
from models.errors import IndexCorruptError, StoreError

T = TypeVar("T")
OnBytes = Callable[[int, int], None]
"""Told how many bytes were read since the last call, and how many there are in all."""
_PASSES: Final = 50
"""Looks at versions that are gone before the end; each reads only what came since the last one."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing wrong, and the file (relative to the index) it is wrong with."""

    file: str
    why: str


@dataclass(slots=True)
class VerifyReport:
    """The outcome.

    Attributes:
        version: the current one; None where that cannot be told.
        versions: those checked; more than one only if deep.
        files, bytes: what the versions checked name, each file once.
        orphans: files that nothing names, as a killed writer leaves them; the next one sweeps.
        seconds: how long it took.
    """

    version: int | None = None
    versions: list[int] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    problems: list[Damage] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def verify_index(
    path: Path, *, deep: bool = False, threads: int = THREADS, on_bytes: OnBytes | None = None
) -> VerifyReport:
    """Check the current version of an index, or deep: all that are kept, reading every byte.

    Raises:
        IndexNotFoundError: there is no index to check.
        StoreError: the operating system refused to read, or writers were quicker every time.
    """
    started = time.monotonic()
    check = _Check(path, deep, threads, on_bytes)
    for _ in range(_PASSES):
        report = check.look()
        if not report.problems or not check.was_overtaken(report):
            break
    else:
        raise StoreError(
            f"{path} is changed more quickly than it can be checked",
            hint="run again while less is written",
        )
    report.seconds = time.monotonic() - started
    return report


Take = Callable[[Segment, str], None]
"""Notes what the rows of a segment say of others: the segment, and how to call its items."""


class _Check:
    """Looks at an index until one look was not overtaken; what was sound is not read again."""

    def __init__(self, root: Path, deep: bool, threads: int, on_bytes: OnBytes | None) -> None:
        self._root = root
        self._deep = deep
        self._threads = threads
        self._tell = on_bytes
        self._report = VerifyReport()
        self._sound: set[str] = set()  # segments, whose files never change
        self._told = 0
        self._last: tuple[Set[int], list[Damage]] | None = None
        self._queries: dict[Modality, npt.NDArray[np.float32]] = {}
        self._background: npt.NDArray[np.float32] | None = None

    def look(self) -> VerifyReport:
        """Check the version that is current now, or all that are kept."""
        report = self._report = VerifyReport()
        head = _attempt(report, lambda: read_head(self._root))
        versions: dict[int, Manifest] = {}
        if self._deep:
            versions, damage = vouched(self._root, head)
            report.problems += [Damage(error.file, error.why) for error in damage]
        elif head is not None:
            manifest = _attempt(report, lambda: read_manifest(self._root, head))
            versions = {} if manifest is None else {head.version: manifest}
        if head is not None and head.version in versions:
            report.version = head.version
        report.versions = sorted(versions, reverse=True)
        files = {name: entry for one in versions.values() for name, entry in one.files().items()}
        report.files = len(files) + len(versions) + 1  # the manifests and CURRENT
        report.bytes = sum(entry.size for entry in files.values())
        self._all(versions)
        if self._deep:
            report.orphans = _find_orphans(self._root, versions)
            if report.orphans and (kept := _kept(self._root)) is not None:
                still = set(_find_orphans(self._root, kept))
                report.orphans = [one for one in report.orphans if one in still]
        return report

    def was_overtaken(self, report: VerifyReport) -> bool:
        """Whether something complained of is in no version that is kept now: not damage, but gone.

        The complaints that remain are of the index as it is.
        """
        kept = _kept(self._root)
        if kept is None or self._last == (kept.keys(), report.problems):
            return False  # nothing has changed since the last look
        self._last = (kept.keys(), report.problems)
        named = {name for manifest in kept.values() for name in manifest.files()}
        named |= {manifest_path(number) for number in (*manifest_numbers(self._root), *kept)}
        return any(one.file not in named | {CURRENT} for one in report.problems)

    def _all(self, versions: Mapping[int, Manifest]) -> None:
        checked = set(self._sound)
        late: list[tuple[SegmentEntry, Manifest]] = []
        for number in sorted(versions, reverse=True):
            manifest = versions[number]
            current = number == self._report.version
            together = _Together(manifest, self._report) if current else None
            self._version(manifest, together, checked, late)
        for entry, manifest in late:
            before = len(self._report.problems)
            self._structure(entry, manifest)
            if len(self._report.problems) > before:
                self._sound.discard(entry.id)

    def _version(
        self,
        manifest: Manifest,
        together: _Together | None,
        checked: set[str],
        late: list[tuple[SegmentEntry, Manifest]],
    ) -> None:
        """Check what `checked` does not name yet, and note search structures for the end."""
        root, report = self._root, self._report
        pairs = _attempt(report, lambda: read_tombstones(root, manifest))
        background = _attempt(report, lambda: read_background(root, manifest))
        if background is not None and self._background is None:
            self._background = background.queries_QD
        erasures = _attempt(report, lambda: read_erasures(root, manifest))
        dead = None
        if pairs is not None:
            dead = dead_rows([entry.rows for entry in manifest.segments], pairs)
        whole = together is not None and dead is not None
        for position, entry in enumerate(manifest.segments):
            take = None
            if together is not None and dead is not None:
                take = together.taker(dead[position], erasures or Erasures())
            if entry.id in checked:
                whole = (take is None or self._again(entry, manifest, take)) and whole
                continue
            checked.add(entry.id)
            before = len(report.problems)
            usable = self._segment(entry, manifest, take)
            whole = usable and whole
            if len(report.problems) == before:
                self._sound.add(entry.id)
            if self._deep and usable and entry.ann is not None:  # once the queries are known
                late.append((entry, manifest))
        if whole and together is not None:
            together.compare()

    def _again(self, entry: SegmentEntry, manifest: Manifest, take: Take) -> bool:
        """Have the rows of a segment that was sound compared with those of the others."""
        items = f"{SEGMENTS}/{entry.id}/{ITEMS_FILE}"
        segment = _attempt(self._report, lambda: Segment(self._root, entry, manifest.dim))
        if segment is None:
            return False
        try:
            _attempt(self._report, lambda: take(segment, items))
        finally:
            segment.close()
        return True

    def _segment(self, entry: SegmentEntry, manifest: Manifest, take: Take | None) -> bool:
        """Check one segment; whether what belongs together can be told."""
        files = segment_files(entry)
        with open_checked(
            self._root,
            files,
            verify="full",
            tolerate=files,  # each file on its own: one damaged file must not hide another
            threads=self._threads,
            on_bytes=self._progress,
        ) as checked:
            for error in checked.damage.values():
                self._report.problems.append(Damage(error.file, error.why))
            vectors, items = (
                f"{SEGMENTS}/{entry.id}/{name}" for name in (VECTORS_FILE, ITEMS_FILE)
            )
            if vectors in checked.damage or items in checked.damage:
                return False
            segment = _attempt(
                self._report, lambda: Segment(self._root, entry, manifest.dim, checked)
            )
        if segment is None:
            return False
        try:
            self._tell_all(vectors, vector_problems(segment.vectors_ND))
            _attempt(
                self._report,
                lambda: self._tell_all(items, item_problems(segment, manifest.declared)),
            )
            if self._deep:
                rows = segment.entry.rows
                _attempt(
                    self._report,
                    lambda: self._tell_all(items, word_problems(segment.items, rows)),
                )
                self._queries.setdefault(entry.modality, sample_rows(segment.vectors_ND))
            if take is not None:
                _attempt(self._report, lambda: take(segment, items))
        finally:
            segment.close()
        return True

    def _structure(self, entry: SegmentEntry, manifest: Manifest) -> None:
        segment = _attempt(self._report, lambda: Segment(self._root, entry, manifest.dim))
        if segment is None:
            return
        try:
            name = f"{segment.name}/ann.faiss"
            self._tell_all(name, ann_problems(segment, self._asked(entry)))
        finally:
            segment.close()

    def _asked(self, entry: SegmentEntry) -> npt.NDArray[np.float32] | None:
        """What a structure is tried with: such queries as it was measured with."""
        if entry.ann is not None and entry.ann.operating.kind == "background":
            return self._background
        return self._queries.get("text" if entry.modality == "image" else "image")

    def _progress(self, count: int) -> None:
        if self._tell is not None:
            self._told += count
            self._tell(count, max(self._told, self._report.bytes))

    def _tell_all(self, file: str, whys: Iterable[str]) -> None:
        for why in whys:
            self._report.problems.append(Damage(file, why))


class _Together:
    """What the segments of the current version must agree on."""

    def __init__(self, manifest: Manifest, report: VerifyReport) -> None:
        self._manifest = manifest
        self._report = report
        self._ids: dict[str, set[str]] = {"image": set(), "text": set()}
        self._belongs: list[tuple[str, str]] = []

    def taker(self, dead_N: npt.NDArray[np.bool_], erasures: Erasures) -> Take:
        def take(segment: Segment, name: str) -> None:
            seen = self._ids[segment.entry.modality]
            erased = {row for row, _ in erased_rows(segment.items, erasures)}
            for row, item_id, _, digest in segment.items.records():
                if len(digest) != 32:
                    self._problem(name, f"row {row} has no content hash")
                if dead_N[row]:
                    continue
                if item_id in seen:
                    self._problem(name, f"id {item_id!r} is live twice")
                if row in erased:
                    self._problem(name, f"id {item_id!r} is live and on the erasure list")
                seen.add(item_id)
            images = segment.items.image_ids()
            self._belongs += [(name, image) for row, image in images if not dead_N[row]]

        return take

    def compare(self) -> None:
        images, texts = len(self._ids["image"]), len(self._ids["text"])
        live = self._manifest.live
        if (live.images, live.texts) != (images, texts):
            self._problem(
                manifest_path(self._manifest.version),
                f"it counts {live.images} images and {live.texts} texts, "
                f"the segments hold {images} and {texts}",
            )
        for name, image in self._belongs:
            if image not in self._ids["image"]:
                self._problem(name, f"a live text belongs to {image!r}, which is not there")

    def _problem(self, file: str, why: str) -> None:
        self._report.problems.append(Damage(file, why))


def _find_orphans(root: Path, versions: Mapping[int, Manifest]) -> list[str]:
    """Paths relative to the index, sorted; a file that vanishes meanwhile is left out."""
    named = {name for manifest in versions.values() for name in manifest.files()}
    named |= {manifest_path(number) for number in versions} | {CURRENT, LOCK}
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = (Path(folder) / name).relative_to(root).as_posix()
            if path not in named:
                found.append(path)
    return sorted(found)


def _kept(root: Path) -> dict[int, Manifest] | None:
    """The versions kept now; None where that cannot be told."""
    try:
        head = read_head(root)
    except IndexCorruptError:
        return None
    return vouched(root, head)[0]


def _attempt(report: VerifyReport, call: Callable[[], T]) -> T | None:
    try:
        return call()
    except IndexCorruptError as error:
        report.problems.append(Damage(error.file, error.why))
        return None
