"""The stages of a build joined, the thread that embeds between them, and the writing stage.

    read -> decode and prepare -> embed in batches -> write        a thread or processes for each,
                                                                   bounded queues between them

`indexer.ingest.build` runs it. Embedded rows keep the order of the sources, whatever threads and
processes do. Here it is decided when to commit; what a source, an index or a report is, others
know.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Final, TypeAlias

import numpy as np

from indexer.format.erasures import Erased, hash_text
from indexer.format.manifest import SourceEntry
from indexer.format.segment import SegmentWriter
from indexer.format.version import open_version
from indexer.ingest.arrivals import Arrival, ItemRow, embed, prepare
from indexer.ingest.options import Build, DeferredEncoder, purpose
from indexer.ingest.reader import KnownRecords, Reader
from indexer.ingest.threads import Ahead, AheadHere, Following, FollowingHere
from indexer.search.background_queries import list_id
from indexer.search.relevance_file import embed_background
from indexer.store.copies import copy_rows
from models.encoder import Encoder
from models.errors import InputError, SourceError
from models.images.pool import Decoders, how_many
from models.sources.records import Reject
from models.vectors import Vectors

_OVERTAKEN: Final = (
    "it was written or deleted by others while this build ran, and stays as they left it: "
    "run again to have it as the source has it"
)
TEXTS_PER_IMAGE: Final = 16
"""A commit also comes after this many texts per picture of `segment_rows`."""
_AHEAD: Final = 3
"""Batches' worth of records in preparation, the one being embedded included."""
_AHEAD_BYTES: Final = 256 << 20
_BATCHES_TO_WRITE: Final = 3
_FEW: Final = 256
"""A build that expects no more records reads, embeds and writes in one thread, in turns."""

Background: TypeAlias = tuple[Vectors, str]
"""float32 [Q, D] of the queries that hits are compared with, and the name of their list."""
Places: TypeAlias = list[tuple[int, int]]
"""(position of a segment, row) of rows in the version that the build began with."""


