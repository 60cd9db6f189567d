"""The reading stage: rows of sources -> the records that a build has work with.

Here it is decided, in the order of the sources, what is unchanged, what only moved, what was
deleted and stays out, and what is refused before anything is decoded; and at the end, for a mirror,
what is gone. `KnownRecords` is what the index holds. Nothing is decoded or stored. One thread at a
time.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from indexer.format.items import origin_number
from indexer.format.version import OpenVersion
from indexer.ingest.arrivals import (
    Arrival,
    Texts,
    check_record,
    content_hash,
    erased_names,
    selected_texts,
)
from indexer.ingest.options import Build
from models.errors import InputError, SourceError
from models.sources.files import is_there
from models.sources.records import PUT, Kept, Record, Reject, Row, SeenKeys, Source, Stamp

State = Literal["new", "unchanged", "moved", "changed", "foreign"]
"""What a record is to an index; moved: only its location is another; foreign: the index has its
key from another source, with other content."""

_BATCH: Final = 500
_SCAN: Final = 65_536
_STATE: Final = struct.Struct("<8sq")
"""Behind the content hash: hashes of the location and, 0 where it is not known, of the origin."""


class KnownRecords:
    """The live records of a version, or those of some keys."""

    def __init__(self, base: OpenVersion, only: Collection[str] | None = None) -> None:
        """Read them.

        Args:
            base: stays open as long as this is used.
            only: keys to look up; None reads all there are.

        Raises:
            IndexCorruptError: a segment's database is damaged.
        """
        self._base = base
        self._states: dict[str, bytes] = {}
        for position, dead in enumerate(base.dead):
            for row, record, digest, uri, origin in self._rows(position, only):
                if not dead[row]:
                    self._states[record] = digest + _STATE.pack(_short(uri), origin or 0)

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, key: str) -> bool:
        return key in self._states

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def state(
        self, record: Record, digest: str, source: Source, *, replace: bool, renewed: bool
    ) -> State:
        """What a record of this content hash (hex) is to the index.

        One that is the same in two places has not moved while the first is still there: two
        sources that share a picture would move it back and forth in every run.

        Args:
            source: what it comes from.
            replace: nothing is foreign; the newest place counts.
            renewed: a pipe brings what an earlier one brought again, not something else.
        """
        stored = self._states.get(record.key)
        if stored is None:
            return "new"
        same_place = stored[-_STATE.size : -8] == _short(record.uri)
        if stored[: -_STATE.size] == bytes.fromhex(digest):
            if same_place:
                return "unchanged"
            moved = (
                replace or self._is_of(record, source, renewed) or not self._is_there(record.key)
            )
            return "moved" if moved else "unchanged"
        return "changed" if replace or self._is_of(record, source, renewed) else "foreign"

    def _is_of(self, record: Record, source: Source, renewed: bool) -> bool:
        """Whether what the index has under a record's key came from the same source."""
        place, origin = _STATE.unpack(self._states[record.key][-_STATE.size :])
        same_place = place == _short(record.uri)
        ours = origin_number(record.origin)
        if origin:
            # below one folder or another a file is the file that it is; a table that names it
            # is something else, and may say more of it
            own = source.keys_are_paths or source.in_archives
            return origin == ours or (own and same_place and origin in _folders(record.uri))
        if same_place and not record.uri.startswith("stdin:"):
            return True  # but the first line of a pipe is no place
        if record.origin and self.uri(record.key).partition("#")[0] == record.origin:
            return True
        # an index of an earlier release, or rows that were imported: it has but one source, or
        # nobody can tell
        listed = [(one.name, one.kind) for one in self._base.manifest.sources]
        is_only = not source.keys_are_paths and listed == [(source.name, source.kind)]
        return is_only and (source.rereadable or renewed)

    def _is_there(self, key: str) -> bool:
        return is_there(self.uri(key))

    def uri(self, key: str) -> str:
        """The location of a record that the index holds."""
        position, row = self.live_rows(key)[0]
        return self._base.segments[position].items.items([row])[row].uri

    def origin(self, key: str) -> int:
        """Where a record that the index holds came from; 0 where that is not known."""
        return int(_STATE.unpack(self._states[key][-_STATE.size :])[1])

    def lists(self, name: str, kind: str) -> bool:
        """Whether the index names a source as one that it was built from."""
        return any((one.name, one.kind) == (name, kind) for one in self._base.manifest.sources)

    def content(self, key: str) -> str:
        """The content hash (hex) of a record that the index holds."""
        return self._states[key][: -_STATE.size].hex()

    def holds(self, key: str, content: bytes, uri: str) -> bool:
        """Whether a record is in the index with this start of its content hash, and this `uri`."""
        stored = self._states.get(key)
        return (
            stored is not None
            and stored[: len(content)] == content
            and stored[-_STATE.size : -8] == _short(uri)
        )

    def live_rows(self, key: str) -> list[tuple[int, int]]:
        """(position of the segment, row) of everything live that came from a record."""
        return [
            (position, row)
            for position, segment in enumerate(self._base.segments)
            for row in segment.items.rows_of(key)
            if not self._base.dead[position][row]
        ]

    def _rows(
        self, position: int, only: Collection[str] | None
    ) -> Iterator[tuple[int, str, bytes, str, int | None]]:
        items = self._base.segments[position].items
        query = items.query
        origins = "LEFT JOIN origins USING (row)" if items.has_origins else ""
        origin = "origin" if items.has_origins else "NULL"
        select = f"SELECT row, record, content_hash, uri, {origin} FROM items {origins}"  # noqa: S608
        if only is not None:
            keys = list(only)
            for start in range(0, len(keys), _BATCH):
                part = keys[start : start + _BATCH]
                marks = ", ".join("?" * len(part))
                yield from query(f"{select} WHERE record IN ({marks})", part)
            return
        start = 0
        while block := query(f"{select} WHERE row >= ? ORDER BY row LIMIT ?", (start, _SCAN)):
            yield from block
            start = block[-1][0] + 1


