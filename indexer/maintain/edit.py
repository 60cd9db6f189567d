"""Take items out of an index, and go back to an earlier version of it.

    delete_items(root, ["a.jpg"])      gone from the next version on, and on the erasure list
    rollback(root, to=41)              a next version with the content of version 41

What was deleted never comes back by itself: not by a rollback, not by indexing its source again
(`indexer.ingest.build` asks the erasure list). Its bytes are in the files until
`indexer.maintain.purge` has been there. Everything here is one commit, or none.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from indexer.files.fs import Fs
from indexer.filters.language import Filter
from indexer.format.manifest import Manifest, read_manifest
from indexer.format.version import OpenVersion, open_version
from indexer.maintain.targets import Target, erased_rows, resolve_filter, resolve_ids, seen_before
from indexer.store.history import read_version
from indexer.store.recaption import Rows, recaption
from indexer.store.writer import IndexWriter
from models.errors import InputError


@dataclass(slots=True)
class EditReport:
    """What an edit did, or with `dry_run` would do.

    Attributes:
        operation: `delete` or `rollback`.
        version: the current version afterwards; the one before where nothing was to be done.
        removed_images, removed_texts: live items of the version edited that are gone.
        erased: ids that came onto the erasure list.
        missing: ids that named no live item.
        images, texts: what the index holds afterwards.
        dry_run: nothing was changed.
    """

    operation: str
    version: int = 0
    removed_images: int = 0
    removed_texts: int = 0
    erased: int = 0
    missing: list[str] = field(default_factory=list)
    images: int = 0
    texts: int = 0
    dry_run: bool = False
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def delete_items(
    root: Path,
    ids: Iterable[str] = (),
    *,
    filter: Filter | None = None,
    target: Target = "images",
    dry_run: bool = False,
    fs: Fs | None = None,
) -> EditReport:
    """Delete items by id, by filter, or both.

    A picture takes its captions with it; a text alone goes alone, and its picture is stored anew
    without it. Every id that names something, in this version or in an older one that is kept,
    comes onto the erasure list.

    Args:
        ids: of pictures, of texts, or of records that have texts only.
        filter: also delete the live items of `target` that it selects now.
        dry_run: only tell what would go; takes no lock.

    Raises:
        InvalidFilterError: a filter the index cannot answer.
        IndexNotFoundError, IndexLockedError, IndexCorruptError, NoSpaceError, StoreError: see
            `indexer.store.writer.IndexWriter`; the current version is untouched.
    """
    started = time.monotonic()
    report = EditReport("delete", dry_run=dry_run)
    wanted = list(dict.fromkeys(ids))
    if dry_run:
        version = open_version(root)
        try:
            _resolve(version, wanted, filter, target, report)
        finally:
            version.close()
        _finish(report, version.manifest, started)
        report.images -= report.removed_images
        report.texts -= report.removed_texts
        return report
    with _editing(root, fs) as (writer, version):
        rows, erase = _resolve(version, wanted, filter, target, report)
        erase = [one for one in erase if one not in writer.erasures]
        report.erased = len(erase)
        if rows or erase:
            pictures = writer.new_segment("image")
            replaced = recaption(version, rows, pictures, writer.manifest.declared)
            writer.commit([pictures], rows | replaced, erase=erase, operation="delete")
        _finish(report, writer.manifest, started)
    return report


def rollback(root: Path, to: int, *, fs: Fs | None = None) -> EditReport:
    """Make the content of a kept version the newest, less what was deleted since.

    Nothing is undone: the versions in between are kept as they would be after any other commit.

    Raises:
        InputError: `to` is the current version.
        NotFoundError: it is not kept.
        IndexNotFoundError, IndexLockedError, IndexCorruptError, NoSpaceError, StoreError: see
            `indexer.store.writer.IndexWriter`; also a file of `to` is damaged.
    """
    started = time.monotonic()
    report = EditReport("rollback")
    with IndexWriter(root, read_manifest(root).fingerprint, fs=fs) as writer:
        if to == writer.manifest.version:
            raise InputError(f"version {to} is the current one")
        target = read_version(root, to)
        version = open_version(root, target, verify="full")
        try:
            rows = erased_rows(version, writer.erasures)
            _count(version, rows, report)
            pictures = writer.new_segment("image", fields=target.declared)
            replaced = recaption(version, rows, pictures, target.declared)
            writer.restore(target, [pictures], rows | replaced)
        finally:
            version.close()
        _finish(report, writer.manifest, started)
    return report


@contextmanager
def _editing(root: Path, fs: Fs | None) -> Iterator[tuple[IndexWriter, OpenVersion]]:
    """The writer and the opened current version of an index that exists."""
    with IndexWriter(root, read_manifest(root).fingerprint, fs=fs) as writer:
        version = open_version(root, writer.manifest)
        try:
            yield writer, version
        finally:
            version.close()


def _resolve(
    version: OpenVersion,
    ids: list[str],
    filter: Filter | None,
    target: Target,
    report: EditReport,
) -> tuple[Rows, list[str]]:
    """Rows to bury and ids to erase; notes counts and missing ids."""
    if filter is not None:
        ids = list(dict.fromkeys([*ids, *resolve_filter(version, filter, target)]))
    found = resolve_ids(version, ids)
    report.missing = [one for one in ids if one not in found.live]
    unknown = [one for one in ids if one not in found.known]
    known = found.known | seen_before(version.root, unknown, version.manifest.version)
    _count(version, found.rows, report)
    return found.rows, [one for one in ids if one in known]


def _count(version: OpenVersion, rows: Rows, report: EditReport) -> None:
    for position, _ in rows:
        if version.segments[position].entry.modality == "image":
            report.removed_images += 1
        else:
            report.removed_texts += 1


def _finish(report: EditReport, manifest: Manifest, started: float) -> None:
    report.version = manifest.version
    report.images = manifest.live.images
    report.texts = manifest.live.texts
    report.seconds = time.monotonic() - started
