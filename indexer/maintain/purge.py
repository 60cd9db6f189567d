"""Take every byte of what is no longer there out of the files of an index, and look whether it is.

    1. segments with dead rows are written anew without them, the background is measured anew, and
       both are committed; from then on no older version is ever kept
    2. older versions and every file that only they need are removed, durably
    3. lines of the rejects file beside the index that name erased items are taken out, and what
       builds keep beside it is removed
    4. every file is searched for what was removed

The erasure list stays, as hashes. Copies, backups, a reader that still has an old version open and
the blocks of the disk itself are beyond its reach. A purge that was cut off is finished by the next
writer, all but the last two steps.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from indexer.files.fs import Fs
from indexer.format.manifest import read_manifest
from indexer.format.segment_writer import SegmentWriter
from indexer.format.version import OpenVersion, open_version
from indexer.ingest.rejects import scrub_rejects
from indexer.ingest.resume import journal_path
from indexer.ingest.stamps import stamps_path
from indexer.store.copies import captions_by_picture, copy_rows
from indexer.store.history import history
from indexer.store.leftovers import Remains, search_files, unexplained
from indexer.store.writer import IndexWriter


@dataclass(slots=True)
class PurgeReport:
    """The receipt of a purge.

    Attributes:
        version: the one version that is left.
        rows: dead rows that were in the segments of the version before.
        segments: segments written anew, or removed because nothing in them lived.
        versions: how many older versions were removed.
        structures: how many of those segments lost their search structure; `optimize` makes new
            ones, until then they are searched exactly.
        bytes_before, bytes_after: of all files below the index.
        erased: entries of the erasure list.
        rejects: lines taken out of the rejects file beside the index.
        sought: byte strings of removed items (ids, locations, texts, vectors, thumbnails) that were
            looked for in `files` files of `bytes_after` bytes.
        found: paths, relative to the index, in which one of them still occurs though no living item
            says the same; empty unless something other than the index put it there.
    """

    version: int = 0
    rows: int = 0
    segments: int = 0
    versions: int = 0
    structures: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    erased: int = 0
    rejects: int = 0
    sought: int = 0
    files: int = 0
    found: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {"clean": not self.found, **asdict(self)}


def purge(root: Path, *, fs: Fs | None = None) -> PurgeReport:
    """See the module. An index with nothing to purge keeps its version.

    Raises:
        IndexNotFoundError, IndexLockedError, IndexCorruptError, NoSpaceError, StoreError: see
            `indexer.store.writer.IndexWriter`. Until the commit the index is as it was; after it,
            run again: what is left is then removed.
    """
    started = time.monotonic()
    report = PurgeReport(bytes_before=_size(root))
    with IndexWriter(root, read_manifest(root).fingerprint, fs=fs) as writer:
        version = open_version(root, writer.manifest, verify="full")
        try:
            remains = Remains()
            remains.collect(version)
            remains.collect_erased(version, writer.erasures)
            old = [about.version for about in history(root) if not about.current]
            if old or any(dead.any() for dead in version.dead) or writer.manifest.version == 0:
                _rewrite(writer, version, report)
        finally:
            version.close()
        report.versions = len(old) + (writer.manifest.version != version.manifest.version)
        writer.drop_versions()
        report.version = writer.manifest.version
        report.erased = len(writer.erasures)
        rejects = root.absolute().with_name(root.absolute().name + ".rejects.jsonl")
        report.rejects = scrub_rejects(rejects, writer.erasures)
        for beside in (stamps_path(root), journal_path(root)):  # builds do without
            with suppress(OSError):
                beside.unlink(missing_ok=True)
        needles, hits = search_files(root, remains)
        report.sought, report.files = needles, len(hits)
        if any(hits.values()):
            report.found = unexplained(root, writer.manifest, hits)
    report.bytes_after = _size(root)
    report.seconds = time.monotonic() - started
    return report


def _rewrite(writer: IndexWriter, version: OpenVersion, report: PurgeReport) -> None:
    """Commit the current version without its dead rows."""
    fields = version.manifest.declared
    has_words = all(segment.items.has_words for segment in version.segments)
    captions = None if has_words else captions_by_picture(version)
    fresh: list[SegmentWriter] = []
    drop: list[int] = []
    for position, (segment, dead) in enumerate(zip(version.segments, version.dead, strict=True)):
        if not dead.any():
            continue
        drop.append(position)
        report.rows += int(dead.sum())
        report.structures += segment.entry.ann is not None
        target = writer.new_segment(segment.entry.modality)
        live = np.flatnonzero(~dead).tolist()
        copy_rows(segment, live, target, fields, captions=captions)
        fresh.append(target)
    report.segments = len(drop)
    writer.commit(fresh, drop=drop, operation="purge", remeasure=True)


def _size(root: Path) -> int:
    return sum(path.lstat().st_size for path in root.rglob("*") if path.is_file())
