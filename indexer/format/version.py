"""Opens one committed version of an index: manifest, segments and tombstones, all verified.

Shared by readers (`indexer.search.snapshot`) and the writer (`indexer.store.writer`). It holds no
search structure and writes nothing. No lock is needed: what a manifest names is never changed or
removed while the version can be opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt

from indexer.format.entries import SegmentEntry
from indexer.format.integrity import Verify, verify_file
from indexer.format.manifest import (
    HINT,
    TOMBSTONES,
    Live,
    Manifest,
    manifest_path,
    newest_version,
    read_manifest,
)
from indexer.format.npy import check_npy, npy_header
from indexer.format.segment import Segment, open_segments
from models.errors import IndexCorruptError

Pairs: TypeAlias = npt.NDArray[np.int64]
"""Tombstones, int64 [T, 2]: (position of a segment, row)."""


@dataclass(frozen=True, slots=True)
class OpenVersion:
    """A verified version; as a context manager it closes its files.

    Attributes:
        root: the index directory.
        manifest: what it holds.
        segments: in the manifest's order.
        dead: per segment, bool [N]: rows deleted or superseded.
    """

    root: Path
    manifest: Manifest
    segments: list[Segment]
    dead: list[npt.NDArray[np.bool_]]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for segment in self.segments:
            segment.close()


def open_version(
    root: Path, manifest: Manifest | None = None, *, verify: Verify = "fast"
) -> OpenVersion:
    """Verify and open the current version, or the one `manifest` describes.

    A damaged `ann.faiss` is no obstacle: its segment is opened without it and says so.

    Raises:
        IndexNotFoundError: no index there.
        IndexCorruptError: any file the version cannot do without is missing or damaged.
        StoreError: the operating system refused to read.
    """
    if manifest is None:
        return newest_version(
            root, lambda head: open_version(root, read_manifest(root, head), verify=verify)
        )
    pairs = read_tombstones(root, manifest, verify=verify)
    opened = open_segments(root, manifest.segments, manifest.dim, verify=verify)
    try:
        dead = dead_rows([segment.entry.rows for segment in opened], pairs)
        if count_live(manifest.segments, pairs) != manifest.live:
            why = "its counts do not match its segments and tombstones"
            raise IndexCorruptError(manifest_path(manifest.version), why, hint=HINT)
    except BaseException:
        for segment in opened:
            segment.close()
        raise
    return OpenVersion(root, manifest, opened, dead)


def read_tombstones(root: Path, manifest: Manifest, *, verify: Verify = "full") -> Pairs:
    """Tombstones of a version: int64 [T, 2] of (position of the segment, row), verified.

    Raises:
        IndexCorruptError: damaged, unsorted, repeated or out of range.
    """
    entry = manifest.tombstones
    if entry is None:
        return np.zeros((0, 2), dtype=np.int64)
    name = f"{TOMBSTONES}/{entry.file}"
    with verify_file(root, name, entry, verify=verify) as file:
        data = file.read()
    offset = check_npy(name, data[:4096], len(data), "<i8", (entry.count, 2))
    pairs = np.frombuffer(data, dtype="<i8", offset=offset).reshape(-1, 2)
    rows = np.array([segment.rows for segment in manifest.segments], dtype=np.int64)
    segment_T, row_T = pairs[:, 0], pairs[:, 1]
    if (segment_T < 0).any() or (segment_T >= len(rows)).any():
        raise IndexCorruptError(name, "it names a segment out of range", hint=HINT)
    if (row_T < 0).any() or (row_T >= rows[segment_T]).any():
        raise IndexCorruptError(name, "it names a row out of range", hint=HINT)
    step_T, down_T = np.diff(segment_T), np.diff(row_T)
    if not ((step_T > 0) | ((step_T == 0) & (down_T > 0))).all():
        raise IndexCorruptError(name, "it is not sorted, or repeats a row", hint=HINT)
    return pairs


def encode_tombstones(pairs: Pairs) -> bytes:
    """The file form of int64 [T, 2] pairs."""
    return npy_header("<i8", (len(pairs), 2)) + pairs.astype("<i8").tobytes()


def dead_rows(rows: Iterable[int], pairs: Pairs) -> list[npt.NDArray[np.bool_]]:
    """Tombstone pairs, sorted, as one bool [N] mask per segment."""
    masks = [np.zeros(count, dtype=np.bool_) for count in rows]
    starts = np.searchsorted(pairs[:, 0], np.arange(len(masks) + 1))
    for position, mask in enumerate(masks):
        mask[pairs[starts[position] : starts[position + 1], 1]] = True
    return masks


def count_live(entries: Sequence[SegmentEntry], pairs: Pairs) -> Live:
    """Rows without a tombstone, by modality."""
    totals = {"image": 0, "text": 0}
    dead = np.bincount(pairs[:, 0], minlength=len(entries))
    for entry, buried in zip(entries, dead, strict=True):
        totals[entry.modality] += entry.rows - int(buried)
    return Live(images=totals["image"], texts=totals["text"])