class Pipeline:
    """One build under way, and what the thread that embeds knows between two batches.

    Args:
        total: how many records to expect; None where nobody knows.
    """

    def __init__(self, build: Build, total: int | None) -> None:
        options = build.options
        self._build = build
        self._options = options
        self._total = total
        self._reader = Reader(build)
        self._storage = Storage(build)
        self._fields = build.writer.manifest.declared
        self._overlaps = options.overlap
        if options.overlap is None:
            self._overlaps = total is None or total > _FEW
        self._writing: Following | FollowingHere = FollowingHere()
        self._images = self._texts = self._moves = 0  # since the last commit
        self._began, self._committed = time.monotonic(), 0.0
        self._background_known = False

    @cached_property
    def _encoder(self) -> Encoder:
        """Loaded by the first record that has to be embedded, in whichever thread meets it."""
        given = self._build.encoder
        return given.encoder() if isinstance(given, DeferredEncoder) else given

    @cached_property
    def _decoders(self) -> Decoders:
        options = self._options
        return Decoders(
            self._encoder,
            processes=how_many(options.workers, self._total)[0],
            thumbnail_side=options.thumbnail_side if options.thumbnails else None,
            draft=options.draft,
        )

    def run(self) -> None:
        """Index everything.

        Raises:
            SourceError, InputError: a source broke off, or a mirror must not remove what seems
                gone; what came before it is committed.
        """
        threads = self._options.decode_threads or how_many(self._options.workers, self._total)[1]
        broken: SourceError | InputError | None
        with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:
            bounds = {"most": _AHEAD * self._options.batch_size, "most_bytes": _AHEAD_BYTES}
            ahead: Ahead[Arrival] | AheadHere[Arrival]
            if self._overlaps:
                ahead = Ahead(self._submitted(pool), **bounds, name="read")
                self._writing = Following(most=_BATCHES_TO_WRITE, name="write")
            else:
                ahead = AheadHere(self._submitted(pool), **bounds)
            try:
                self._embed_all(ahead)
                broken = self._reader.broken
                if self._options.mirror and broken is None and not self._build.tally.stopped:
                    try:
                        self._remove_gone()
                    except InputError as error:
                        broken = error
                self._commit()
                with self._build.stages.held_by("write"):
                    self._writing.finish()
            except BaseException:
                self._build.writer.give_up()
                self._writing.drop()
                raise
            finally:
                ahead.close()
                pool.shutdown(wait=False, cancel_futures=True)
                if "_decoders" in self.__dict__:
                    self._decoders.close()
                self._writing.stop()
        if broken is not None:
            raise broken
        self._build.tally.tell("done")

    def _submitted(self, pool: ThreadPoolExecutor) -> Iterator[Arrival]:
        """In the reader's thread: what it finds, with preparation under way."""
        journal = self._build.journal
        for arrival in self._reader:
            if arrival.step == "embed" and not (journal and journal.restore(arrival)):
                _ = self._decoders  # here, before several threads ask for the model at once
                arrival.preparation = pool.submit(self._prepare, arrival)
            yield arrival

    def _prepare(self, arrival: Arrival) -> None:
        with self._build.stages.work("decode"):
            prepare(
                arrival,
                self._encoder,
                self._decoders.decode,
                fields=self._fields,
                erasures=self._build.left_out,
            )

    def _embed_all(self, ahead: Iterable[Arrival]) -> None:
        stages, tally = self._build.stages, self._build.tally
        batch: list[Arrival] = []
        waiting = iter(ahead)
        while True:
            with stages.held_by("read"):
                one = next(waiting, None)
            if one is None:
                break
            if one.step == "restore":
                self._embed(batch)  # which comes before it
                batch = []
                self._restore(one)
                continue
            if one.step == "move":
                self._move(one)
                continue
            assert one.preparation is not None
            with stages.held_by("decode"):
                one.preparation.result()
            if one.refused is not None:
                tally.refuse(one.refused)
                continue
            batch.append(one)
            room = self._options.segment_rows - self._images
            if len(batch) >= min(self._options.batch_size, room):
                self._embed(batch)
                batch = []
        self._embed(batch)

    def _embed(self, batch: list[Arrival]) -> None:
        if not batch:
            return
        stages, tally = self._build.stages, self._build.tally
        with stages.held_by("embed"), stages.work("embed"):
            embed(self._encoder, batch, 4 * self._options.batch_size)
        kept = [one for one in batch if one.refused is None]
        stages.embedded(sum(len(one.rows_of("image")) for one in kept))
        for one in batch:
            if one.refused is not None:
                tally.refuse(one.refused)
        for one in kept:
            for reject in one.rejects:
                tally.refuse(reject, whole=False)
            tally.count("erased", one.erased, one.key)
            tally.handled()
        if any(one.rows for one in kept):
            if self._build.journal is not None:
                self._build.journal.add(kept)
            self._store(kept)

    def _restore(self, found: Arrival) -> None:
        for reject in found.rejects:
            self._build.tally.refuse(reject, whole=False)
        self._build.tally.handled("resumed")
        self._store([found])

    def _store(self, embedded: list[Arrival]) -> None:
        known, tally = self._build.known, self._build.tally
        kept = [one for one in embedded if one.rows]
        dead: dict[str, Places] = {}
        for one in kept:
            tally.count("updated" if one.key in known else "added", key=one.key)
            dead[one.key] = known.live_rows(one.key)
        self._write(partial(self._storage.add, kept, dead))
        self._images += sum(len(one.rows_of("image")) for one in kept)
        self._texts += sum(len(one.rows_of("text")) for one in kept)
        limit = self._options.segment_rows
        full = self._images >= limit or self._texts >= limit * TEXTS_PER_IMAGE
        if full or self._options.pacing.due(time.monotonic() - self._began, self._committed):
            self._commit()

    def _move(self, arrival: Arrival) -> None:
        places = self._build.known.live_rows(arrival.key)
        self._write(partial(self._storage.move, arrival, places))
        self._build.tally.handled("moved", arrival.key)
        self._moves += 1
        if self._moves >= self._options.segment_rows:
            self._commit()

    def _remove_gone(self) -> None:
        known, mirror = self._build.known, self._build.mirror
        remove_all = self._options.mirror_all
        for key in mirror.gone(known, self._build.sources, remove_all=remove_all):
            self._write(partial(self._storage.bury, key, known.live_rows(key)))
            self._build.tally.count("removed")

    def _commit(self) -> None:
        writer, journal = self._build.writer, self._build.journal
        background = self._background() if self._images or self._texts else None
        self._images = self._texts = self._moves = 0
        self._committed = time.monotonic() - self._began
        covered = journal.mark() if journal is not None else 0

        def commit() -> None:
            self._storage.commit(background)
            if journal is not None:
                journal.begin(*purpose(writer, self._options), covered=covered)

        self._write(commit)

    def _background(self) -> Background | None:
        """Once, and only if the index has none of this list: it stores what was embedded."""
        if self._background_known or not self._options.relevance:
            return None
        self._background_known = True
        stored = self._build.writer.manifest.relevance
        if stored and stored.queries == list_id():
            return None
        with self._build.stages.held_by("embed"), self._build.stages.work("embed"):
            queries_QD = embed_background(self._encoder)
        return None if queries_QD is None else (queries_QD, list_id())

    def _write(self, call: Callable[[], object]) -> None:
        def timed() -> None:
            with self._build.stages.work("write"):
                call()

        with self._build.stages.held_by("write"):
            self._writing.do(timed)


