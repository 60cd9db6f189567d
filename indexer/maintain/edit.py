"""Puts and deletes single items, and goes back to an earlier version: an index's edits.

    delete_items(root, ["a.jpg"])      gone from the next version on, and on the erasure list
    rollback(root, to=41)              a next version with the content of version 41
    Editor(root, encoder).put([...])   decoded, embedded, committed; replaces what has its key

Each is one commit or none, and holds the writer's lock only while it runs: between calls anyone may
write. `put` is a build's own path from record to row (`indexer.ingest.build`).

An id is a record's (a picture with its captions, or a text without a picture) or one text's. A
filter is resolved to ids when it is given: what is deleted is a list of rows, never a predicate
that could catch other items later. What was deleted never comes back by itself, not by a rollback,
not by indexing its source again. Its bytes are in the files until `indexer.maintain.purge` has been
there.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

from indexer.files.fs import Fs
from indexer.filters.language import Filter, check_filter
from indexer.filters.sql import condition
from indexer.format.entries import ITEMS_FILE
from indexer.format.erasures import Erased, Erasures, erased_rows, hash_text, is_place
from indexer.format.field_table import columns_of, rows_where
from indexer.format.items import Item, ItemsReader
from indexer.format.manifest import SEGMENTS, Manifest, read_manifest
from indexer.format.version import OpenVersion, open_version
from indexer.ingest.arrivals import check_record, text_ids
from indexer.ingest.build import index_records
from indexer.ingest.options import BuildOptions, BuildReport, Pacing
from indexer.ingest.progress import Counter, Outcomes
from indexer.ingest.side_files import RejectsList
from indexer.search.options import Target
from indexer.store.copies import RowSet, recaption
from indexer.store.history import history, read_version
from indexer.store.sweep import KEEPING, Keeping
from indexer.store.writer import IndexWriter
from models.encoder import Encoder
from models.errors import IndexCorruptError, InputError, NotFoundError
from models.sources.records import PUT, Plan, Record, Reject, Row, Source

_BATCH: Final = 500
_DEFAULTS: Final = BuildOptions()


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
        collected: older versions that `keeping` removed.
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
    collected: int = 0
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
    keeping: Keeping = KEEPING,
    fs: Fs | None = None,
) -> EditReport:
    """Delete items by id, by filter, or both.

    A picture takes its captions with it; a text alone goes alone, with others of its record that
    say the same, and its picture is stored anew without it. Every id that names something, in this
    version or in an older one that is kept, comes onto the erasure list; so does what a caption
    says, whose id is only its place.

    Args:
        ids: of pictures, of texts, or of records that have texts only.
        filter: also delete the live items of `target` that it selects now.
        dry_run: only tell what would go; takes no lock.
        keeping: which versions are left afterwards.

    Raises:
        InvalidFilterError: a filter the index cannot answer.
        IndexNotFoundError, IndexLockedError, IndexCorruptError, NoSpaceError, StoreError: see
            `indexer.store.writer.IndexWriter`; the current version is untouched.
    """
    started = time.monotonic()
    report = EditReport("delete", dry_run=dry_run)
    wanted = list(dict.fromkeys(ids))
    if dry_run:
        with open_version(root) as version:
            _resolve(version, wanted, filter, target, report)
        _finish(report, version.manifest, started)
        report.images -= report.removed_images
        report.texts -= report.removed_texts
        return report
    with (
        IndexWriter(root, read_manifest(root).fingerprint, keeping=keeping, fs=fs) as writer,
        open_version(root, writer.manifest) as version,
    ):
        rows, erase = _resolve(version, wanted, filter, target, report)
        erase = [one for one in erase if one not in writer.erasures]
        report.erased = len(erase)
        if rows or erase:
            pictures = writer.new_segment("image")
            replaced = recaption(version, rows, pictures, writer.manifest.declared)
            writer.commit([pictures], rows | replaced, erase=erase, operation="delete")
        _finish(report, writer.manifest, started)
    report.collected = writer.collected
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
        with open_version(root, target, verify="full") as version:
            rows = {
                (position, row)
                for position, segment in enumerate(version.segments)
                for row, _ in erased_rows(segment.items, writer.erasures)
                if not version.dead[position][row]
            }
            _count(version, rows, report)
            pictures = writer.new_segment("image", fields=target.declared)
            replaced = recaption(version, rows, pictures, target.declared)
            writer.restore(target, [pictures], rows | replaced)
        _finish(report, writer.manifest, started)
    return report


def _resolve(
    version: OpenVersion,
    ids: list[str],
    filter: Filter | None,
    target: Target,
    report: EditReport,
) -> tuple[RowSet, list[Erased]]:
    """RowSet to bury and what to erase; notes counts and missing ids."""
    if filter is not None:
        ids = list(dict.fromkeys([*ids, *resolve_filter(version, filter, target)]))
    found = resolve_ids(version, ids)
    report.missing = [one for one in ids if one not in found.live]
    unknown = [one for one in ids if one not in found.said]
    before = seen_before(version.root, unknown, version.manifest.version)
    erase: list[Erased] = [
        name for one in ids for name in (found.said.get(one) or before.get(one) or ())
    ]
    said = Erasures().changed(erase=(one for one in erase if isinstance(one, bytes)))
    found.rows |= _saying(version, found, said)
    _count(version, found.rows, report)
    return found.rows, list(dict.fromkeys(erase))


def _saying(version: OpenVersion, found: Resolved, said: Erasures) -> RowSet:
    """Live texts of the same records that say what is deleted, at another place."""
    rows: RowSet = set()
    for position, segment in enumerate(version.segments if len(said) else ()):
        if segment.entry.modality == "text":
            there = [row for one in sorted(found.records) for row in segment.items.rows_of(one)]
            live = [row for row in there if not version.dead[position][row]]
            for row, record, item in _texts(segment.items, live):
                if said.text(record, item.language, item.text):
                    rows.add((position, row))
    return rows


def _count(version: OpenVersion, rows: RowSet, report: EditReport) -> None:
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


@dataclass(slots=True)
class Resolved:
    """What a list of ids means.

    Attributes:
        rows: live rows, captions of named pictures included.
        live: the ids with a live row.
        said: what each id with any row, live or dead, is to the erasure list: see `_names`.
        records: whose texts were named alone.
    """

    rows: RowSet = field(default_factory=set)
    live: set[str] = field(default_factory=set)
    said: dict[str, dict[Erased, None]] = field(default_factory=dict)
    records: set[str] = field(default_factory=set)


def resolve_ids(version: OpenVersion, ids: Sequence[str]) -> Resolved:
    """RowSet of the records and texts with these ids.

    Raises:
        IndexCorruptError: a segment's database is damaged.
    """
    found = Resolved()
    dead: dict[str, dict[Erased, None]] = {}
    for position, segment in enumerate(version.segments):
        matches = list(_matches(segment.items, ids))
        names = _names(segment.items, matches)
        for row, named in matches:
            live = not version.dead[position][row]
            (found.said if live else dead).setdefault(named, {}).update(names[row, named])
            if live:
                found.live.add(named)
                found.rows.add((position, row))
        found.records |= {record for record, _ in _alone(segment.items, matches)}
    found.said = dead | found.said  # of what was at a place before, only where nothing is there now
    return found


def _names(
    items: ItemsReader, matches: Sequence[tuple[int, str]]
) -> dict[tuple[int, str], dict[Erased, None]]:
    """What a deleted row is to the erasure list, by row and the id that means it.

    That is the id itself, but for a text whose id is only a place: there it is what the text says.
    """
    names: dict[tuple[int, str], dict[Erased, None]] = {one: {one[1]: None} for one in matches}
    for record, (row, item) in _alone(items, matches):
        if is_place(record, item.id) and item.text is not None:
            names[row, item.id] = {hash_text(record, item.language, item.text): None}
    return names


def _alone(
    items: ItemsReader, matches: Sequence[tuple[int, str]]
) -> Iterator[tuple[str, tuple[int, Item]]]:
    """(record, (row, text)) of the texts that are meant by their own ids."""
    named = set(matches)
    for row, record, item in _texts(items, sorted({row for row, _ in matches})):
        if item.modality == "text" and item.id != record and (row, item.id) in named:
            yield record, (row, item)


def _texts(items: ItemsReader, rows: Sequence[int]) -> Iterator[tuple[int, str, Item]]:
    """(row, record, item) of some rows."""
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        marks = ", ".join("?" * len(part))
        select = f"SELECT row, record FROM items WHERE row IN ({marks})"  # noqa: S608
        found = items.items(part)
        for row, record in items.query(select, part):
            yield row, record, found[row]


def resolve_filter(version: OpenVersion, wanted: Filter, target: Target) -> list[str]:
    """Ids of the live items of one modality that a filter selects.

    Raises:
        InvalidFilterError: as `indexer.filters.language.check_filter`.
        IndexCorruptError: a segment's database is damaged.
    """
    check_filter(wanted, version.manifest.declared)
    columns = columns_of(version.manifest.declared)
    ids: list[str] = []
    for position, segment in enumerate(version.segments):
        if f"{segment.entry.modality}s" == target:
            rows = rows_where(segment.items.query, condition(wanted, columns))
            live = rows[~version.dead[position][rows]].tolist()
            ids += segment.items.ids(live).values()
    return ids


def seen_before(root: Path, ids: Iterable[str], current: int) -> dict[str, dict[Erased, None]]:
    """What ids are to the erasure list (`_names`) that only versions before `current` have rows of.

    A version or file that cannot be read counts as one that knows every id: better an id too many
    on the erasure list than one too few.
    """
    wanted = list(ids)
    seen: dict[str, dict[Erased, None]] = {}
    looked: set[str] = set()
    for about in history(root) if wanted else ():
        try:
            manifest = read_version(root, about.version)
            for entry in manifest.segments:
                if about.version == current:
                    looked.add(entry.id)
                if entry.id in looked:
                    continue
                looked.add(entry.id)
                path = root / SEGMENTS / entry.id / ITEMS_FILE
                items = ItemsReader(path, entry.modality)
                try:
                    matches = list(_matches(items, wanted))
                    for (_, named), names in _names(items, matches).items():
                        seen.setdefault(named, {}).update(names)
                finally:
                    items.close()
        except (IndexCorruptError, NotFoundError):
            return {one: {one: None} for one in wanted}
    return seen


def _matches(items: ItemsReader, ids: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(row, the id among `ids` that means it); a row meant by its record and itself comes twice."""
    for start in range(0, len(ids), _BATCH):
        part = [one for one in ids[start : start + _BATCH] if _storable(one)]
        marks = ", ".join("?" * len(part))
        for column in ("record", "id"):
            yield from items.query(
                f"SELECT row, {column} FROM items WHERE {column} IN ({marks})",  # noqa: S608
                part,
            )


