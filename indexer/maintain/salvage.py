"""Plans for `repair` which rows go with lost segments, so that what stays is whole.

A record is a picture with its texts; builds tell by its rows whether it is there already. Were half
of one kept, no build would bring the other half back. So a record of which any row is lost goes as
a whole, and its id is told. Where only a segment of texts that nobody can read could tell whether a
picture had captions in it, and not all such pictures can have had some there, they stay: they are
marked to be made anew when their source is indexed again. It changes nothing.
"""

from __future__ import annotations

from collections import Counter
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
        unsure: rows of pictures that stay, though they may have lost captions.
    """

    dead: set[tuple[int, int]] = field(default_factory=set)
    records: set[str] = field(default_factory=set)
    unknown: int = 0
    unsure: set[tuple[int, int]] = field(default_factory=set)


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
            torn, loss.unsure = _torn(manifest, dead, readable, gone)
            loss.records |= torn
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
) -> tuple[set[str], set[tuple[int, int]]]:
    """Records that show that something of theirs was in a segment that cannot be read.

    Returns:
        The records; the rows of pictures that may be of such a record.
    """
    captioned: dict[str, tuple[str, int, int]] = {}
    images: set[str] = set()
    texts: list[tuple[str, str]] = []
    for position, items in readable.items():
        if position in gone:
            continue
        live = ~dead[position]
        if manifest.segments[position].modality == "image":
            for row, item_id, record, _ in items.records():
                if live[row]:
                    images.add(item_id)
                    captioned[item_id] = record, position, row
            rows = items.query("SELECT row, id FROM items WHERE text IS NULL")
            for row, item_id in rows:
                if live[row]:
                    captioned.pop(item_id, None)
        else:
            select = "SELECT row, image_id, record FROM items WHERE image_id IS NOT NULL"
            texts += [(image, record) for row, image, record in items.query(select) if live[row]]
    torn = {record for image, record in texts if image not in images}
    unread = Counter[str]()
    for at in gone - readable.keys():
        if manifest.segments[at].modality == "text":
            unread[_written_with(manifest.segments[at])] += int((~dead[at]).sum())
    if not unread:
        return torn, set()
    # captions are written with their picture: what was written together is looked at together
    together: dict[str, list[tuple[str, int, int]]] = {}
    for image in captioned.keys() - {image for image, _ in texts}:
        one = captioned[image]
        together.setdefault(_written_with(manifest.segments[one[1]]), []).append(one)
    unsure: set[tuple[int, int]] = set()
    for written, pictures in together.items():
        if unread[written] >= len(pictures):
            torn |= {record for record, _, _ in pictures}
        else:  # fewer texts than pictures: a text of its own may be all a picture has
            unsure |= {(position, row) for _, position, row in pictures}
    return torn, unsure


def _written_with(entry: SegmentEntry) -> str:
    """The number of the version that a segment was written for, which its name begins with."""
    return entry.id.partition("-")[0]


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
