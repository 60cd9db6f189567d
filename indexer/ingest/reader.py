"""The reading stage: rows of sources -> the records that a build has work with.

Here it is decided, in the order of the sources, what is unchanged, what only moved, what was
deleted and stays out, and what is refused before anything is decoded. It knows what the index
holds; it decodes and stores nothing. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from indexer.format.erasures import Erasures
from indexer.ingest.changes import KnownRecords, Mirror
from indexer.ingest.options import BuildOptions
from indexer.ingest.pace import Stages
from indexer.ingest.prepare import Texts, check_record, content_hash, selected_texts, text_ids
from indexer.ingest.progress import Tally
from indexer.ingest.stamps import Stamps
from models.errors import SourceError
from models.sources.records import Kept, Record, Reject, Row, Source, Stamp


@dataclass(frozen=True, slots=True)
class New:
    """A record to embed: new, or changed."""

    source: str
    record: Record
    digest: str
    indexed: Texts

    @property
    def size(self) -> int:
        return len(self.record.image or b"")


@dataclass(frozen=True, slots=True)
class Moved:
    """A record that is the same but elsewhere: its rows are copied."""

    record: Record
    size: int = 0


Work: TypeAlias = New | Moved


class Reader:
    """See the module.

    Attributes:
        broken: why a source broke off, once iterating has ended; what came before it counts.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        known: KnownRecords,
        erased: Erasures,
        options: BuildOptions,
        tally: Tally,
        mirror: Mirror,
        stages: Stages,
        stamps: Stamps | None = None,
    ) -> None:
        self.broken: SourceError | None = None
        self._sources = sources
        self._known = known
        self._erased = erased
        self._left_out = Erasures() if options.allow_erased else erased
        self._options = options
        self._tally = tally
        self._mirror = mirror
        self._stages = stages
        self._stamps = stamps
        # a text that was deleted and may come back is found by reading its record
        self._trusts = stamps is not None and not (options.allow_erased and len(erased))

    def __iter__(self) -> Iterator[Work]:
        try:
            for source in self._sources:
                for row in self._timed(source):
                    if self._stop():
                        return
                    if work := self._judge(source, row):
                        yield work
        except SourceError as error:
            self.broken = error  # keep what came before it

    def _timed(self, source: Source) -> Iterator[Row | Kept]:
        rows = source.rows_unless(self._is_known) if self._trusts else iter(source)
        while True:
            with self._stages.work("read"):
                row = next(rows, None)
            if row is None:
                return
            yield row

    def _is_known(self, key: str, uri: str, stamp: Stamp) -> bool:
        assert self._stamps is not None
        content = self._stamps.content(key, stamp)
        if content is None or key in self._left_out:
            return False
        return self._known.holds(key, content, uri)

    def _judge(self, source: Source, row: Row | Kept) -> Work | None:
        if isinstance(row, Reject):
            self._mirror.refused(source, row)
            self._tally.refuse(row)
            return None
        fresh = self._mirror.seen.add(row.key)
        if isinstance(row, Kept) and fresh:
            self._tally.handled("unchanged")
            return None
        with self._stages.work("read"):
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

    def _news(self, source: Source, record: Record) -> Work | None:
        indexed = selected_texts(record, self._options.captions, self._options.languages)
        digest = content_hash(record, indexed)
        if self._stamps is not None:
            self._stamps.note(record.key, record.stamp, digest)
        state = self._known.state(record, digest)
        if state in ("unchanged", "moved") and not self._wanted_back(record, indexed):
            if state == "moved":
                return Moved(record)
            self._tally.handled("unchanged")
            return None
        return New(source.name, record, digest, indexed)

    def _wanted_back(self, record: Record, indexed: Texts) -> bool:
        """Whether a record that is in the index lacks a deleted text that may come back."""
        if not self._options.allow_erased or not len(self._erased):
            return False
        return any(one in self._erased for one in text_ids(record.key, indexed))

    def _stop(self) -> bool:
        limit = self._options.max_errors
        if limit is not None and self._tally.rejected > limit:
            self._tally.report.stopped = True
        return self._tally.report.stopped
