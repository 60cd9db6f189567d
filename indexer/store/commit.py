"""The next version while it is being written: files put in place, then taken back or published.

    with Draft(fs, root, version) as draft:
        ... draft.add_segments, draft.write_array ...    files that no manifest names yet
        draft.publish(manifest)                         CURRENT names it from here on

Whatever ends the block before `publish` began to replace `CURRENT` removes what was placed. It
knows the order in which bytes and names become durable, nothing of what the files hold.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from indexer.files.fs import FileDigest, Fs
from indexer.format.manifest import (
    CURRENT,
    MANIFESTS,
    SCRATCH,
    SEGMENTS,
    Head,
    Live,
    Manifest,
    SegmentEntry,
    manifest_path,
    parse_manifest,
)
from indexer.format.segment import SegmentWriter
from models.errors import StoreError


class Draft:
    """See the module."""

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


Pairs = npt.NDArray[np.int64]


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
    moved = np.stack([positions[pairs[:, 0]], pairs[:, 1]], axis=1)
    return np.unique(moved.astype(np.int64), axis=0)


def count_live(entries: Sequence[SegmentEntry], pairs: Pairs) -> Live:
    totals = {"image": 0, "text": 0}
    dead = np.bincount(pairs[:, 0], minlength=len(entries))
    for entry, buried in zip(entries, dead, strict=True):
        totals[entry.modality] += entry.rows - int(buried)
    return Live(images=totals["image"], texts=totals["text"])
