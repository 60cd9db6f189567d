"""Check everything about an index that can be checked, and list every problem, not the first.

Opening verifies hashes and stops at the first damage; this goes on, and looks inside: finite unit
vectors, sound databases, unique ids, counts that add up. It repairs nothing. Files that nothing
refers to (what a killed writer left) are no problem; the next build sweeps them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from indexer.checking import verify_file
from indexer.field_table import columns_of, count_present, count_rows, count_strays
from indexer.manifest import (
    ITEMS_FILE,
    SEGMENTS,
    VECTORS_FILE,
    Manifest,
    SegmentEntry,
    manifest_path,
    read_manifest,
)
from indexer.relevance import read_background
from indexer.segment import HalfVectors, Segment
from indexer.version import dead_rows, read_tombstones
from models.errors import IndexCorruptError

T = TypeVar("T")

# each entry of a stored row is off by at most 2**-11 of itself, and so is the row's length
_LENGTH_TOLERANCE: Final = 2e-3
_ROWS_AT_ONCE: Final = 16_384


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong, and the file (relative to the index) it is wrong with."""

    file: str
    why: str


@dataclass(slots=True)
class VerifyReport:
    """The outcome: `files` and `bytes` count what the current version names."""

    version: int | None = None
    files: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def verify_index(path: Path) -> VerifyReport:
    """Check the current version of an index, reading every byte of it.

    Raises:
        IndexNotFoundError: there is no index to check.
        StoreError: the operating system refused to read.
    """
    report = VerifyReport()
    manifest = _attempt(report, lambda: read_manifest(path))
    if manifest is None:
        return report
    files = manifest.files()
    report.version = manifest.version
    report.files = len(files) + 2  # CURRENT and the manifest
    report.bytes = sum(entry.size for entry in files.values())
    pairs = _attempt(report, lambda: read_tombstones(path, manifest))
    _attempt(report, lambda: read_background(path, manifest))
    dead = None
    if pairs is not None:
        dead = dead_rows([entry.rows for entry in manifest.segments], pairs)
    _Check(path, manifest, dead, report).all()
    return report


class _Check:
    """Segment checks, and those that need all segments together."""

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        dead: list[npt.NDArray[np.bool_]] | None,
        report: VerifyReport,
    ) -> None:
        self._root = root
        self._manifest = manifest
        self._dead = dead
        self._report = report
        self._ids: dict[str, set[str]] = {"image": set(), "text": set()}
        self._belongs: list[tuple[str, str]] = []
        self._whole = dead is not None

    def all(self) -> None:
        for position, entry in enumerate(self._manifest.segments):
            self._segment(position, entry)
        if self._whole:
            self._together()

    def _segment(self, position: int, entry: SegmentEntry) -> None:
        names = [f"{SEGMENTS}/{entry.id}/{name}" for name in (VECTORS_FILE, ITEMS_FILE)]
        sound = True
        for name, file in zip(names, (VECTORS_FILE, ITEMS_FILE), strict=True):
            # each file on its own: one damaged file must not hide another
            opened = _attempt(
                self._report,
                lambda name=name, file=file: verify_file(  # type: ignore[misc]
                    self._root, name, entry.files[file]
                ),
            )
            sound = sound and opened is not None
            if opened is not None:
                opened.close()
        segment = None
        if sound:
            segment = _attempt(self._report, lambda: Segment(self._root, entry, self._manifest.dim))
        if segment is None:
            self._whole = False
            return
        try:
            for why in vector_problems(segment.vectors_ND):
                self._problem(names[0], why)
            if complaint := segment.items.integrity():
                self._problem(names[1], f"SQLite: {complaint}")
            _attempt(self._report, lambda: self._fields(segment, names[1]))
            _attempt(self._report, lambda: self._collect(position, segment, names[1]))
        finally:
            segment.close()

    def _fields(self, segment: Segment, name: str) -> None:
        rows = count_rows(segment.items.query)
        if rows != segment.entry.rows:
            self._problem(name, f"{rows} of {segment.entry.rows} rows can be filtered")
        if wrong := count_strays(segment.items.query):
            self._problem(name, f"{wrong} rows are filtered by another label or language")
        for column in columns_of(self._manifest.declared).values():
            count_present(segment.items.query, column)  # it is there, or SQLite says so

    def _collect(self, position: int, segment: Segment, name: str) -> None:
        if self._dead is None:
            return
        dead = self._dead[position]
        seen = self._ids[segment.entry.modality]
        for row, item_id, _, digest in segment.items.records():
            if len(digest) != 32:
                self._problem(name, f"row {row} has no content hash")
            if dead[row]:
                continue
            if item_id in seen:
                self._problem(name, f"id {item_id!r} is live twice")
            seen.add(item_id)
        self._belongs += [
            (name, image) for row, image in segment.items.image_ids() if not dead[row]
        ]

    def _together(self) -> None:
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
        self._report.problems.append(Problem(file, why))


def vector_problems(vectors_ND: HalfVectors) -> list[str]:
    """What is wrong with float16 [N, D] rows that should be finite and of unit length."""
    problems = []
    for start in range(0, len(vectors_ND), _ROWS_AT_ONCE):
        wide_ND = vectors_ND[start : start + _ROWS_AT_ONCE].astype(np.float32)
        lengths_N = np.sqrt(np.einsum("nd,nd->n", wide_ND, wide_ND))
        for row in np.flatnonzero(~np.isfinite(wide_ND).all(axis=1)):
            problems.append(f"row {start + row} holds NaN or infinity")
        for row in np.flatnonzero(np.abs(lengths_N - 1.0) > _LENGTH_TOLERANCE):
            problems.append(f"row {start + row} has length {lengths_N[row]:.4f}, not 1")
    return problems


def _attempt(report: VerifyReport, call: Callable[[], T]) -> T | None:
    try:
        return call()
    except IndexCorruptError as error:
        report.problems.append(Problem(error.file, error.why))
        return None
