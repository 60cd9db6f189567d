"""Build an index from sources, or bring one up to date.

    read -> decode and prepare in threads -> embed in batches -> segment -> commit

A version is committed every `segment_rows` pictures, so a killed run loses at most that much work;
running the same command again embeds only what is new or changed. Embedded rows keep the order of
the sources, whatever the threads do. What was deleted stays out unless it is asked for. It knows
sources, the encoder and the writer; it prints nothing.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from indexer.background_queries import list_id
from indexer.building import BuildOptions, BuildProgress, BuildReport, Stage
from indexer.copying import copy_rows
from indexer.embedding import DeferredEncoder
from indexer.embedding_batches import Rows, embed_batch
from indexer.erasures import Erasures
from indexer.fs import Fs
from indexer.known import KnownRecords
from indexer.manifest import Operation, SourceEntry
from indexer.mirroring import Mirror
from indexer.preparing import (
    Prepared,
    check_record,
    content_hash,
    prepare,
    selected_texts,
    text_ids,
)
from indexer.rejects import Rejects, RejectsFile
from indexer.relevance import embed_background
from indexer.segment_writer import SegmentWriter
from indexer.store import IndexWriter
from indexer.version import OpenVersion, open_version
from models.data.records import Record, Reject, Source
from models.encoder import Encoder
from models.errors import InputError, SourceError

__all__ = ["BuildOptions", "BuildProgress", "BuildReport", "build_index", "index_records"]

_DEFAULTS: Final = BuildOptions()
_AHEAD: Final = 3
"""Batches' worth of records in preparation, the one being embedded included."""
_AHEAD_BYTES: Final = 256 << 20
_TEXTS_PER_IMAGE: Final = 16
"""A commit also comes after this many texts per picture of `segment_rows`."""


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
        try:
            more: dict[str, Any] = {"on_progress": on_progress, "operation": operation}
            report = index_records(sources, writer, encoder, rejects, options=options, **more)
        finally:
            rejects.close()
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
    on_progress: Callable[[BuildProgress], None] | None = None,
    operation: Operation = "build",
) -> BuildReport:
    """`build_index` with a writer and a place for rejects that the caller keeps.

    Args:
        only: all the keys that will come, if they are few; the index's other records need not be
            read then. Not for mirrors.
    """
    started = time.monotonic()
    base = open_version(writer.root, writer.manifest)
    try:
        known = KnownRecords(base, only)
        run = _Run(sources, writer, base, known, encoder, options, rejects, on_progress, operation)
        run.all()
    finally:
        base.close()
    report = run.report
    report.version = writer.manifest.version
    report.images = writer.manifest.live.images
    report.texts = writer.manifest.live.texts
    report.rejected = rejects.count
    report.seconds = time.monotonic() - started
    return report


@dataclass(slots=True)
class _Pending:
    """What the next commit will hold; `moved` is new locations by segment position and row."""

    images: SegmentWriter
    texts: SegmentWriter
    dead: list[tuple[int, int]] = field(default_factory=list)
    moved: dict[int, dict[int, str]] = field(default_factory=dict)
    unerase: list[str] = field(default_factory=list)
    moves: int = 0


