"""Exports an index: as a copy, as Parquet, as clip-retrieval's folders (`diptych index export`).

The target appears whole or not at all. A copy is one committed version with its files verified as
they are copied; it is an index of its own. Exporting takes no lock: it reads one version, whatever
a writer does meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

from indexer.files.fs import Fs, require_space
from indexer.format.entries import ITEMS_FILE, FileEntry
from indexer.format.erasures import Erasures, read_erasures
from indexer.format.integrity import open_checked
from indexer.format.manifest import (
    CURRENT,
    KEPT_FOLDERS,
    SEGMENTS,
    Head,
    Manifest,
    manifest_bytes,
    manifest_path,
    newest_version,
    read_manifest,
)
from indexer.format.version import OpenVersion, open_version
from indexer.transfer.clip_retrieval import write_folders
from indexer.transfer.parquet_files import arrow, write_parquet
from indexer.transfer.rows import (
    ERASURES,
    OnRows,
    RowBlock,
    TransferReport,
    live_rows,
    whole_directory,
)
from models.errors import IndexCorruptError

Format = Literal["clip-retrieval", "parquet", "copy"]


_CHUNK: Final = 1 << 20


def export_index(
    root: Path, out: Path, form: Format, *, on_rows: OnRows | None = None
) -> TransferReport:
    """Write the live items of the current version, or a copy of it, to a new directory.

    Args:
        on_rows: told of rows; of bytes for a copy.

    Raises:
        IndexNotFoundError, IndexCorruptError: the index cannot be read, and is not copied.
        InputError: pyarrow is not installed.
        NoSpaceError, StoreError: `out` exists or cannot be written.
    """
    started = time.monotonic()
    if form == "copy":
        report = copy_index(root, out, on_rows=on_rows)
    else:
        arrow()
        report = _export_rows(root, out, form, on_rows)
    files = [path for path in out.rglob("*") if path.is_file()]
    report.files, report.bytes = len(files), sum(path.stat().st_size for path in files)
    report.seconds = time.monotonic() - started
    return report


def _export_rows(root: Path, out: Path, form: Format, on_rows: OnRows | None) -> TransferReport:
    with whole_directory(out) as partial:
        version, erasures = newest_version(root, lambda head: _opened(root, head))
        with version:
            live = version.manifest.live
            about = sum(one.files[ITEMS_FILE].size for one in version.manifest.segments)
            rows = live.images + live.texts
            require_space(partial, 3 * version.manifest.dim * rows + about)
            if form == "parquet":
                write_parquet(partial, version.manifest, _told(live_rows(version), rows, on_rows))
            else:
                write_folders(partial, version)
            if len(erasures):
                (partial / ERASURES).write_bytes(erasures.encode())
        _sync_all(partial)
    report = TransferReport(form, version.manifest.version, live.images, live.texts)
    if any(segment.ann is not None for segment in version.manifest.segments):
        report.note("search structures are not exported; `diptych index optimize` makes them anew")
    return report


def _opened(root: Path, head: Head) -> tuple[OpenVersion, Erasures]:
    manifest = read_manifest(root, head)
    erasures = read_erasures(root, manifest)
    return open_version(root, manifest, verify="full"), erasures


def copy_index(root: Path, out: Path, *, on_rows: OnRows | None = None) -> TransferReport:
    """Copy the current version to a new directory, every byte checked on the way.

    Raises:
        As `export_index`.
    """
    manifest = newest_version(root, lambda head: _copy(root, head, out, on_rows))
    return TransferReport("copy", manifest.version, manifest.live.images, manifest.live.texts)


def _copy(root: Path, head: Head, out: Path, on_rows: OnRows | None) -> Manifest:
    manifest = read_manifest(root, head)
    total = sum(entry.size for entry in manifest.files().values())
    fs = Fs()
    with whole_directory(out) as partial:
        require_space(partial, total)
        for folder in KEPT_FOLDERS:
            fs.make_dir(partial / folder)
        for name, entry in manifest.files().items():
            _copy_file(fs, root, name, entry, partial, _counted(on_rows, total))
        for segment in manifest.segments:
            fs.sync_dir(partial / SEGMENTS / segment.id)
        name = manifest_path(head.version)
        fs.write_file(partial / name, [manifest_bytes(root, head.version)])
        for folder in KEPT_FOLDERS:
            fs.sync_dir(partial / folder)
        fs.write_file(partial / CURRENT, [head.encode()])
        fs.sync_dir(partial)
        read_manifest(partial)
    fs.sync_dir(out.absolute().parent)
    return manifest


def _copy_file(
    fs: Fs, root: Path, name: str, entry: FileEntry, out: Path, tell: Callable[[int], None]
) -> None:
    target = out / name
    fs.make_dir(target.parent, exist_ok=True)
    with open_checked(root, {name: entry}, verify="full") as checked:
        fd = checked.files[name].fileno()
        copied = fs.write_file(target, _chunks(fd, tell))
    if (copied.size, copied.sha256) != (entry.size, entry.sha256):
        raise IndexCorruptError(name, "it changed while it was copied")


def _chunks(fd: int, tell: Callable[[int], None]) -> Iterator[bytes]:
    offset = 0
    while block := os.pread(fd, _CHUNK, offset):
        yield block
        offset += len(block)
        tell(len(block))


def _counted(on_rows: OnRows | None, total: int) -> Callable[[int], None]:
    return lambda count: None if on_rows is None else on_rows(count, total)


def _told(blocks: Iterator[RowBlock], total: int, on_rows: OnRows | None) -> Iterator[RowBlock]:
    for block in blocks:
        yield block
        if on_rows is not None:
            on_rows(len(block.rows), total)


def _sync_all(directory: Path) -> None:
    fs = Fs()
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            fs.seal_file(path)
    for path in (directory, *(one for one in directory.rglob("*") if one.is_dir())):
        fs.sync_dir(path)
