"""A picture whose caption was deleted is stored anew without it.

A caption deleted alone lives on in its picture: as the `text` shown with it, and among the words
it is found by. So the picture's row is replaced by one without, reusing its vector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from indexer.filters.declared import Field
from indexer.format.items import Item
from indexer.format.segment_writer import SegmentWriter
from indexer.format.version import OpenVersion
from indexer.store.copies import load_rows

Rows = set[tuple[int, int]]
"""(position of a segment, row)."""


def recaption(
    version: OpenVersion, dead: Rows, into: SegmentWriter, fields: Sequence[Field]
) -> Rows:
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
    replaced: Rows = set()
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


def _captions(version: OpenVersion, image_id: str, dead: Rows) -> list[Item]:
    """What is left of a picture's captions, in the order they were stored."""
    return [
        version.segments[position].items.items([row])[row]
        for position, row in sorted(_rows_of(version, image_id, "text", dead))
    ]


def _rows_of(version: OpenVersion, record: str, modality: str, dead: Rows) -> list[tuple[int, int]]:
    return [
        (position, row)
        for position, segment in enumerate(version.segments)
        if segment.entry.modality == modality
        for row in segment.items.rows_of(record)
        if not version.dead[position][row] and (position, row) not in dead
    ]
