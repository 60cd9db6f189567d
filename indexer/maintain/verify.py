"""Checks everything about an index that can be checked, and lists every problem, not the first.

Opening verifies checksums and stops at the first damage; this goes on, and looks inside: finite
unit vectors, sound databases, unique ids, counts that add up. Deep, it does so for every version
kept and every file of theirs, and asks more of the current one: the words of its rows, the answers
of its search structures, and that nothing on the erasure list is there. It repairs nothing
(`indexer.maintain.repair` does), takes no lock, and runs beside a service and a writer: a version
that the writer collects meanwhile is left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

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
from models.errors import IndexCorruptError

T = TypeVar("T")
OnBytes = Callable[[int, int], None]
"""Told how many bytes were read since the last call, and how many there are in all."""


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
        StoreError: the operating system refused to read.
    """
    started = time.monotonic()
    report = VerifyReport()
    head = _attempt(report, lambda: read_head(path))
    versions: dict[int, Manifest] = {}
    if deep:
        versions, damage = vouched(path, head)
        report.problems += [Damage(error.file, error.why) for error in damage]
    elif head is not None:
        manifest = _attempt(report, lambda: read_manifest(path, head))
        versions = {} if manifest is None else {head.version: manifest}
    if head is not None and head.version in versions:
        report.version = head.version
    report.versions = sorted(versions, reverse=True)
    files = {name: entry for one in versions.values() for name, entry in one.files().items()}
    report.files = len(files) + len(versions) + 1  # the manifests and CURRENT
    report.bytes = sum(entry.size for entry in files.values())
    _Check(path, versions, report, deep, threads, on_bytes).all()
    if deep:
        report.orphans = _find_orphans(path, versions)
    if deep and (report.problems or report.orphans):
        _forget_collected(path, report)
    report.seconds = time.monotonic() - started
    return report


class _Check:
    """Segment checks, and those that need all segments of a version together."""

    def __init__(
        self,
        root: Path,
        versions: Mapping[int, Manifest],
        report: VerifyReport,
        deep: bool,
        threads: int,
        on_bytes: OnBytes | None,
    ) -> None:
        self._root = root
        self._versions = versions
        self._report = report
        self._deep = deep
        self._threads = threads
        self._tell = on_bytes
        self._current = versions.get(report.version) if report.version is not None else None
        self._seen: set[str] = set()
        self._queries: dict[Modality, npt.NDArray[np.float32]] = {}
        self._late: list[tuple[SegmentEntry, Manifest]] = []

    def all(self) -> None:
        numbers = sorted(self._versions, reverse=True)
        for number in numbers:
            manifest = self._versions[number]
            together = _Together(manifest, self._report) if manifest is self._current else None
            self._version(manifest, together)
        for entry, manifest in self._late:
            self._structure(entry, manifest)

    def _version(self, manifest: Manifest, together: _Together | None) -> None:
        root, report = self._root, self._report
        pairs = _attempt(report, lambda: read_tombstones(root, manifest))
        _attempt(report, lambda: read_background(root, manifest))
        erasures = _attempt(report, lambda: read_erasures(root, manifest))
        dead = None
        if pairs is not None:
            dead = dead_rows([entry.rows for entry in manifest.segments], pairs)
        whole = together is not None and dead is not None
        for position, entry in enumerate(manifest.segments):
            if entry.id in self._seen:
                continue
            self._seen.add(entry.id)
            take = None
            if together is not None and dead is not None:
                take = together.taker(dead[position], erasures or Erasures())
            whole = self._segment(entry, manifest, take) and whole
        if whole and together is not None:
            together.compare()

    def _segment(
        self, entry: SegmentEntry, manifest: Manifest, take: Callable[[Segment, str], None] | None
    ) -> bool:
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
                self._inside(segment, items, manifest)
            if take is not None:
                _attempt(self._report, lambda: take(segment, items))
        finally:
            segment.close()
        return True

    def _inside(self, segment: Segment, items: str, manifest: Manifest) -> None:
        rows = segment.entry.rows
        _attempt(self._report, lambda: self._tell_all(items, word_problems(segment.items, rows)))
        self._queries.setdefault(segment.entry.modality, sample_rows(segment.vectors_ND))
        if segment.ann is not None:  # once the other modality is known, which will query it
            self._late.append((segment.entry, manifest))

    def _structure(self, entry: SegmentEntry, manifest: Manifest) -> None:
        segment = _attempt(self._report, lambda: Segment(self._root, entry, manifest.dim))
        if segment is None:
            return
        try:
            name = f"{segment.name}/ann.faiss"
            other: Modality = "text" if entry.modality == "image" else "image"
            self._tell_all(name, ann_problems(segment, self._queries.get(other)))
        finally:
            segment.close()

    def _progress(self, count: int) -> None:
        if self._tell is not None:
            self._tell(count, self._report.bytes)

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

    def taker(
        self, dead_N: npt.NDArray[np.bool_], erasures: Erasures
    ) -> Callable[[Segment, str], None]:
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


def _forget_collected(root: Path, report: VerifyReport) -> None:
    """Leave out what a writer removed while we looked: versions that are no longer kept."""
    try:
        head = read_head(root)
    except IndexCorruptError:
        return
    versions, _ = vouched(root, head)
    named = {name for manifest in versions.values() for name in manifest.files()}
    there = {manifest_path(number) for number in (*manifest_numbers(root), head.version)}
    report.problems = [one for one in report.problems if one.file in named | there | {CURRENT}]
    report.orphans = [one for one in _find_orphans(root, versions) if one in report.orphans]


def _attempt(report: VerifyReport, call: Callable[[], T]) -> T | None:
    try:
        return call()
    except IndexCorruptError as error:
        report.problems.append(Damage(error.file, error.why))
        return None
