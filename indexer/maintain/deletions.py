"""Knows what an index's lists of deletions say, tombstones and erasure lists, also where damaged.

    lists = Deletions(fs, root, versions)
    lists.heal()                  damaged files made whole, byte for byte, where a sum proves them
    lists.damage                  what is left: no version is given up for it, see `known_*`

A version does not stand without its deletions, and another version's are not its own: going back
for the sake of a list would bring back what was deleted since. So a list is put together again from
what can be read of it, from those of other versions, and from the rows: rows on the erasure list
are dead, so are those whose id came again later; a record with no live row was deleted, mostly.
`indexer.maintain.healing` finds the file among all that this could mean, and the manifest's sum
tells it from the others. It publishes nothing; a healed file is what its manifests always named.
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from indexer.files.fs import Fs, open_regular
from indexer.format.entries import ErasedEntry, SegmentEntry, TombstoneEntry
from indexer.format.erasures import Erasures, hash_id, hash_text, hashes_in, read_erasures
from indexer.format.manifest import ERASED, SCRATCH, TOMBSTONES, Manifest
from indexer.format.version import Pairs, dead_rows, read_tombstones
from indexer.maintain.healing import HASHES, PAIRS, Clues, Form, heal, readable
from indexer.maintain.salvage import sound_items
from models.errors import IndexCorruptError

_PAIR: Final = struct.Struct(">qq")
_TOLD: Final = 100
"""So many ids are named where there may be thousands."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A stored row, the id of its picture if it is a caption, and what could keep it out."""

    position: int
    row: int
    item_id: str
    record: str
    picture: str | None
    names: tuple[bytes, ...]

    @property
    def slot(self) -> bytes:
        return _PAIR.pack(self.position, self.row)


