"""Build an index from sources, or bring one up to date.

    read -> decode and prepare -> embed in batches -> write        a thread or processes for each,
                                                                   bounded queues between them

A version is committed every `segment_rows` pictures, and running the same command again embeds
only what is new or changed. Embedded rows keep the order of the sources, whatever the threads and
processes do. What was deleted stays out unless it is asked for. The stages are in
`indexer.reading`, `decoding`, `embedding_batches` and `storing`; this joins them, and is the thread
that embeds. It prints nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from indexer.ahead import Ahead, AheadHere, Following, FollowingHere
from indexer.background_queries import list_id
from indexer.building import BuildOptions, BuildProgress, BuildReport
from indexer.decoding import Decoders, how_many
from indexer.embedding import DeferredEncoder
from indexer.embedding_batches import Rows, embed_batch
from indexer.erasures import Erasures
from indexer.fs import Fs
from indexer.known import KnownRecords
from indexer.manifest import Operation, SourceEntry
from indexer.mirroring import Mirror
from indexer.preparing import Prepared, prepare
from indexer.reading import Moved, New, Reader
from indexer.rejects import Rejects, RejectsFile
from indexer.relevance import embed_background
from indexer.stages import Stages
from indexer.stamps import Stamps, stamps_path
from indexer.store import IndexWriter
from indexer.storing import TEXTS_PER_IMAGE, Places, Storing
from indexer.tally import Tally
from indexer.version import OpenVersion, open_version
from models.data.records import Reject, Source
from models.encoder import Encoder
from models.errors import InputError, SourceError

__all__ = ["BuildOptions", "BuildProgress", "BuildReport", "build_index", "index_records"]

_DEFAULTS: Final = BuildOptions()
_AHEAD: Final = 3
"""Batches' worth of records in preparation, the one being embedded included."""
_AHEAD_BYTES: Final = 256 << 20
_BATCHES_TO_WRITE: Final = 3
_FEW: Final = 256
"""A build that expects no more records reads, embeds and writes in one thread, in turns."""


def build_index(
    sources: Sequence[Source],
    out: Path,
    encoder: Encoder | DeferredEncoder,
    *,
    options: BuildOptions = _DEFAULTS,
    on_progress: Callable[[BuildProgress], None] | None = None,
    operation: Operation = "build",
    fs: Fs | None = None,
) -> BuildReport:
    """Index every usable record of `sources` into `out`, a new or existing index.

    Records are told apart by key, across all sources. One whose content is in the index already is
    skipped without being decoded or embedded, and stored anew with its vectors where only its
    location changed; a changed one replaces its old rows, captions included, in the same commit.
    One that is refused leaves an older state of itself in place.

    Raises:
        InputError: an option out of range, other fields than an existing index declares, or a
            mirror that would remove what it should not.
        SourceError: a source broke off; what was read before it is committed, nothing is mirrored.
        EncoderMismatchError, IndexLockedError, IndexCorruptError, NoSpaceError, StoreError:
            see `indexer.store.IndexWriter`. Versions committed before the failure stand.
    """
    if options.batch_size < 1 or options.segment_rows < 1 or options.thumbnail_side < 1:
        raise InputError("batch size, segment rows and thumbnail side must be at least 1")
    with IndexWriter(out, encoder.fingerprint, fields=options.fields, fs=fs) as writer:
        path = options.rejects or out.absolute().with_name(out.absolute().name + ".rejects.jsonl")
        rejects = RejectsFile(path)
        stamps = Stamps(
            stamps_path(out),
            writer.manifest.index,
            repr((options.captions, options.languages)),
            rehash=options.rehash,
        )
        try:
            more: dict[str, Any] = {"on_progress": on_progress, "operation": operation}
            report = index_records(
                sources, writer, encoder, rejects, options=options, stamps=stamps, **more
            )
        finally:
            rejects.close()
            stamps.save()
    report.rejects_file = str(path) if rejects.count else None
    return report


def index_records(
    sources: Sequence[Source],
    writer: IndexWriter,
    encoder: Encoder | DeferredEncoder,
    rejects: Rejects,
    *,
    options: BuildOptions = _DEFAULTS,
    only: Collection[str] | None = None,
    stamps: Stamps | None = None,
    on_progress: Callable[[BuildProgress], None] | None = None,
    operation: Operation = "build",
) -> BuildReport:
    """`build_index` with a writer and a place for rejects that the caller keeps.

    Args:
        only: all the keys that will come, if they are few; the index's other records need not be
            read then. Not for mirrors.
        stamps: lets records be passed over unread; None reads all.
    """
    started = time.monotonic()
    base = open_version(writer.root, writer.manifest)
    try:
        known = KnownRecords(base, only)
        run = _Run(
            sources, writer, base, known, encoder, options, rejects, stamps, on_progress, operation
        )
        run.all()
    finally:
        base.close()
    report = run.tally.report
    report.version = writer.manifest.version
    report.images = writer.manifest.live.images
    report.texts = writer.manifest.live.texts
    report.rejected = rejects.count
    report.performance = run.stages.summary()
    report.seconds = time.monotonic() - started
    return report


_Writing: TypeAlias = Following | FollowingHere


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Work in the order of the sources; `future` is of one that has to be prepared."""

    work: New | Moved
    future: Future[Prepared | Reject] | None

    @property
    def size(self) -> int:
        return self.work.size


class _Run:
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
        on_progress: Callable[[BuildProgress], None] | None,
        operation: Operation,
    ) -> None:
        counts = [source.count() for source in sources]
        self._total = None if None in counts else sum(count or 0 for count in counts)
        self.stages = Stages()
        self.tally = Tally(rejects, self.stages, self._total, on_progress)
        self._writer = writer
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
                yield _Waiting(work, None)
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
            if one.future is None:
                self._move(one.work, writing)
                continue
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
            self._store(done.images, done.texts, writing)

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
        if self._images >= limit or self._texts >= limit * TEXTS_PER_IMAGE:
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
        self._write(writing, partial(self._storing.commit, background, self.tally.tell))

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
