"""Build an index from sources, or bring one up to date.

    read -> decode and prepare in threads -> embed in batches -> segment -> commit

A version is committed every `segment_rows` pictures, so a killed run loses at most that much work;
running the same command again embeds only what is new or changed. Rows keep the order of the
sources, whatever the threads do. It knows sources, the encoder and the writer; it prints nothing.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from indexer.background_queries import list_id
from indexer.building import BuildOptions, BuildProgress, BuildReport, Stage
from indexer.embedding import embed_each
from indexer.fs import Fs
from indexer.items import Item
from indexer.manifest import SourceEntry
from indexer.preparing import (
    Prepared,
    PreparedCaption,
    check_record,
    content_hash,
    prepare,
    selected_texts,
)
from indexer.rejects import RejectsFile
from indexer.relevance import embed_background
from indexer.segment_writer import NewRow, SegmentWriter
from indexer.store import IndexWriter
from indexer.version import OpenVersion, open_version
from models.data.files import SeenKeys
from models.data.records import Record, Reject, Source
from models.encoder import Encoder
from models.errors import InputError, SourceError
from models.vectors import Vectors

__all__ = ["BuildOptions", "BuildProgress", "BuildReport", "build_index"]

_DEFAULTS: Final = BuildOptions()
_AHEAD: Final = 3
"""Batches' worth of records in preparation, the one being embedded included."""
_AHEAD_BYTES: Final = 256 << 20
_TEXTS_PER_IMAGE: Final = 16
"""A commit also comes after this many texts per picture of `segment_rows`."""


def build_index(
    sources: Sequence[Source],
    out: Path,
    encoder: Encoder,
    *,
    options: BuildOptions = _DEFAULTS,
    on_progress: Callable[[BuildProgress], None] | None = None,
    fs: Fs | None = None,
) -> BuildReport:
    """Index every usable record of `sources` into `out`, a new or existing index.

    Records are told apart by key, across all sources. One whose content is in the index already is
    skipped without being decoded or embedded; a changed one replaces its old rows, captions
    included, in the same commit. One that is refused leaves an older state of itself in place.

    Raises:
        InputError: an option out of range, or other fields than an existing index declares.
        SourceError: a source broke off; what was read before it is committed.
        EncoderMismatchError, IndexLockedError, IndexCorruptError, NoSpaceError, StoreError:
            see `indexer.store.IndexWriter`. Versions committed before the failure stand.
    """
    if options.batch_size < 1 or options.segment_rows < 1 or options.thumbnail_side < 1:
        raise InputError("batch size, segment rows and thumbnail side must be at least 1")
    started = time.monotonic()
    with IndexWriter(out, encoder.fingerprint, fields=options.fields, fs=fs) as writer:
        path = options.rejects or out.absolute().with_name(out.absolute().name + ".rejects.jsonl")
        rejects = RejectsFile(path)
        base = open_version(out, writer.manifest)
        try:
            run = _Run(sources, writer, base, encoder, options, rejects, on_progress)
            run.all()
        finally:
            base.close()
            rejects.close()
        report = run.report
        report.version = writer.manifest.version
        report.images = writer.manifest.live.images
        report.texts = writer.manifest.live.texts
    report.rejected = rejects.count
    report.rejects_file = str(path) if rejects.count else None
    report.seconds = time.monotonic() - started
    return report


@dataclass(slots=True)
class _Pending:
    """What the next commit will hold."""

    images: SegmentWriter
    texts: SegmentWriter
    dead: list[tuple[int, int]] = field(default_factory=list)