class Deletions:
    """See the module. The writer's lock is held.

    Attributes:
        damage: what is wrong with lists, by their paths relative to the index.
    """

    def __init__(self, fs: Fs, root: Path, versions: Mapping[int, Manifest]) -> None:
        """Check the lists of these versions.

        Raises:
            StoreError: the operating system refused to read.
        """
        self.damage: dict[str, IndexCorruptError] = {}
        self._fs = fs
        self._root = root
        self._versions = versions
        self._check()

    def heal(self) -> list[str]:
        """Make whole what can be proved -> a line for each list.

        Raises:
            NoSpaceError, StoreError: a list could not be written; it is as it was.
        """
        done: list[str] = []
        healed = True
        while self.damage and healed:  # one list may be the clue to another
            healed = False
            for number in sorted(self._versions, reverse=True):
                for name in self.names(self._versions[number]):
                    if name in self.damage and self._mend(name, self._versions[number]):
                        done.append(f"{name} is whole again, as its sum proves")
                        healed = True
        return done

    def names(self, manifest: Manifest) -> list[str]:
        """The lists of a version, erasures first: they tell of the tombstones."""
        return [name for name, _, _ in _lists(manifest)]

    def damaged(self, manifest: Manifest) -> list[str]:
        """The lists that a version cannot stand without, and that are not whole."""
        return [name for name in self.names(manifest) if name in self.damage]

    # -- what is known of a list that cannot be proved

    def known_tombstones(self, manifest: Manifest) -> Pairs:
        """The tombstones of a version, or all that is known of them."""
        return _as_pairs(self._dead_slots(manifest))

    def known_erasures(self, manifest: Manifest) -> Erasures:
        """The erasure list of a version, or all that is known of it: rather too much.

        Besides what can be read, what other lists and dead rows name and no live row says.
        """
        entry = manifest.erased
        if entry is None or f"{ERASED}/{entry.file}" not in self.damage:
            return self._erasures(manifest)
        read = self._readable(f"{ERASED}/{entry.file}", HASHES, entry.count)
        dead = dead_rows([one.rows for one in manifest.segments], self.known_tombstones(manifest))
        gone, live = self._named(manifest, dead)
        others = {one for hashes in self._other_erasures(manifest) for one in hashes}
        return Erasures((others | gone) - live).joined(read)

    def told(self, manifest: Manifest) -> list[str]:
        """What going on with damaged lists means, a line for each."""
        lines: list[str] = []
        for name, form, entry in _lists(manifest):
            if name not in self.damage:
                continue
            if form is HASHES:
                lines.append(
                    f"{name}: of {entry.count:,} deletions "
                    f"{len(self._readable(name, form, entry.count)):,} can be read, some perhaps "
                    f"wrongly; what can be known keeps {len(self.known_erasures(manifest)):,} out. "
                    "Anything else that was deleted comes back when it is indexed again"
                )
            else:
                lines.append(f"{name}: {self._told_tombstones(manifest, entry.count)}")
        return lines

    def _told_tombstones(self, manifest: Manifest, count: int) -> str:
        slots = self._dead_slots(manifest)
        missing = count - len(slots)
        if missing <= 0:
            return (
                f"of {count:,} dead rows all are known, some perhaps wrongly: index your sources "
                "again, so that nothing that lives is missing"
            )
        records = sorted({row.record for row in self._rows(manifest) if row.slot not in slots})
        ids = ", ".join(records[:_TOLD])
        more = f" and {len(records) - _TOLD:,} more" if len(records) > _TOLD else ""
        return (
            f"of {count:,} dead rows {len(slots):,} are known; up to {missing:,} rows that were "
            f"deleted or replaced may be back, among these records: {ids}{more}"
        )

    # -- damage

    def _check(self) -> None:
        for manifest in self._versions.values():
            for name, form, _ in _lists(manifest):
                if name in self.damage:
                    continue
                try:
                    if form is HASHES:
                        read_erasures(self._root, manifest)
                    else:
                        read_tombstones(self._root, manifest)
                except IndexCorruptError as error:
                    self.damage[name] = error

    def _mend(self, name: str, manifest: Manifest) -> bool:
        [(form, entry)] = [(form, one) for told, form, one in _lists(manifest) if told == name]
        clues = self._erased_clues(manifest) if form is HASHES else self._dead_clues(manifest)
        whole = heal(form, entry, self._data(name), clues)
        if whole is None:
            return False
        target = self._root / name
        scratch = self._root / SCRATCH / f"healed.{uuid.uuid4().hex[:8]}"
        self._fs.write_file(scratch, [whole])
        if target.is_dir() and not target.is_symlink():
            self._fs.remove(target)
        self._fs.rename(scratch, target)
        self._fs.sync_dir(target.parent)
        del self.damage[name]
        return True

    def _data(self, name: str) -> bytes:
        """What is left of a file."""
        try:
            with os.fdopen(open_regular(self._root / name), "rb") as file:
                return file.read()
        except OSError:
            return b""

    def _readable(
        self, name: str, form: Form, count: int, valid: Callable[[bytes], bool] = lambda _: True
    ) -> frozenset[bytes]:
        return frozenset(readable(form, count, self._data(name), valid))

    # -- erasures

    def _erasures(self, manifest: Manifest) -> Erasures:
        """The list of a version, or what can be read of it."""
        entry = manifest.erased
        name = "" if entry is None else f"{ERASED}/{entry.file}"
        if entry is not None and name in self.damage:
            return Erasures(self._readable(name, HASHES, entry.count))
        return read_erasures(self._root, manifest)

    def _other_erasures(self, manifest: Manifest) -> list[frozenset[bytes]]:
        """Other lists in the index, the nearest first."""
        own = manifest.erased.file if manifest.erased else ""
        numbers = {path: _number(path) for path in (self._root / ERASED).glob("*.npy")}
        paths = [path for path in numbers if path.name != own]
        paths.sort(key=lambda path: abs(numbers[path] - _number(Path(own))))
        return [frozenset(hashes_in(path)) for path in paths]

    def _erased_clues(self, manifest: Manifest) -> Clues:
        """Other lists, and what dead rows say that live ones do not."""
        dead = None
        if not any(one.startswith(f"{TOMBSTONES}/") for one in self.damaged(manifest)):
            pairs = read_tombstones(self._root, manifest)
            dead = dead_rows([entry.rows for entry in manifest.segments], pairs)
        gone, live = self._named(manifest, dead)
        records = self._gone_records(manifest, dead)
        others = self._other_erasures(manifest)
        nothing: frozenset[bytes] = frozenset()
        guesses = [
            (base - away, may)
            for may in (records, gone)
            for base in (*others, nothing)
            for away in (nothing, live)
        ]
        return Clues(nothing.union(gone, *others), guesses)

    def _named(
        self, manifest: Manifest, dead: Sequence[npt.NDArray[np.bool_]] | None
    ) -> tuple[frozenset[bytes], frozenset[bytes]]:
        """Hashes by which rows could be kept out that no live row has; those of live rows.

        Args:
            dead: per segment, bool [N]; None where that is not known: any row may be.
        """
        gone: set[bytes] = set()
        live: set[bytes] = set()
        for row in self._rows(manifest):
            alive = dead is not None and not dead[row.position][row.row]
            (live if alive else gone).update(row.names)
        for older in self._other_segments(manifest):
            gone.update(*(row.names for row in self._rows_of(-1, older)))
        return frozenset(gone - live), frozenset(live)

    def _gone_records(
        self, manifest: Manifest, dead: Sequence[npt.NDArray[np.bool_]] | None
    ) -> frozenset[bytes]:
        """Hashes of the records that have dead rows only."""
        gone: set[str] = set()
        live: set[str] = set()
        for row in self._rows(manifest):
            alive = dead is not None and not dead[row.position][row.row]
            (live if alive else gone).add(row.record)
        return frozenset(hash_id(one) for one in gone - live)

    # -- tombstones

    def _dead_slots(self, manifest: Manifest) -> frozenset[bytes]:
        entry = manifest.tombstones
        if entry is None:
            return frozenset()
        name = f"{TOMBSTONES}/{entry.file}"
        if name not in self.damage:
            return _as_slots(read_tombstones(self._root, manifest))
        certain, _ = self._dead_by_rows(manifest)
        read = self._readable(name, PAIRS, entry.count, _valid_pair(manifest))
        parent = self._versions.get(-1 if manifest.parent is None else manifest.parent)
        known = certain | read
        if parent is not None and manifest.operation not in ("rollback", "repair"):
            known |= self._mapped(parent, manifest)
        return known | self._orphans(manifest, known)

    def _orphans(self, manifest: Manifest, dead: frozenset[bytes]) -> frozenset[bytes]:
        """Captions whose picture is dead: they went with it."""
        rows = list(self._rows(manifest))
        images = {at for at, one in enumerate(manifest.segments) if one.modality == "image"}
        if images - {row.position for row in rows}:
            return frozenset()  # it may be in the segment that cannot be read
        live = {row.item_id for row in rows if row.position in images and row.slot not in dead}
        return frozenset(row.slot for row in rows if row.picture and row.picture not in live)

    def _dead_clues(self, manifest: Manifest) -> Clues:
        """Tombstones of other versions, rows that are erased, and rows that came again."""
        certain, likely = self._dead_by_rows(manifest)
        nearest = sorted(
            self._versions.values(), key=lambda one: abs(one.version - manifest.version)
        )
        others = [self._mapped(one, manifest) for one in nearest if one is not manifest]
        valid = _valid_pair(manifest)
        nothing: frozenset[bytes] = frozenset()
        read = nothing
        if (entry := manifest.tombstones) is not None:
            read = self._readable(f"{TOMBSTONES}/{entry.file}", PAIRS, entry.count, valid)
        rows = list(self._rows(manifest))
        torn = {row.record for row in rows if row.slot in read}  # a record goes as a whole
        partners = frozenset(row.slot for row in rows if row.record in torn)
        known = certain.union(likely, partners, *others)
        guesses = [(certain, likely), (certain | likely, nothing)]
        for other in others:
            guesses += [
                (other, certain),
                (other | certain, likely),
                (other | certain | likely, nothing),
            ]
        guesses += [(certain | partners, nothing), (certain | partners, likely)]
        counts = [entry.rows for entry in manifest.segments]
        return Clues(known, guesses, valid, lambda low, high: _pairs_between(counts, low, high))

    def _dead_by_rows(self, manifest: Manifest) -> tuple[frozenset[bytes], frozenset[bytes]]:
        """Rows that are certainly dead: erased, or come again later; and others that may be."""
        erasures = self._erasures(manifest)
        rows = list(self._rows(manifest))
        last = {row.item_id: row.position for row in rows}  # positions ascend with time
        newest = {row.record: row.position for row in rows}
        certain: set[bytes] = set()
        likely: set[bytes] = set()
        for row in rows:
            if last[row.item_id] > row.position or any(one in erasures for one in row.names):
                certain.add(row.slot)
            elif newest[row.record] > row.position:
                likely.add(row.slot)
        return frozenset(certain), frozenset(likely)

    def _mapped(self, other: Manifest, manifest: Manifest) -> frozenset[bytes]:
        """Tombstones of another version as those of this one, where it has the segments."""
        if any(one.startswith(f"{TOMBSTONES}/") for one in self.damaged(other)):
            return frozenset()
        position = {entry.id: at for at, entry in enumerate(manifest.segments)}
        ids = [entry.id for entry in other.segments]
        return frozenset(
            _PAIR.pack(position[ids[at]], row)
            for at, row in read_tombstones(self._root, other).tolist()
            if ids[at] in position
        )

    # -- rows

    def _rows(self, manifest: Manifest) -> Iterator[_Row]:
        """Every row of a version that can be read."""
        for position, entry in enumerate(manifest.segments):
            yield from self._rows_of(position, entry)

    def _rows_of(self, position: int, entry: SegmentEntry) -> Iterator[_Row]:
        items = sound_items(self._root, entry)
        if items is None:
            return
        try:
            pictures = dict(items.image_ids()) if entry.modality == "text" else {}
            for row, item_id, record, language, text in items.texts():
                names = [hash_id(one) for one in dict.fromkeys((record, item_id))]
                if text is not None:
                    names.append(hash_text(record, language, text))
                yield _Row(position, row, item_id, record, pictures.get(row), tuple(names))
        finally:
            items.close()

    def _other_segments(self, manifest: Manifest) -> list[SegmentEntry]:
        own = {entry.id for entry in manifest.segments}
        others = {
            entry.id: entry
            for version in self._versions.values()
            for entry in version.segments
            if entry.id not in own
        }
        return list(others.values())