class _Run:
    """One build: the state between the records."""

    def __init__(
        self,
        sources: Sequence[Source],
        writer: IndexWriter,
        base: OpenVersion,
        known: KnownRecords,
        encoder: Encoder | DeferredEncoder,
        options: BuildOptions,
        rejects: Rejects,
        on_progress: Callable[[BuildProgress], None] | None,
        operation: Operation,
    ) -> None:
        self.report = BuildReport()
        self._sources = sources
        self._writer = writer
        self._base = base
        self._given = encoder
        self._options = options
        self._rejects = rejects
        self._on_progress = on_progress
        self._operation: Operation = operation
        counts = [source.count() for source in sources]
        self._total = None if None in counts else sum(count or 0 for count in counts)
        self._done = 0
        self._fields = writer.manifest.declared
        self._known = known
        self._mirror = Mirror()
        self._erased = writer.erasures
        self._left_out = Erasures() if options.allow_erased else writer.erasures
        self._pending: _Pending | None = None
        self._origins = [SourceEntry(name=source.name, kind=source.kind) for source in sources]

    @cached_property
    def _encoder(self) -> Encoder:
        """Loaded by the first record that has to be embedded."""
        return self._given.encoder() if isinstance(self._given, DeferredEncoder) else self._given

    def all(self) -> None:
        threads = self._options.decode_threads or min(4, os.cpu_count() or 1)
        broken: SourceError | InputError | None = None
        with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:
            waiting: deque[tuple[Future[Prepared | Reject], int]] = deque()
            ahead = 0
            try:
                try:
                    for source, record, digest in self._new_records():
                        size = len(record.image or b"")
                        waiting.append((pool.submit(self._preparer(source, record, digest)), size))
                        ahead += size
                        while waiting and (
                            len(waiting) >= _AHEAD * self._options.batch_size
                            or ahead > _AHEAD_BYTES
                        ):
                            ahead -= self._take_batch(waiting)
                except SourceError as error:
                    broken = error  # keep what came before it, then report it
                while waiting:
                    self._take_batch(waiting)
                if self._options.mirror and broken is None and not self.report.stopped:
                    try:
                        self._remove_gone()
                    except InputError as error:
                        broken = error
                self._commit()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        if broken is not None:
            raise broken
        self._progress("done")

    def _new_records(self) -> Iterator[tuple[str, Record, str]]:
        """(source name, record, content hash) of what is not in the index as it is."""
        for source in self._sources:
            for row in source:
                if self._stop():
                    return
                if isinstance(row, Reject):
                    self._mirror.refused(source, row)
                    self._refuse(row)
                    continue
                fresh = self._mirror.seen.add(row.key)
                if why := check_record(row):
                    self._refuse(Reject(source.name, row.key, "unusable-record", why))
                elif not fresh:
                    why = "an earlier record of this build has the same id"
                    self._refuse(Reject(source.name, row.key, "duplicate-id", why))
                elif row.key in self._left_out:
                    self.report.erased += 1
                    self._advance()
                elif digest := self._news(row):
                    yield source.name, row, digest

    def _news(self, record: Record) -> str | None:
        """The content hash of a record that has to be embedded; None for one that has not."""
        indexed = self._indexed(record)
        digest = content_hash(record, indexed)
        state = self._known.state(record, digest)
        if state == "unchanged" and not self._wanted_back(record):
            self.report.unchanged += 1
        elif state == "moved" and not self._wanted_back(record):
            self._move(record)
        else:
            return digest
        self._advance()
        return None

    def _wanted_back(self, record: Record) -> bool:
        """Whether a record that is in the index lacks a deleted text that may come back."""
        if not self._options.allow_erased or not len(self._erased):
            return False
        return any(one in self._erased for one in text_ids(record.key, self._indexed(record)))

    def _move(self, record: Record) -> None:
        """Note that a record is the same but elsewhere: its rows are copied by the next commit."""
        pending = self._pending_segments()
        for position, row in self._known.live_rows(record.key):
            pending.moved.setdefault(position, {})[row] = record.uri
            pending.dead.append((position, row))
        pending.moves += 1
        self.report.moved += 1
        if pending.moves >= self._options.segment_rows:
            self._commit()

    def _remove_gone(self) -> None:
        for key in self._mirror.gone(self._known, remove_all=self._options.mirror_all):
            self._pending_segments().dead += self._known.live_rows(key)
            self.report.removed += 1

    def _preparer(
        self, source: str, record: Record, digest: str
    ) -> Callable[[], Prepared | Reject]:
        return partial(
            prepare,
            record,
            source=source,
            digest=digest,
            indexed=self._indexed(record),
            encoder=self._encoder,
            fields=self._fields,
            thumbnail_side=self._options.thumbnail_side if self._options.thumbnails else None,
            erasures=self._left_out,
        )

    def _indexed(self, record: Record) -> Any:
        return selected_texts(record, self._options.captions, self._options.languages)

    def _take_batch(self, waiting: deque[tuple[Future[Prepared | Reject], int]]) -> int:
        """Embed and store the next batch; returns the bytes of the records it took."""
        pending = self._pending
        room = self._options.segment_rows - (pending.images.rows if pending else 0)
        freed = 0
        batch: list[Prepared] = []
        for _ in range(min(self._options.batch_size, room, len(waiting))):
            future, size = waiting.popleft()
            freed += size
            result = future.result()
            if isinstance(result, Reject):
                self._refuse(result)
            else:
                batch.append(result)
        self._store(batch)
        return freed

    def _store(self, batch: list[Prepared]) -> None:
        done = embed_batch(self._encoder, batch, 4 * self._options.batch_size)
        images, texts = done.images, done.texts
        for reject in done.refused:
            self._refuse(reject)
        for one in done.kept:
            for reject in one.rejects:
                self._rejects.add(reject)
            self.report.erased += one.erased
            self._advance()
        if not images and not texts:
            return
        pending = self._pending_segments()
        _add(pending.images, images)
        _add(pending.texts, texts)
        stored = [new for _, new in [*images, *texts]]
        pending.unerase += {one for new in stored for one in (new.record, new.item.id)}
        for record in {new.record for new in stored}:
            self._count_and_bury(record, pending)
        limit = self._options.segment_rows
        if pending.images.rows >= limit or pending.texts.rows >= limit * _TEXTS_PER_IMAGE:
            self._commit()

    def _count_and_bury(self, record: str, pending: _Pending) -> None:
        if record not in self._known:
            self.report.added += 1
        else:
            self.report.updated += 1
            pending.dead += self._known.live_rows(record)

    def _pending_segments(self) -> _Pending:
        if self._pending is None:
            new = self._writer.new_segment
            self._pending = _Pending(images=new("image"), texts=new("text"))
        return self._pending

    def _commit(self) -> None:
        if self._pending is None:
            return
        self._progress("committing")
        pending, self._pending = self._pending, None
        if pending.images.rows or pending.texts.rows:
            self._embed_background()
        for position, rows in pending.moved.items():
            segment = self._base.segments[position]
            target = pending.images if segment.entry.modality == "image" else pending.texts
            copy_rows(segment, sorted(rows), target, self._fields, moved=rows)
        self._writer.commit(
            [pending.images, pending.texts],
            pending.dead,
            sources=self._origins,
            unerase=[one for one in pending.unerase if one in self._erased],
            operation=self._operation,
        )

    def _embed_background(self) -> None:
        """Once, and only if the index has none of this list: it stores what was embedded."""
        stored = self._writer.manifest.relevance
        if not self._options.relevance or (stored and stored.queries == list_id()):
            return
        queries_QD = embed_background(self._encoder)
        if queries_QD is not None:
            self._writer.use_background(queries_QD, list_id())

    def _refuse(self, reject: Reject) -> None:
        self._rejects.add(reject)
        self._advance()

    def _stop(self) -> bool:
        limit = self._options.max_errors
        self.report.stopped = limit is not None and self._rejects.count > limit
        return self.report.stopped

    def _advance(self) -> None:
        self._done += 1
        self._progress("embedding")

    def _progress(self, stage: Stage) -> None:
        if self._on_progress is not None:
            rejected = self._rejects.count
            self._on_progress(BuildProgress(stage, self._done, self._total, rejected))


def _add(segment: SegmentWriter, rows: Rows) -> None:
    if rows:
        segment.add(np.stack([vector for vector, _ in rows]), [new for _, new in rows])