def _folders(uri: str) -> Iterator[int | None]:
    """`origin_number` of a URI's file or archive, and of every folder above it."""
    path = uri.partition("#")[0]
    while path.startswith("file:///"):
        yield origin_number(path)
        path = path.rpartition("/")[0]


def _short(uri: str) -> bytes:
    return hashlib.blake2b(uri.encode(), digest_size=8).digest()


REMEDY: Final = "--prefix or --id-field gives it another"
MOST: Final = 0.5
"""The largest share of its records that an index loses without `mirror_all`."""

_PUT: Final = origin_number(PUT)
_HARMLESS: Final = frozenset({"duplicate-key", "duplicate-id"})


@dataclass(slots=True)
class Mirror:
    """What a build saw of its sources, for judging afterwards what is gone.

    What was put by its id came from no source, and is not gone from one.

    Only sources read to their end tell that. A row that a reader refused without telling whose it
    is might be any record's, and a disk that is not mounted looks like an empty folder. So a mirror
    removes nothing when in doubt, and neither more than half nor all of a source or a folder
    without being told so.
    """

    seen: SeenKeys = field(default_factory=SeenKeys)
    arrived: SeenKeys = field(default_factory=SeenKeys)
    """Content hashes of the records that are new: what moved within a source is not lost."""
    _origins: set[int] = field(default_factory=set)
    _path_origins: set[int] = field(default_factory=set)
    _parents: set[str] = field(default_factory=set)
    _answered: set[tuple[str, str]] = field(default_factory=set)
    _refused: set[str] = field(default_factory=set)
    _folders: list[str] = field(default_factory=list)
    _nameless: int = 0

    def refused(self, source: Source, reject: Reject) -> None:
        """Take note of a row that a reader refused: whatever it is, it is not gone."""
        self._answered.add((source.name, source.kind))
        if reject.code in _HARMLESS:
            return
        if not source.keys_are_paths:  # a line, a byte offset or a member, not the record's key
            self._nameless += 1
        elif reject.key.endswith("/"):
            self._folders.append("" if reject.key == "/" else reject.key)
        else:
            self._refused.add(reject.key)
            self._note_parents(reject.key)

    def found(self, source: Source, key: str, origin: int) -> None:
        """Take note of a record that a source has, whatever becomes of it; origin: 0 for none."""
        self._answered.add((source.name, source.kind))
        self._origins.add(origin)
        if source.keys_are_paths:
            self._path_origins.add(origin)
            self._note_parents(key)

    def _note_parents(self, key: str) -> None:
        parent = key[: key.rfind("/") + 1]
        while parent and parent not in self._parents:
            self._parents.add(parent)
            parent = parent[: parent.rfind("/", 0, -1) + 1]

    def gone(
        self, known: KnownRecords, sources: Sequence[Source], *, remove_all: bool
    ) -> list[str]:
        """Keys of the records that no source has any more.

        Raises:
            InputError: it cannot be told, there are too many of them, or they are all that a
                source, or a folder in it, had.
        """
        gone = [
            key
            for key in known
            if key not in self._refused
            and (remove_all or known.origin(key) != _PUT)
            and not any(key.startswith(folder) for folder in self._folders)
            and self.seen.add(key)
        ]
        if not gone:
            return []
        if self._nameless:
            raise InputError(
                f"nothing was removed: {self._nameless} rows could not be read, "
                f"and may be among the {len(gone)} records that seem to be gone",
                code="mirror-uncertain",
                hint="mend the source, whose rejects file names each, and run again",
            )
        if len(gone) > MOST * len(known) and not remove_all:
            raise InputError(
                f"nothing was removed: {len(gone)} of {len(known)} records seem to be gone",
                code="mirror-too-much",
                hint="see that every source is there and was named; --mirror-all removes them",
            )
        if not remove_all and (lost := self._lost(known, gone, sources)):
            raise InputError(
                f"nothing was removed: {lost}",
                code="mirror-emptied",
                hint="see that every disk is mounted and every source named; where they are gone "
                "for good, --mirror-all removes them",
            )
        return gone

    def _lost(
        self, known: KnownRecords, gone: Sequence[str], sources: Sequence[Source]
    ) -> str | None:
        """What looks like a disk that is not mounted: a source, or a folder, that has nothing."""
        left = set(gone)
        there = self._origins | {known.origin(key) for key in known if key not in left}
        lost = [key for key in gone if known.content(key) not in self.arrived]
        for key in lost:
            origin = known.origin(key)
            if origin and origin not in there:
                count = sum(known.origin(one) == origin for one in lost)
                return f"no source has any of the {count} records that came with {known.uri(key)}"
        if any(not known.origin(key) for key in lost):
            # of an earlier release: all that is known is which sources there were
            for name, kind in ((one.name, one.kind) for one in sources):
                if (name, kind) not in self._answered and known.lists(name, kind):
                    return f"{name} had records and has none now"
        folders = Counter(
            folder
            for key in lost
            if known.origin(key) in self._path_origins and (folder := self._emptied(key))
        )
        for folder, count in folders.items():
            if count > 1:
                return f"none of the {count} records below {folder} is there any more"
        return None

    def _emptied(self, key: str) -> str | None:
        """The outermost folder of a key that has nothing in it any more."""
        at = key.find("/")
        while at >= 0:
            if key[: at + 1] not in self._parents:
                return key[: at + 1]
            at = key.find("/", at + 1)
        return None