def _storable(item_id: str) -> bool:
    try:
        item_id.encode()
    except UnicodeEncodeError:  # a lone surrogate: no stored id can hold one
        return False
    return True


@dataclass(slots=True)
class PutReport(BuildReport):
    """What a put did; `refused` says why for every record or text that was not stored."""

    refused: list[Reject] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _told(report: BuildReport, refused: list[Reject]) -> PutReport:
    values = {one.name: getattr(report, one.name) for one in dataclasses.fields(report)}
    return PutReport(**values, refused=refused)


class Editor:
    """See the module. Safe to use from several threads: the lock on disk lets one write."""

    def __init__(self, root: Path, encoder: Encoder, *, options: BuildOptions = _DEFAULTS) -> None:
        """Nothing is opened yet.

        Args:
            root: an index that exists.
            options: what to store and how; those about commits, mirrors and files play no part.
        """
        self.root = root
        self._encoder = encoder
        self._options = options

    def put(self, records: Sequence[Record], *, allow_erased: bool = False) -> PutReport:
        """Store records, each replacing what the index has under its key, in one commit.

        A record that is in the index as it is costs nothing and makes no version; one that was
        deleted is left out, and counted as `erased`, unless `allow_erased`.

        Raises:
            IndexNotFoundError: no index there.
            IndexLockedError: somebody else is writing.
            EncoderMismatchError, IndexCorruptError, NoSpaceError, StoreError: see
                `indexer.store.writer.IndexWriter`; nothing was stored.
        """
        [report] = self.put_all([records], allow_erased=allow_erased)
        return report

    def put_all(
        self, puts: Sequence[Sequence[Record]], *, allow_erased: bool = False
    ) -> list[PutReport]:
        """What several callers put, in one commit -> what became of each one's records.

        No key occurs twice; which version has them, and what it holds, is the same for all.

        Raises:
            As `put`.
        """
        records = [one for some in puts for one in some]
        options = dataclasses.replace(
            self._options,
            segment_rows=sys.maxsize // 1024,  # one commit, however many there are
            pacing=Pacing(seconds=math.inf),
            fields=None,
            max_errors=None,
            mirror=False,
            replace=True,
            allow_erased=allow_erased,
        )
        read_manifest(self.root)  # an index is never made by the way
        rejects, outcomes = RejectsList(), Outcomes()
        with IndexWriter(self.root, self._encoder.fingerprint, keeping=options.keeping) as writer:
            report = index_records(
                [_Given(records)],
                writer,
                self._encoder,
                rejects,
                options=options,
                only=[one.key for one in records if check_record(one) is None],
                operation="add",
                outcomes=outcomes,
            )
        if len(puts) == 1:
            return [_told(report, rejects.rejects)]
        found = []
        for some in puts:
            names = {name for one in some for name in (one.key, *text_ids(one.key, one.texts))}
            own = [outcomes.get(one.key, {}) for one in some]
            refused = [one for one in rejects.rejects if one.key in names]
            counts: dict[str, Any] = {
                name: sum(one.get(name, 0) for one in own) for name in get_args(Counter)
            }
            counts |= {"rejected": len(refused), "conflicts": 0, "performance": {}}
            found.append(_told(dataclasses.replace(report, **counts), refused))
        return found

    def delete(self, ids: Iterable[str]) -> EditReport:
        """Delete items; see `indexer.maintain.edit.delete_items`."""
        return delete_items(self.root, ids, keeping=self._options.keeping)


class _Given(Source):
    """Records as a source."""

    name = "api"
    kind = "api"

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def count(self) -> int:
        return len(self._records)

    def plan(self) -> Plan:
        pictures = [record.image for record in self._records if record.image is not None]
        size = sum(map(len, pictures))
        return Plan(len(self._records), len(pictures), size, size, exact=True)

    def __iter__(self) -> Iterator[Row]:
        for record in self._records:
            yield dataclasses.replace(record, origin=PUT)