@dataclass(slots=True)
class _Stored:
    """A record that the next commit will hold.

    Attributes:
        source: where it came from.
        content: its content hash.
        names: all that the erasure list may hold of it.
        places: its rows in the new segments: 0 for images or 1 for texts, and the row.
    """

    source: str
    content: str
    names: set[Erased]
    places: Places = field(default_factory=list)


@dataclass(slots=True)
class _Pending:
    """What the next commit will hold.

    Attributes:
        dead: by key of a record, its rows in the version that the build began with.
        moved: by key, the new uri and origin; its rows are among the dead.
        stored: by key, what is new.
    """

    images: SegmentWriter
    texts: SegmentWriter
    dead: dict[str, Places] = field(default_factory=dict)
    moved: dict[str, tuple[str, str, int | None]] = field(default_factory=dict)
    stored: dict[str, _Stored] = field(default_factory=dict)


class Storage:
    """The writing stage: embedded rows into segments, segments into versions.

    One thread at a time, in the order of the sources. Others may commit in between: what they wrote
    or deleted since the build began is newer than what it read, and stands.
    """

    def __init__(self, build: Build) -> None:
        self._build = build
        self._writer = build.writer
        self._origins = [SourceEntry(name=one.name, kind=one.kind) for one in build.sources]
        self._pending: _Pending | None = None

    def add(self, arrivals: Sequence[Arrival], dead: dict[str, Places]) -> None:
        """Rows of records, whose older ones are `dead`."""
        pending = self._begun()
        pending.dead |= dead
        for one in arrivals:
            stored = _Stored(one.source, one.content_hash, _names(one))
            pending.stored[one.key] = stored
            for at, segment in enumerate((pending.images, pending.texts)):
                rows = one.rows_of(segment.modality)
                stored.places.extend((at, segment.rows + row) for row in range(len(rows)))
                _add(segment, rows)

    def move(self, arrival: Arrival, places: Places) -> None:
        """The rows of a record are the same, but their picture is elsewhere now."""
        pending = self._begun()
        pending.moved[arrival.key] = arrival.source, arrival.uri, arrival.origin
        pending.dead[arrival.key] = places

    def bury(self, key: str, places: Places) -> None:
        self._begun().dead[key] = places

    def commit(self, background: Background | None = None) -> None:
        """Make what came since the last commit the next version, and tell that one begins.

        Raises:
            NoSpaceError, StoreError, IndexLockedError: see `IndexWriter.commit` and `turn`.
        """
        if self._pending is None:
            return
        self._build.tally.tell("committing")
        if background is not None:
            self._writer.use_background(*background)
        pending, self._pending = self._pending, None
        segments = [pending.images, pending.texts]
        with self._writer.turn():
            if self._writer.overtaken:
                dead = self._rebase(pending)
            else:
                known = [place for places in pending.dead.values() for place in places]
                dead = list(self._writer.places(self._build.base.manifest, known))
            moved: dict[int, dict[int, tuple[str, int | None]]] = {}
            for key, (_, uri, origin) in pending.moved.items():
                for position, row in pending.dead[key]:
                    moved.setdefault(position, {})[row] = uri, origin
            for position, rows in moved.items():
                segment = self._build.base.segments[position]
                target = segments[0 if segment.entry.modality == "image" else 1]
                copy_rows(segment, sorted(rows), target, self._writer.manifest.declared, moved=rows)
            if not (pending.stored or pending.dead):  # all of it was overtaken
                self._writer.drop(segments)
                return
            self._writer.commit(
                segments,
                dead,
                sources=self._origins,
                unerase=[
                    name
                    for one in pending.stored.values()
                    for name in one.names
                    if name in self._build.erased
                ],
                operation=self._build.operation,
            )

    def _rebase(self, pending: _Pending) -> Places:
        """What to bury in the version that is current now; what others overtook is taken out."""
        writer, base, tally = self._writer, self._build.known, self._build.tally
        keys = sorted(pending.stored.keys() | pending.dead.keys())
        dead: Places = []
        first = len(writer.manifest.segments)
        with open_version(writer.root, writer.manifest) as version:
            now = KnownRecords(version, keys)
            for key in keys:
                rows = now.live_rows(key) if key in now else []
                if not self._is_overtaken(key, base, now, len(rows), pending):
                    dead += rows
                    continue
                stored, places = pending.stored.pop(key, None), pending.dead.pop(key, [])
                moved = pending.moved.pop(key, None)
                if stored is not None:
                    dead += [(first + at, row) for at, row in stored.places]
                    tally.count("updated" if places else "added", -1)
                    if key in now and now.content(key) == stored.content:
                        tally.count("unchanged")
                        continue
                else:
                    tally.count("removed" if moved is None else "moved", -1)
                tally.count("overtaken")
                if source := stored.source if stored else moved and moved[0]:
                    tally.refuse(Reject(source, key, "overtaken", _OVERTAKEN), whole=False)
        return dead

    def _is_overtaken(
        self, key: str, base: KnownRecords, now: KnownRecords, rows: int, pending: _Pending
    ) -> bool:
        """Whether a record was written or deleted by others since the build began."""
        before, after = (one.content(key) if key in one else None for one in (base, now))
        if before != after or rows != len(pending.dead.get(key, ())):  # a caption was deleted
            return True
        stored = pending.stored.get(key)
        names = {key} if stored is None else stored.names
        return any(one in self._writer.erasures and one not in self._build.erased for one in names)

    def _begun(self) -> _Pending:
        if self._pending is None:
            new = self._writer.new_segment
            self._pending = _Pending(images=new("image"), texts=new("text"))
        return self._pending


def _names(arrival: Arrival) -> set[Erased]:
    """All that an erasure list may hold of what is stored of a record."""
    names: set[Erased] = set()
    for row in arrival.rows:
        item, record = row.new.item, row.new.record
        names |= {record, item.id}
        if item.modality == "text" and item.text is not None:
            names.add(hash_text(record, item.language, item.text))
    return names


def _add(segment: SegmentWriter, rows: list[ItemRow]) -> None:
    if rows:
        vectors = [row.vector_D for row in rows if row.vector_D is not None]
        segment.add(np.stack(vectors), [row.new for row in rows])