def later_erasures(root: Path, version: int) -> tuple[set[bytes], list[str]]:
    """What lists after a version name, and the paths of those that are not whole to look at.

    Their manifests are lost, so that nothing vouches for them; an earlier list may name what was
    let in again since, and is not asked.
    """
    found: set[bytes] = set()
    torn: list[str] = []
    for path in sorted((root / ERASED).glob("*.npy")):
        if _number(path) <= version:
            continue
        hashes = hashes_in(path)
        try:
            data = path.read_bytes()
        except OSError:
            data = b""
        slots = HASHES.slots(data[len(data) - 32 * len(hashes) :]) if hashes else []
        if not hashes or any(one >= two for one, two in pairwise(slots)):
            torn.append(f"{ERASED}/{path.name}")
            count = max(0, len(data) - len(HASHES.header(1))) // HASHES.width
            hashes = set(readable(HASHES, count, data))
        found |= hashes
    return found, torn


def _lists(manifest: Manifest) -> list[tuple[str, Form, ErasedEntry | TombstoneEntry]]:
    found: list[tuple[str, Form, ErasedEntry | TombstoneEntry]] = []
    if manifest.erased is not None:
        found.append((f"{ERASED}/{manifest.erased.file}", HASHES, manifest.erased))
    if manifest.tombstones is not None:
        found.append((f"{TOMBSTONES}/{manifest.tombstones.file}", PAIRS, manifest.tombstones))
    return found


def _number(path: Path) -> int:
    return int(path.stem) if path.stem.isdecimal() else -1


def _valid_pair(manifest: Manifest) -> Callable[[bytes], bool]:
    rows = [entry.rows for entry in manifest.segments]

    def valid(slot: bytes) -> bool:
        position, row = map(int, _PAIR.unpack(slot))
        return 0 <= position < len(rows) and 0 <= row < rows[position]

    return valid


def _pairs_between(rows: Sequence[int], low: bytes | None, high: bytes | None) -> Iterator[bytes]:
    start = (0, -1) if low is None else _PAIR.unpack(low)
    end = (len(rows), 0) if high is None else _PAIR.unpack(high)
    position, row = start
    while 0 <= position < len(rows):
        for one in range(row + 1, rows[position]):
            if (position, one) >= end:
                return
            yield _PAIR.pack(position, one)
        position, row = position + 1, -1


def _as_slots(pairs: Pairs) -> frozenset[bytes]:
    return frozenset(_PAIR.pack(position, row) for position, row in pairs.tolist())


def _as_pairs(slots: frozenset[bytes]) -> Pairs:
    pairs = [_PAIR.unpack(slot) for slot in sorted(slots)]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