class _Run:
    """One build: the state between the records."""

    def __init__(
        self,
        sources: Sequence[Source],
        writer: IndexWriter,
        base: OpenVersion,
        encoder: Encoder,
        options: BuildOptions,
        rejects: RejectsFile,
        on_progress: Callable[[BuildProgress], None] | None,
    ) -> None:
        self.report = BuildReport()
        self._sources = sources
        self._writer = writer
        self._base = base
        self._encoder = encoder
        self._options = options
        self._rejects = rejects
        self._on_progress = on_progress
        counts = [source.count() for source in sources]
        self._total = None if None in counts else sum(count or 0 for count in counts)
        self._done = 0
        self._fields = writer.manifest.declared
        self._known = _known_records(base)
        self._seen = SeenKeys()
        self._pending: _Pending | None = None
        self._origins = [SourceEntry(name=source.name, kind=source.kind) for source in sources]

    def all(self) -> None:
        threads = self._options.decode_threads or min(4, os.cpu_count() or 1)
        broken: SourceError | None = None
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
                    self._refuse(row)
                elif why := check_record(row):
                    self._refuse(Reject(source.name, row.key, "unusable-record", why))
                elif not self._seen.add(row.key):
                    why = "an earlier record of this build has the same id"
                    self._refuse(Reject(source.name, row.key, "duplicate-id", why))
                else:
                    digest = content_hash(row, self._indexed(row))
                    if self._known.get(row.key) == bytes.fromhex(digest):
                        self.report.unchanged += 1
                        self._advance()
                    else:
                        yield source.name, row, digest

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
        pictures = [one for one in batch if one.picture is not None]
        vectors = embed_each(self._encoder.embed_images, [one.picture for one in pictures])
        broken = set()
        images: list[tuple[Vectors, NewRow]] = []
        for one, vector_D in zip(pictures, vectors, strict=True):
            if vector_D is None:
                broken.add(one.record)
                self._refuse(_no_vector(one, one.record))
            else:
                assert one.item is not None
                new = NewRow(
                    one.record, one.item, one.thumbnail, one.values, one.texts(), one.facts
                )
                images.append((vector_D, new))
        kept = [one for one in batch if one.record not in broken]
        texts = self._embed_captions(kept)
        for one in kept:
            for reject in one.rejects:
                self._rejects.add(reject)
            self._advance()
        if not images and not texts:
            return
        pending = self._pending_segments()
        _add(pending.images, images)
        _add(pending.texts, texts)
        for record in {new.record for _, new in [*images, *texts]}:
            self._count_and_bury(record, pending)
        limit = self._options.segment_rows
        if pending.images.rows >= limit or pending.texts.rows >= limit * _TEXTS_PER_IMAGE:
            self._commit()

    def _embed_captions(self, batch: list[Prepared]) -> list[tuple[Vectors, NewRow]]:
        captions: list[tuple[Prepared, PreparedCaption]] = [
            (one, caption) for one in batch for caption in one.captions
        ]
        step = 4 * self._options.batch_size  # a text costs a fraction of a picture
        rows: list[tuple[Vectors, NewRow]] = []
        for start in range(0, len(captions), step):
            part = captions[start : start + step]
            vectors = embed_each(self._encoder.embed_texts, [caption.tokens for _, caption in part])
            for (one, caption), vector_D in zip(part, vectors, strict=True):
                item: Item = caption.item
                if vector_D is None:
                    one.rejects.append(_no_vector(one, item.id))
                else:
                    rows.append((vector_D, NewRow(one.record, item, values=one.values)))
        return rows

    def _count_and_bury(self, record: str, pending: _Pending) -> None:
        if record not in self._known:
            self.report.added += 1
            return
        self.report.updated += 1
        for position, segment in enumerate(self._base.segments):
            pending.dead += [
                (position, row)
                for row in segment.items.rows_of(record)
                if not self._base.dead[position][row]
            ]

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
        self._embed_background()
        self._writer.commit([pending.images, pending.texts], pending.dead, sources=self._origins)

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


def _known_records(base: OpenVersion) -> dict[str, bytes]:
    """Content hash by record key of every live row; about 200 bytes of memory a record."""
    return {
        record: digest
        for segment, dead in zip(base.segments, base.dead, strict=True)
        for row, _, record, digest in segment.items.records()
        if not dead[row]
    }


def _add(segment: SegmentWriter, rows: list[tuple[Vectors, NewRow]]) -> None:
    if rows:
        segment.add(np.stack([vector for vector, _ in rows]), [new for _, new in rows])


def _no_vector(one: Prepared, key: str) -> Reject:
    return Reject(one.source, key, "embedding-invalid", "the model gave it no usable vector")
