"""Takes every byte of what was deleted out of the files of an index, and looks whether it is gone.

    1. segments with dead rows are written anew without them, the background is measured anew, and
       both are committed; from then on no older version is ever kept
    2. older versions and every file that only they need are removed, durably
    3. lines of the rejects file beside the index that name erased items are taken out, and what
       builds keep beside it is removed
    4. every file is searched for byte strings of the removed items, gathered before from the rows
       that are dead or erased; what a living item says too (a shared caption, the same picture
       under another id) is no leftover

The erasure list stays, as hashes. Copies, backups, a reader that still has an old version open and
the blocks of the disk itself are beyond its reach. A purge that was cut off is finished by the next
writer, all but the last two steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from indexer.files.fs import Fs
from indexer.files.needles import Needles
from indexer.format.erasures import Erasures, erased_rows
from indexer.format.manifest import Manifest, read_manifest
from indexer.format.segment import Segment, SegmentWriter
from indexer.format.version import OpenVersion, open_version
from indexer.format.word_table import terms
from indexer.ingest.side_files import scrub_beside
from indexer.store.copies import captions_by_picture, copy_rows
from indexer.store.history import history, read_version
from indexer.store.writer import IndexWriter
from models.errors import IndexCorruptError, NotFoundError

_BLOCK: Final = 500
_SLICE: Final = 64
"""Bytes from the end of a thumbnail, where its picture is; it starts like any other JPEG."""


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
    with IndexWriter(root, read_manifest(root).fingerprint, alone=True, fs=fs) as writer:
        with open_version(root, writer.manifest, verify="full") as version:
            remains = Remains()
            remains.collect(version)
            remains.collect_erased(version, writer.erasures)
            old = [about.version for about in history(root) if not about.current]
            if old or any(dead.any() for dead in version.dead) or writer.manifest.version == 0:
                _rewrite(writer, version, report)
        report.versions = len(old) + (writer.manifest.version != version.manifest.version)
        writer.drop_versions()
        report.version = writer.manifest.version
        report.erased = len(writer.erasures)
        report.rejects = scrub_beside(root, writer.erasures)
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


@dataclass(slots=True)
class Remains:
    """Byte strings of removed items; about 500 bytes of memory a row."""

    needles: set[bytes] = field(default_factory=set)

    def collect(self, version: OpenVersion) -> None:
        """Take those of every dead row of an open version.

        Raises:
            IndexCorruptError: a segment is damaged.
        """
        for segment, dead in zip(version.segments, version.dead, strict=True):
            self._take(segment, [int(row) for row in dead.nonzero()[0]])

    def collect_erased(self, version: OpenVersion, erasures: Erasures) -> None:
        """Take those of erased items that only older versions than an open one still hold.

        What cannot be read of them is passed over: it is about to be removed unread.
        """
        seen = {entry.id for entry in version.manifest.segments}
        for about in history(version.root) if len(erasures) else ():
            with suppress(IndexCorruptError, NotFoundError):
                older = read_version(version.root, about.version)
                if seen.issuperset(entry.id for entry in older.segments):
                    continue
                with open_version(version.root, older) as opened:
                    for segment in opened.segments:
                        if segment.entry.id not in seen:
                            seen.add(segment.entry.id)
                            rows = [row for row, _ in erased_rows(segment.items, erasures)]
                            self._take(segment, rows)

    def _take(self, segment: Segment, rows: list[int]) -> None:
        for start in range(0, len(rows), _BLOCK):
            for strings in _strings(segment, rows[start : start + _BLOCK]):
                *texts, thumbnail = strings
                self.needles.update([*texts, thumbnail[-_SLICE:]])


def search_files(root: Path, remains: Remains) -> tuple[int, dict[str, set[bytes]]]:
    """Look in every file below the index -> (strings sought, what each file holds of them).

    Raises:
        OSError: a file cannot be read.
    """
    finder = Needles(remains.needles)
    paths = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return finder.count, {
        str(path.relative_to(root)): finder.find_in_file(path)[0] for path in paths
    }


def unexplained(root: Path, manifest: Manifest, hits: dict[str, set[bytes]]) -> list[str]:
    """The files among `hits` that hold something which no living item says.

    Raises:
        IndexCorruptError, StoreError: the index cannot be read.
    """
    needles = set().union(*hits.values())
    finder = Needles(needles)
    needles -= finder.find(_own_words(manifest))
    with open_version(root, manifest) as version:
        for segment, dead in zip(version.segments, version.dead, strict=True):
            select = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"
            for (schema,) in segment.items.query(select):
                needles -= finder.find(schema.encode())
            rows = [int(row) for row in (~dead).nonzero()[0]]
            for start in range(0, len(rows), _BLOCK):
                part = rows[start : start + _BLOCK]
                for text in _said(segment, part):
                    needles -= finder.find(text)
                if part[-1] - part[0] + 1 == len(part):  # where one ends and the next begins
                    needles -= finder.find(segment.vectors_ND[part].tobytes())
    return sorted(name for name, found in hits.items() if found & needles)


_COLUMNS: Final = ("id", "record", "uri", "text", "language", "image_id", "label", "attributes")


def _said(segment: Segment, rows: list[int]) -> Iterator[bytes]:
    """All that living rows say, as it lies in the files: in the same order, end to end.

    SQLite puts the columns of a row one behind the other, and behind an indexed one its row's
    number: together they may read like something that was removed.
    """
    for strings in _strings(segment, rows):
        text = b"\0".join(strings)
        yield text
        # the words of an item are stored in lower case
        yield text.decode("utf-8", "replace").casefold().encode()
    marks = ", ".join("?" * len(rows))
    select = f"SELECT row, {', '.join(_COLUMNS)}, content_hash FROM items WHERE row IN ({marks})"  # noqa: S608 - marks only
    for row, *columns, content in segment.items.query(select, rows):
        texts = ["" if one is None else str(one) for one in columns]
        yield "".join(texts).encode() + content
        number = row.to_bytes(max(1, (row.bit_length() + 8) // 8), "big") if row > 1 else b""
        yield b"\0".join(one.encode() + number for one in texts[:2])
        found = terms("\n".join(texts))
        yield "\0".join(dict.fromkeys(found)).encode()


def _own_words(manifest: Manifest) -> bytes:
    """What a manifest says that no item said: its keys, its encoder, the declared fields."""
    told = manifest.model_dump(mode="json", exclude={"sources"})
    words = [*_keys(told), *map(str, manifest.encoder.values()), manifest.writer, manifest.metric]
    words += [f"{name}\0{field.type}\0{field.path}" for name, field in manifest.fields.items()]
    return "\0".join(words).encode()


def _keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield str(key)
            yield from _keys(one)
    elif isinstance(value, list):
        for one in value:
            yield from _keys(one)


def _strings(segment: Segment, rows: list[int]) -> Iterator[list[bytes]]:
    """Per row, everything in it that could identify the item; its thumbnail comes last."""
    items = segment.items.items(rows)
    for row in rows:
        item = items[row]
        texts = [item.id, item.uri, item.text or "", *_leaves(item.attributes)]
        yield [
            *(text.encode() for text in texts),
            segment.vectors_ND[row].tobytes(),
            segment.items.thumbnail(row) or b"",
        ]


def _leaves(value: object) -> Iterator[str]:
    """The strings in a record's attributes, escaped as they are stored."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _leaves(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)
