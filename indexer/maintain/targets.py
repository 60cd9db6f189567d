"""Which rows an id or a filter means, for those who delete.

An id is a record's (a picture with its captions, or a text without a picture) or one text's. A
filter is resolved to ids here and now: what is deleted is a list of rows, never a predicate that
could catch other items later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from indexer.filters.language import Filter, check_filter
from indexer.filters.sql import condition
from indexer.format.erasures import Erasures
from indexer.format.field_table import columns_of, rows_where
from indexer.format.items import ItemsReader
from indexer.format.manifest import ITEMS_FILE, SEGMENTS
from indexer.format.version import OpenVersion
from indexer.store.history import history, read_version
from indexer.store.recaption import Rows
from models.errors import IndexCorruptError, NotFoundError

Target = Literal["images", "texts"]

_BATCH: Final = 500


@dataclass(slots=True)
class Resolved:
    """What a list of ids means.

    Attributes:
        rows: live rows, captions of named pictures included.
        live: the ids with a live row.
        known: the ids with any row, live or dead.
    """

    rows: Rows = field(default_factory=set)
    live: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)


def resolve_ids(version: OpenVersion, ids: Sequence[str]) -> Resolved:
    """Rows of the records and texts with these ids.

    Raises:
        IndexCorruptError: a segment's database is damaged.
    """
    found = Resolved()
    for position, segment in enumerate(version.segments):
        for row, named in _matches(segment.items, ids):
            found.known.add(named)
            if not version.dead[position][row]:
                found.live.add(named)
                found.rows.add((position, row))
    return found


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


def seen_before(root: Path, ids: Iterable[str], current: int) -> set[str]:
    """Which ids have a row in a kept version before `current`, in segments it no longer names.

    A version or file that cannot be read counts as one that knows every id: better an id too many
    on the erasure list than one too few.
    """
    wanted = list(ids)
    seen: set[str] = set()
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
                    seen |= {named for _, named in _matches(items, wanted)}
                finally:
                    items.close()
        except (IndexCorruptError, NotFoundError):
            return set(wanted)
    return seen


def erased_rows(version: OpenVersion, erasures: Erasures) -> Rows:
    """Live rows whose own id, or whose record's, is on an erasure list."""
    if not len(erasures):
        return set()
    return {
        (position, row)
        for position, segment in enumerate(version.segments)
        for row, item_id, record, _ in segment.items.records()
        if not version.dead[position][row] and (item_id in erasures or record in erasures)
    }


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