class Reader:
    """The records of a build's sources that it has work with, in order.

    Attributes:
        broken: why a source broke off, once iterating has ended; what came before it counts.
    """

    def __init__(self, build: Build) -> None:
        self.broken: SourceError | None = None
        self._build = build
        self._tally = build.tally
        self._stamps = build.stamps
        self._left_out = build.left_out
        self._mirrors = build.options.mirror
        # what the keys of this run hold, where another source may have one of them again
        self._contents = SeenKeys() if len(build.sources) > 1 else None
        self._wants_back = build.options.allow_erased and len(build.erased) > 0
        # a text that was deleted and may come back is found by reading its record
        self._trusts = build.stamps is not None and not self._wants_back

    def __iter__(self) -> Iterator[Arrival]:
        try:
            for source in self._build.sources:
                empty = True
                for row in self._timed(source):
                    empty = False
                    if self._stop():
                        return
                    if arrival := self._judge(source, row):
                        yield arrival
                if empty:
                    self._tally.report.empty.append(source.name)
        except SourceError as error:
            self.broken = error  # keep what came before it

    def _timed(self, source: Source) -> Iterator[Row | Kept]:
        rows = source.rows_unless(self._is_known) if self._trusts else iter(source)
        while True:
            with self._build.stages.work("read"):
                row = next(rows, None)
            if row is None:
                return
            yield row

    def _is_known(self, key: str, uri: str, stamp: Stamp) -> bool:
        assert self._stamps is not None
        content = self._stamps.content(key, stamp)
        if content is None or key in self._left_out:
            return False
        return self._build.known.holds(key, content, uri)

    def _judge(self, source: Source, row: Row | Kept) -> Arrival | None:
        if isinstance(row, Reject):
            self._build.mirror.refused(source, row)
            if row.code == "duplicate-key":
                self._tally.count("conflicts")
            self._tally.refuse(row)
            return None
        with self._build.stages.work("read"):
            if isinstance(row, Kept):
                self._kept(source, row.key)
                return None
            if self._mirrors:
                self._build.mirror.found(source, row.key, origin_number(row.origin) or 0)
            if why := check_record(row):
                self._build.mirror.seen.add(row.key)
                self._tally.refuse(Reject(source.name, row.key, "unusable-record", why))
            elif row.key in self._left_out:
                self._build.mirror.seen.add(row.key)
                self._tally.handled("erased", row.key)
            else:
                return self._news(source, row)
        return None

    def _kept(self, source: Source, key: str) -> None:
        if self._mirrors:
            self._build.mirror.found(source, key, self._build.known.origin(key))
        known = self._build.known.content(key)
        if self._is_fresh(key, known) or self._is_repeated(key, known):
            self._tally.handled("unchanged")
        else:
            self._refuse_duplicate(source, key)

    def _is_fresh(self, key: str, content: str) -> bool:
        """Whether no record of this build had this key; notes it, and its content."""
        if not self._build.mirror.seen.add(key):
            return False
        if self._contents is not None:
            self._contents.add(key + content)
        return True

    def _is_repeated(self, key: str, content: str) -> bool:
        """Whether an earlier record of this build had this key and this very content."""
        return self._contents is not None and key + content in self._contents

    def _refuse_duplicate(self, source: Source, key: str) -> None:
        self._tally.count("conflicts")
        why = f"an earlier record of this build has the same id: {REMEDY}"
        self._tally.refuse(Reject(source.name, key, "duplicate-id", why))

    def _news(self, source: Source, record: Record) -> Arrival | None:
        options, known = self._build.options, self._build.known
        indexed = selected_texts(record, options.captions, options.languages)
        digest = content_hash(record, indexed)
        if record.key in self._build.mirror.seen:
            if self._is_repeated(record.key, digest):
                self._tally.handled("unchanged", record.key)
            else:
                self._refuse_duplicate(source, record.key)
            return None
        renewed = self._build.operation == "build"
        state = known.state(record, digest, source, replace=options.replace, renewed=renewed)
        if state == "foreign":  # not seen: a mirror asks whether the source that gave it has it
            self._tally.count("conflicts")
            why = f"the index has this id from {known.uri(record.key)}: {REMEDY}, --replace takes "
            why += "this one for that"
            self._tally.refuse(Reject(source.name, record.key, "id-conflict", why))
            return None
        self._is_fresh(record.key, digest)
        if self._mirrors and state == "new":
            self._build.mirror.arrived.add(digest)
        if self._stamps is not None:
            self._stamps.note(record.key, record.stamp, digest)
        arrival = Arrival(source.name, record.key, record.uri, digest, origin_number(record.origin))
        if state in ("unchanged", "moved") and not self._is_wanted_back(record.key, indexed):
            if state == "moved":
                arrival.step = "move"
                return arrival
            self._tally.handled("unchanged", record.key)
            return None
        arrival.record, arrival.indexed, arrival.size = record, indexed, len(record.image or b"")
        return arrival

    def _is_wanted_back(self, key: str, indexed: Texts) -> bool:
        """Whether a record that is in the index lacks a deleted text that may come back."""
        erased = self._build.erased
        return self._wants_back and any(one in erased for one in erased_names(key, indexed))

    def _stop(self) -> bool:
        limit = self._build.options.max_errors
        if limit is not None and self._tally.rejected > limit:
            self._tally.report.stopped = True
        return self._tally.report.stopped
