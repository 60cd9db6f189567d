"""The reading stage: rows of sources -> the records that a build has work with.

Here it is decided, in the order of the sources, what is unchanged, what only moved, what was
deleted and stays out, and what is refused before anything is decoded; and at the end, for a mirror,
what is gone. `KnownRecords` is what the index holds. Nothing is decoded or stored. One thread at a
time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

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
from models.sources.records import Kept, Record, Reject, Row, SeenKeys, Source, Stamp

State = Literal["new", "unchanged", "moved", "changed"]

_BATCH: Final = 500
_URI_BYTES: Final = 8
_SCAN: Final = 65_536
_COLUMNS: Final = "row, record, content_hash, uri"


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
            for row, record, digest, uri in self._rows(position, only):
                if not dead[row]:
                    self._states[record] = digest + _short(uri)

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, key: str) -> bool:
        return key in self._states

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def state(self, record: Record, digest: str) -> State:
        """What a record of this content hash (hex) is to the index; moved: only its `uri` is."""
        stored = self._states.get(record.key)
        if stored is None:
            return "new"
        if stored[:-_URI_BYTES] != bytes.fromhex(digest):
            return "changed"
        return "unchanged" if stored[-_URI_BYTES:] == _short(record.uri) else "moved"

    def holds(self, key: str, content: bytes, uri: str) -> bool:
        """Whether a record is in the index with this start of its content hash, and this `uri`."""
        stored = self._states.get(key)
        return (
            stored is not None
            and stored[: len(content)] == content
            and stored[-_URI_BYTES:] == _short(uri)
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
    ) -> Iterator[tuple[int, str, bytes, str]]:
        query = self._base.segments[position].items.query
        if only is not None:
            keys = list(only)
            for start in range(0, len(keys), _BATCH):
                part = keys[start : start + _BATCH]
                marks = ", ".join("?" * len(part))
                yield from query(
                    f"SELECT {_COLUMNS} FROM items WHERE record IN ({marks})",  # noqa: S608
                    part,
                )
            return
        start = 0
        select = f"SELECT {_COLUMNS} FROM items WHERE row >= ? ORDER BY row LIMIT ?"  # noqa: S608
        while block := query(select, (start, _SCAN)):
            yield from block
            start = block[-1][0] + 1


def _short(uri: str) -> bytes:
    return hashlib.blake2b(uri.encode(), digest_size=_URI_BYTES).digest()


MOST: Final = 0.5
"""The largest share of its records that an index loses without `mirror_all`."""

_HARMLESS: Final = frozenset({"duplicate-key", "duplicate-id"})


@dataclass(slots=True)
class Mirror:
    """What a build saw of its sources, for judging afterwards what is gone.

    Only sources read to their end tell that. A row that a reader refused without telling whose it
    is might be any record's, and a disk that is not mounted looks like an empty folder. So a mirror
    removes nothing when in doubt, and never more than half without being told so.
    """

    seen: SeenKeys = field(default_factory=SeenKeys)
    _refused: set[str] = field(default_factory=set)
    _folders: list[str] = field(default_factory=list)
    _nameless: int = 0

    def refused(self, source: Source, reject: Reject) -> None:
        """Take note of a row that a reader refused: whatever it is, it is not gone."""
        if reject.code in _HARMLESS:
            return
        if not source.keys_are_paths:  # a line, a byte offset or a member, not the record's key
            self._nameless += 1
        elif reject.key.endswith("/"):
            self._folders.append("" if reject.key == "/" else reject.key)
        else:
            self._refused.add(reject.key)

    def gone(self, known: KnownRecords, *, remove_all: bool) -> list[str]:
        """Keys of the records that no source has any more.

        Raises:
            InputError: it cannot be told, or there are too many of them.
        """
        gone = [
            key
            for key in known
            if key not in self._refused
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
        return gone


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
        self._wants_back = build.options.allow_erased and len(build.erased) > 0
        # a text that was deleted and may come back is found by reading its record
        self._trusts = build.stamps is not None and not self._wants_back

    def __iter__(self) -> Iterator[Arrival]:
        try:
            for source in self._build.sources:
                for row in self._timed(source):
                    if self._stop():
                        return
                    if arrival := self._judge(source, row):
                        yield arrival
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
            self._tally.refuse(row)
            return None
        fresh = self._build.mirror.seen.add(row.key)
        if isinstance(row, Kept) and fresh:
            self._tally.handled("unchanged")
            return None
        with self._build.stages.work("read"):
            if isinstance(row, Record) and (why := check_record(row)):
                self._tally.refuse(Reject(source.name, row.key, "unusable-record", why))
            elif isinstance(row, Kept) or not fresh:
                why = "an earlier record of this build has the same id"
                self._tally.refuse(Reject(source.name, row.key, "duplicate-id", why))
            elif row.key in self._left_out:
                self._tally.handled("erased")
            else:
                return self._news(source, row)
        return None

    def _news(self, source: Source, record: Record) -> Arrival | None:
        options = self._build.options
        indexed = selected_texts(record, options.captions, options.languages)
        digest = content_hash(record, indexed)
        if self._stamps is not None:
            self._stamps.note(record.key, record.stamp, digest)
        arrival = Arrival(source.name, record.key, record.uri, digest)
        state = self._build.known.state(record, digest)
        if state in ("unchanged", "moved") and not self._is_wanted_back(record.key, indexed):
            if state == "moved":
                arrival.step = "move"
                return arrival
            self._tally.handled("unchanged")
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
