"""Plans for `repair` which rows go with lost segments, so that what stays is whole.

A record is a picture with its texts; builds tell by its rows whether it is there already. Were half
of one kept, no build would bring the other half back. So a record of which any row is lost goes as
a whole, and its id is told. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.format.entries import ITEMS_FILE, SegmentEntry
from indexer.format.erasures import Erasures, erased_rows
from indexer.format.integrity import open_checked
from indexer.format.items import ItemsReader
from indexer.format.manifest import SEGMENTS, Manifest
from models.errors import IndexCorruptError


@dataclass(slots=True)
class Loss:
    """What goes with lost segments.

    Attributes:
        dead: rows of other segments to bury, as (position in the manifest, row).
        records: ids of the records to index again.
        unknown: live rows lost whose ids cannot be read.
    """

    dead: set[tuple[int, int]] = field(default_factory=set)
    records: set[str] = field(default_factory=set)
    unknown: int = 0


def plan_loss(
    root: Path,
    manifest: Manifest,
    dead: Sequence[npt.NDArray[np.bool_]],
    lost: Iterable[int],
) -> Loss:
    """What else must go if the segments at these positions do.

    Args:
        dead: per segment, bool [N]: rows that are dead already.
    """
    gone = set(lost)
    loss = Loss()
    readable = {
        position: items
        for position, entry in enumerate(manifest.segments)
        if (items := sound_items(root, entry)) is not None
    }
    try:
        for position in gone:
            live = ~dead[position]
            if position in readable:
                records = readable[position].records()
                loss.records |= {record for row, _, record, _ in records if live[row]}
            else:
                loss.unknown += int(live.sum())
        if loss.unknown:
            loss.records |= _torn(manifest, dead, readable, gone)
        for position, items in readable.items():
            if position not in gone and loss.records:
                loss.dead |= {
                    (position, row)
                    for row, _, record, _ in items.records()
                    if not dead[position][row] and record in loss.records
                }
    finally:
        for items in readable.values():
            items.close()
    return loss


def _torn(
    manifest: Manifest,
    dead: Sequence[npt.NDArray[np.bool_]],
    readable: dict[int, ItemsReader],
    gone: set[int],
) -> set[str]:
    """Records that show that something of theirs was in a segment that cannot be read."""
    images: set[str] = set()
    captioned: dict[str, str] = {}
    texts: list[tuple[str, str]] = []
    for position, items in readable.items():
        if position in gone:
            continue
        live = ~dead[position]
        if manifest.segments[position].modality == "image":
            for row, item_id, record, _ in items.records():
                if live[row]:
                    images.add(item_id)
                    captioned[item_id] = record
            rows = items.query("SELECT row, id FROM items WHERE text IS NULL")
            for row, item_id in rows:
                if live[row]:
                    captioned.pop(item_id, None)
        else:
            select = "SELECT row, image_id, record FROM items WHERE image_id IS NOT NULL"
            texts += [(image, record) for row, image, record in items.query(select) if live[row]]
    torn = {record for image, record in texts if image not in images}
    if any(manifest.segments[at].modality == "text" and at not in readable for at in gone):
        with_texts = {image for image, _ in texts}
        torn |= {record for image, record in captioned.items() if image not in with_texts}
    return torn


def sound_items(root: Path, entry: SegmentEntry) -> ItemsReader | None:
    """A segment's items, if their file is what the manifest says."""
    name = f"{SEGMENTS}/{entry.id}/{ITEMS_FILE}"
    try:
        open_checked(root, {name: entry.files[ITEMS_FILE]}, verify="full").close()
        return ItemsReader(root / name, entry.modality, name=name)
    except IndexCorruptError:
        return None


def erased_records(
    root: Path,
    manifest: Manifest,
    dead: Sequence[npt.NDArray[np.bool_]],
    erasures: Erasures,
) -> Loss:
    """What must go from a version so that nothing on an erasure list is in it.

    `records` are those of which only a text was erased: the rest has to be indexed again.
    """
    loss = Loss()
    if not len(erasures):
        return loss
    wanted: set[str] = set()
    opened = []
    try:
        for position, entry in enumerate(manifest.segments):
            items = sound_items(root, entry)
            assert items is not None, "a sound version was chosen"
            opened.append((position, items))
            wanted |= {
                record for row, record in erased_rows(items, erasures) if not dead[position][row]
            }
        loss.records = {record for record in wanted if record not in erasures}
        for position, items in opened:
            loss.dead |= {
                (position, row)
                for row, _, record, _ in items.records()
                if not dead[position][row] and record in wanted
            }
    finally:
        for _, items in opened:
            items.close()
    return loss
