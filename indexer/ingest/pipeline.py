"""One run of a build: its stages joined, and the thread that embeds between them.

    read -> decode and prepare -> embed in batches -> write        a thread or processes for each,
                                                                   bounded queues between them

Embedded rows keep the order of the sources, whatever threads and processes do. It decides when to
commit; what a source, an index or a report is, others know.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final, TypeAlias

from indexer.format.erasures import Erasures
from indexer.format.manifest import Operation, SourceEntry
from indexer.format.version import OpenVersion
from indexer.ingest.ahead import Ahead, AheadHere, Following, FollowingHere
from indexer.ingest.batches import Embedded, Rows, embed_batch
from indexer.ingest.changes import KnownRecords, Mirror
from indexer.ingest.decoders import Decoders, how_many
from indexer.ingest.options import BuildOptions, BuildProgress, DeferredEncoder
from indexer.ingest.pace import Stages
from indexer.ingest.prepare import Prepared, prepare
from indexer.ingest.progress import Tally
from indexer.ingest.reader import Moved, New, Reader
from indexer.ingest.rejects import Rejects
from indexer.ingest.resume import Journal, Restored
from indexer.ingest.rows_writer import TEXTS_PER_IMAGE, Places, Storing
from indexer.ingest.stamps import Stamps
from indexer.search.background_queries import list_id
from indexer.search.relevance import embed_background
from indexer.store.writer import IndexWriter
from models.encoder import Encoder
from models.errors import InputError, SourceError
from models.sources.records import Reject, Source

_AHEAD: Final = 3
"""Batches' worth of records in preparation, the one being embedded included."""
_AHEAD_BYTES: Final = 256 << 20
_BATCHES_TO_WRITE: Final = 3
_FEW: Final = 256
"""A build that expects no more records reads, embeds and writes in one thread, in turns."""


_Writing: TypeAlias = Following | FollowingHere


