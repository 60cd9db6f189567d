"""Copies rows of segments into new segments with the vectors they have: nothing is embedded again.

Whoever merges, purges, edits or replaces calls it; which rows, and why, is the caller's business.
It knows open segments and segment writers, and nothing of commits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np

from indexer.filters.declared import Field, values_of
from indexer.format.items import Item, NewRow
from indexer.format.segment import Segment, SegmentWriter
from indexer.format.version import OpenVersion

RowSet: TypeAlias = set[tuple[int, int]]
"""Rows of a version: (position of a segment, row)."""

_BLOCK: Final = 500
_SCAN: Final = 65_536
_UNKNOWN: Final = "00" * 32
"""No content has this hash."""


def load_rows(source: Segment, rows: Sequence[int], fields: Sequence[Field]) -> list[NewRow]:
    """Everything stored of some rows but their vectors and the words they are found by.

    Args:
        rows: at most a few hundred, in any order, which the answer keeps.
        fields: the index's filterable fields.

    Raises:
        IndexCorruptError: the segment's database is damaged.
    """
    items, pictures = source.items.items(rows), source.items.pictures(rows)
    origins = source.items.origins(rows)
    marks = ", ".join("?" * len(rows))
    select = f"SELECT row, record FROM items WHERE row IN ({marks})"  # noqa: S608 - marks only
    records = dict(source.items.query(select, [int(row) for row in rows]))
    return [
        NewRow(
            record=records[row],
            item=items[row],
            thumbnail=source.items.thumbnail(row),
            values=values_of(items[row].attributes, fields)[0],
            picture=pictures.get(row),
            origin=origins.get(row),
        )
        for row in rows
    ]


def copy_rows(
    source: Segment,
    rows: Sequence[int],
    target: SegmentWriter,
    fields: Sequence[Field],
    *,
    moved: Mapping[int, tuple[str, int | None]] | None = None,
    captions: Mapping[str, Sequence[str]] | None = None,
    unsure: Collection[int] = (),
) -> None:
    """Append rows of one segment to a new one, words included.

    Args:
        source: stays open until `target` is finished, unless it has fewer rows than
            `indexer.format.word_table.IN_TURN`.
        rows: without repeats.
        moved: new `uri` and origin by row, where they changed.
        captions: texts of pictures by id, for a source of format 1, which has no words to copy;
            without them a picture is found by its own text only (`captions_by_picture`).
        unsure: rows whose records may have lost something: they forget the content they were
            made of, so that the next build of their source makes them anew.

    Raises:
        IndexCorruptError: the source is damaged.
        NoSpaceError, StoreError: the target cannot be written.
    """
    moved = moved or {}
    has_words = source.items.has_words
    first = target.rows
    for start in range(0, len(rows), _BLOCK):
        part = [int(row) for row in rows[start : start + _BLOCK]]
        loaded = load_rows(source, part, fields)
        for place, row in enumerate(part):
            one = loaded[place]
            uri, origin = moved.get(row, (one.item.uri, one.origin))
            content = _UNKNOWN if row in unsure else one.item.content_hash
            item = dataclasses.replace(one.item, uri=uri, content_hash=content)
            texts = () if has_words else _texts(item, captions or {})
            loaded[place] = dataclasses.replace(one, item=item, texts=texts, origin=origin)
        target.add(source.vectors_ND[part], loaded)
    if has_words and len(rows):
        target_N = np.full(source.entry.rows, -1, dtype=np.int64)
        target_N[np.asarray(rows, dtype=np.int64)] = np.arange(first, target.rows)
        target.take_words(source.items, target_N)


def captions_by_picture(version: OpenVersion) -> dict[str, list[str]]:
    """The live captions of every picture, in the order they were stored."""
    found: dict[str, list[str]] = {}
    select = (
        "SELECT row, image_id, text FROM items "
        "WHERE row BETWEEN ? AND ? AND image_id IS NOT NULL ORDER BY row"
    )
    for segment, dead in zip(version.segments, version.dead, strict=True):
        if segment.entry.modality != "text":
            continue
        for start in range(0, segment.entry.rows, _SCAN):
            for row, image_id, text in segment.items.query(select, (start, start + _SCAN - 1)):
                if not dead[row] and text:
                    found.setdefault(image_id, []).append(text)
    return found


def _texts(item: Item, captions: Mapping[str, Sequence[str]]) -> tuple[str, ...] | None:
    """What words find a picture by: its captions and its own text, each once."""
    if item.modality != "image":
        return None
    found = list(captions.get(item.id, ()))
    if item.text and item.text not in found:
        found.append(item.text)
    return tuple(found) or None


def recaption(
    version: OpenVersion, dead: RowSet, into: SegmentWriter, fields: Sequence[Field]
) -> RowSet:
    """Write the pictures of texts that are about to die alone into a new image segment.

    Args:
        dead: rows about to be buried.

    Returns:
        The rows replaced, to be buried too.
    """
    lost: dict[str, list[Item]] = {}
    for position, segment in enumerate(version.segments):
        if segment.entry.modality != "text":
            continue
        rows = sorted(row for at, row in dead if at == position)
        for item in segment.items.items(rows).values():
            if item.image_id is not None:
                lost.setdefault(item.image_id, []).append(item)
    replaced: RowSet = set()
    for image_id, gone in lost.items():
        for position, row in _rows_of(version, image_id, "image", dead):
            segment = version.segments[position]
            [picture] = load_rows(segment, [row], fields)
            left = _captions(version, image_id, dead)
            item = picture.item
            if any((one.text, one.language) == (item.text, item.language) for one in gone):
                first = left[0] if left else None
                item = dataclasses.replace(
                    item,
                    text=first.text if first else None,
                    language=first.language if first else None,
                )
            texts = dict.fromkeys([*(one.text for one in left), item.text])  # each once
            words = tuple(text for text in texts if text)
            new = dataclasses.replace(picture, item=item, texts=words)
            into.add(segment.vectors_ND[[row]], [new])
            replaced.add((position, row))
    return replaced


def _captions(version: OpenVersion, image_id: str, dead: RowSet) -> list[Item]:
    """What is left of a picture's captions, in the order they were stored."""
    return [
        version.segments[position].items.items([row])[row]
        for position, row in sorted(_rows_of(version, image_id, "text", dead))
    ]


def _rows_of(
    version: OpenVersion, record: str, modality: str, dead: RowSet
) -> list[tuple[int, int]]:
    return [
        (position, row)
        for position, segment in enumerate(version.segments)
        if segment.entry.modality == modality
        for row in segment.items.rows_of(record)
        if not version.dead[position][row] and (position, row) not in dead
    ]
