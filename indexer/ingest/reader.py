"""The reading stage: rows of sources -> the records that a build has work with.

Here it is decided, in the order of the sources, what is unchanged, what only moved, what was
deleted and stays out, and what is refused before anything is decoded. It knows what the index
holds; it decodes and stores nothing. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

from indexer.ingest.arrivals import (
    Arrival,
    Texts,
    check_record,
    content_hash,
    selected_texts,
    text_ids,
)
from indexer.ingest.options import Build
from models.errors import SourceError
from models.sources.records import Kept, Record, Reject, Row, Source, Stamp


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
        return self._wants_back and any(one in self._build.erased for one in text_ids(key, indexed))

    def _stop(self) -> bool:
        limit = self._build.options.max_errors
        if limit is not None and self._tally.rejected > limit:
            self._tally.report.stopped = True
        return self._tally.report.stopped