def purpose(writer: IndexWriter, options: BuildOptions) -> tuple[str, ...]:
    """All that decides what a record's rows are, besides the record, and where they belong."""
    manifest, fields = writer.manifest, ("captions", "languages", "thumbnails", "thumbnail_side")
    chosen = [getattr(options, name) for name in (*fields, "draft", "allow_erased")]
    declared = [str(one) for one in manifest.declared]
    digest = manifest.fingerprint.digest
    return manifest.index, str(manifest.version), digest, repr(declared), repr(chosen)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Work in the order of the sources: `future` of a record that has to be prepared, or what an
    earlier build embedded of it."""

    work: New | Moved
    future: Future[Prepared | Reject] | None = None
    restored: Restored | None = None

    @property
    def size(self) -> int:
        return self.work.size


class Run:
    """One build: its stages, and what the thread that embeds knows between two batches."""

    def __init__(
        self,
        sources: Sequence[Source],
        writer: IndexWriter,
        base: OpenVersion,
        known: KnownRecords,
        encoder: Encoder | DeferredEncoder,
        options: BuildOptions,
        rejects: Rejects,
        stamps: Stamps | None,
        journal: Journal | None,
        on_progress: Callable[[BuildProgress], None] | None,
        operation: Operation,
    ) -> None:
        counts = [source.count() for source in sources]
        self._total = None if None in counts else sum(count or 0 for count in counts)
        self.stages = Stages()
        self.tally = Tally(rejects, self.stages, self._total, on_progress)
        self._writer = writer
        self._journal = journal
        self._known = known
        self._given = encoder
        self._options = options
        self._left_out = Erasures() if options.allow_erased else writer.erasures
        self._mirror = Mirror()
        self._reader = Reader(
            sources, known, writer.erasures, options, self.tally, self._mirror, self.stages, stamps
        )
        origins = [SourceEntry(name=source.name, kind=source.kind) for source in sources]
        self._storing = Storing(writer, base, origins, operation)
        self._fields = writer.manifest.declared
        self._images = self._texts = self._moves = 0  # since the last commit
        self._began, self._committed = time.monotonic(), 0.0
        self._background_known = False

    @cached_property
    def _encoder(self) -> Encoder:
        """Loaded by the first record that has to be embedded, in whichever thread meets it."""
        return self._given.encoder() if isinstance(self._given, DeferredEncoder) else self._given

    @cached_property
    def _decoders(self) -> Decoders:
        options = self._options
        return Decoders(
            self._encoder,
            processes=how_many(options.workers, self._total)[0],
            thumbnail_side=options.thumbnail_side if options.thumbnails else None,
            draft=options.draft,
        )

    def all(self) -> None:
        threads = self._options.decode_threads or how_many(self._options.workers, self._total)[1]
        broken: SourceError | InputError | None
        with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:
            bounds = {"most": _AHEAD * self._options.batch_size, "most_bytes": _AHEAD_BYTES}
            ahead: Ahead[_Waiting] | AheadHere[_Waiting]
            writing: _Writing
            if self._overlaps():
                ahead = Ahead(self._submitted(pool), **bounds, name="read")
                writing = Following(most=_BATCHES_TO_WRITE, name="write")
            else:
                ahead, writing = AheadHere(self._submitted(pool), **bounds), FollowingHere()
            try:
                self._embed_all(ahead, writing)
                broken = self._reader.broken
                if self._options.mirror and broken is None and not self.tally.report.stopped:
                    try:
                        self._remove_gone(writing)
                    except InputError as error:
                        broken = error
                self._commit(writing)
                with self.stages.held_by("write"):
                    writing.finish()
            except BaseException:
                writing.drop()
                raise
            finally:
                ahead.close()
                pool.shutdown(wait=False, cancel_futures=True)
                if "_decoders" in self.__dict__:
                    self._decoders.close()
                writing.stop()
        if broken is not None:
            raise broken
        self.tally.tell("done")

    def _overlaps(self) -> bool:
        if self._options.overlap is not None:
            return self._options.overlap
        return self._total is None or self._total > _FEW

    def _submitted(self, pool: ThreadPoolExecutor) -> Iterator[_Waiting]:
        """In the reader's thread: what it finds, with preparation under way."""
        for work in self._reader:
            if isinstance(work, Moved):
                yield _Waiting(work)
                continue
            if self._journal and (found := self._journal.find(work.record.key, work.digest)):
                yield _Waiting(work, restored=found)
                continue
            _ = self._decoders  # here, before several threads ask for the model at once
            yield _Waiting(work, pool.submit(self._prepare, work))

    def _prepare(self, work: New) -> Prepared | Reject:
        with self.stages.work("decode"):
            return prepare(
                work.record,
                source=work.source,
                digest=work.digest,
                indexed=work.indexed,
                encoder=self._encoder,
                decode=self._decoders.decode,
                fields=self._fields,
                erasures=self._left_out,
            )

    def _embed_all(self, ahead: Iterable[_Waiting], writing: _Writing) -> None:
        batch: list[Prepared] = []
        waiting = iter(ahead)
        while True:
            with self.stages.held_by("read"):
                one = next(waiting, None)
            if one is None:
                break
            if one.restored is not None:
                self._embed(batch, writing)  # which comes before it
                batch = []
                self._restore(one.restored, writing)
                continue
            if isinstance(one.work, Moved):
                self._move(one.work, writing)
                continue
            assert one.future is not None
            with self.stages.held_by("decode"):
                result = one.future.result()
            if isinstance(result, Reject):
                self.tally.refuse(result)
                continue
            batch.append(result)
            room = self._options.segment_rows - self._images
            if len(batch) >= min(self._options.batch_size, room):
                self._embed(batch, writing)
                batch = []
        self._embed(batch, writing)

    def _embed(self, batch: list[Prepared], writing: _Writing) -> None:
        if not batch:
            return
        with self.stages.held_by("embed"), self.stages.work("embed"):
            done = embed_batch(self._encoder, batch, 4 * self._options.batch_size)
        self.stages.embedded(len(done.images))
        for reject in done.refused:
            self.tally.refuse(reject)
        for one in done.kept:
            for reject in one.rejects:
                self.tally.refuse(reject, whole=False)
            self.tally.count("erased", one.erased)
            self.tally.handled()
        if done.images or done.texts:
            if self._journal is not None:
                self._journal.add(_by_record(done))
            self._store(done.images, done.texts, writing)

    def _restore(self, found: Restored, writing: _Writing) -> None:
        for reject in found.rejects:
            self.tally.refuse(reject, whole=False)
        self.tally.handled("resumed")
        self._store(found.images, found.texts, writing)

    def _store(self, images: Rows, texts: Rows, writing: _Writing) -> None:
        dead: Places = []
        for record in {new.record: None for _, new in [*images, *texts]}:
            if record not in self._known:
                self.tally.count("added")
            else:
                self.tally.count("updated")
                dead += self._known.live_rows(record)
        self._write(writing, partial(self._storing.add, images, texts, dead))
        self._images += len(images)
        self._texts += len(texts)
        limit = self._options.segment_rows
        full = self._images >= limit or self._texts >= limit * TEXTS_PER_IMAGE
        if full or self._options.pacing.due(time.monotonic() - self._began, self._committed):
            self._commit(writing)

    def _move(self, work: Moved, writing: _Writing) -> None:
        places = self._known.live_rows(work.record.key)
        self._write(writing, partial(self._storing.move, work.record.uri, places))
        self.tally.handled("moved")
        self._moves += 1
        if self._moves >= self._options.segment_rows:
            self._commit(writing)

    def _remove_gone(self, writing: _Writing) -> None:
        for key in self._mirror.gone(self._known, remove_all=self._options.mirror_all):
            self._write(writing, partial(self._storing.bury, self._known.live_rows(key)))
            self.tally.count("removed")

    def _commit(self, writing: _Writing) -> None:
        background = self._background() if self._images or self._texts else None
        self._images = self._texts = self._moves = 0
        self._committed = time.monotonic() - self._began
        covered = self._journal.mark() if self._journal is not None else 0

        def commit() -> None:
            self._storing.commit(background, self.tally.tell)
            if self._journal is not None:
                self._journal.begin(*purpose(self._writer, self._options), covered=covered)

        self._write(writing, commit)

    def _background(self) -> Any:
        """Once, and only if the index has none of this list: it stores what was embedded."""
        if self._background_known or not self._options.relevance:
            return None
        self._background_known = True
        stored = self._writer.manifest.relevance
        if stored and stored.queries == list_id():
            return None
        with self.stages.held_by("embed"), self.stages.work("embed"):
            queries_QD = embed_background(self._encoder)
        return None if queries_QD is None else (queries_QD, list_id())

    def _write(self, writing: _Writing, call: Callable[[], object]) -> None:
        def timed() -> None:
            with self.stages.work("write"):
                call()

        with self.stages.held_by("write"):
            writing.do(timed)


def _by_record(done: Embedded) -> list[Restored]:
    found = {
        one.record: Restored(one.record, one.content_hash, [], [], one.rejects) for one in done.kept
    }
    for row in done.images:
        found[row[1].record].images.append(row)
    for row in done.texts:
        found[row[1].record].texts.append(row)
    return [one for one in found.values() if one.images or one.texts]
