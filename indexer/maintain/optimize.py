"""Merges the segments of each modality into one without dead rows, with ANN where that pays.

    1. the live rows of all segments of a modality are copied into one, embeddings included
    2. `indexer.maintain.structures` measures structures with queries of the other modality: stored
       texts asking for pictures, pictures asking for texts, or the embedded background queries
       where an index has no texts
    3. one commit puts the new segments in place of the old

A modality that is one segment without dead rows already is measured where it lies, and written anew
only if its structure changes: what has nothing to gain stays as it is, however often it is tried.
Of an index of very many segments the small ones are merged first, in a commit of their own.

Rows added later are new segments, searched exactly beside it and merged in at the next run. Nothing
is embedded, and content hashes are kept, so later builds still skip what they know. Memory is flat
but for the structure being built.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from indexer.files.fs import Fs, Spool, require_space
from indexer.format.entries import AnnEntry, Modality
from indexer.format.manifest import SCRATCH, read_manifest
from indexer.format.segment import HalfVectors, SegmentWriter
from indexer.format.version import OpenVersion, open_version
from indexer.maintain.structures import (
    FEWEST_QUERIES,
    FEWEST_ROWS,
    GAIN,
    GRAPH_ROWS,
    MOST_QUERIES,
    Choice,
    Questions,
    Recipe,
    Trial,
    recipes,
)
from indexer.search.options import Target
from indexer.search.relevance_file import read_background
from indexer.store.copies import captions_by_picture, copy_rows
from indexer.store.sweep import KEEPING, Keeping
from indexer.store.writer import IndexWriter
from models.errors import InputError
from models.vectors import Vectors, unit_rows

OnProgress = Callable[[str, int, int], None]
"""(what is being done, rows done, rows in all)"""

_Best: TypeAlias = tuple[AnnEntry, Spool]
"""A structure: what describes it, and its bytes."""
_TARGETS: Final[dict[Modality, Target]] = {"image": "images", "text": "texts"}
_OTHER: Final[dict[Modality, Modality]] = {"image": "text", "text": "image"}
_BLOCK: Final = 500


@dataclass(slots=True)
class TargetReport:
    """What became of one modality.

    Attributes:
        rows: live rows; `merged` segments held them before, `dropped` dead rows are gone.
        structure: `exact`, `hnsw` or `ivf`; `recipe` says which in FAISS's words.
        recall: recall@10 against exact search on queries that had no part in choosing.
        latency_ms, exact_ms: per query on one thread, with the structure and without.
        changed: whether the segment is new.
        notes: why not more.
    """

    rows: int = 0
    merged: int = 0
    dropped: int = 0
    structure: str = "exact"
    recipe: str | None = None
    effort: int | None = None
    refine: int | None = None
    recall: float | None = None
    queries: str | None = None
    latency_ms: float | None = None
    exact_ms: float | None = None
    bytes_per_vector: float | None = None
    build_seconds: float = 0.0
    changed: bool = False
    notes: list[str] = field(default_factory=list)

    def take(self, entry: AnnEntry) -> None:
        """Tell a structure and what was measured of it."""
        point = entry.operating
        self.structure, self.recipe = entry.structure, entry.recipe
        self.recall, self.latency_ms = point.recall, point.latency_ms
        self.effort, self.refine = point.effort, point.refine
        self.bytes_per_vector, self.queries = point.bytes_per_vector, point.kind


@dataclass(slots=True)
class OptimizeReport:
    """What an optimization did.

    `version` is the current one, new or not; `collected` counts older ones that were removed.
    """

    version: int = 0
    seconds: float = 0.0
    collected: int = 0
    images: TargetReport = field(default_factory=TargetReport)
    texts: TargetReport = field(default_factory=TargetReport)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class OptimizeOptions:
    """How to optimize.

    Attributes:
        floor: recall@10 that a structure must reach.
        memory: bytes that a structure may take.
        structure: which to consider; `exact` takes structures away.
        queries_QD: float32 [Q, D], texts to measure pictures with instead of the index's own.
        fewest: modalities with fewer rows stay exact.
        gain: how many times as fast as an exact scan a structure must be.
        keeping: which versions are left afterwards.
    """

    floor: float = 0.95
    memory: int | None = None
    structure: Choice = "auto"
    queries_QD: Vectors | None = None
    fewest: int = FEWEST_ROWS
    gain: float = GAIN
    keeping: Keeping = KEEPING


def optimize(
    root: Path,
    options: OptimizeOptions | None = None,
    *,
    fs: Fs | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> OptimizeReport:
    """See the module. An index with nothing to do keeps its version.

    Raises:
        InputError: a recall outside (0, 1), or too few queries.
        IndexNotFoundError, IndexLockedError, IndexCorruptError, NoSpaceError, StoreError: see
            `indexer.store.writer.IndexWriter`; the index is as it was.
    """
    options = options or OptimizeOptions()
    if not 0.0 < options.floor < 1.0:
        raise InputError("recall must be above 0 and below 1")
    if options.queries_QD is not None and len(options.queries_QD) < FEWEST_QUERIES:
        raise InputError(f"at least {FEWEST_QUERIES} queries are needed to measure recall")
    started = time.monotonic()
    report = OptimizeReport()
    own_fs = fs or Fs()
    with IndexWriter(
        root, read_manifest(root).fingerprint, keeping=options.keeping, fs=own_fs
    ) as writer:
        before = Counter(entry.modality for entry in writer.manifest.segments)
        merged = writer.merge_small()  # there may be more than can be open at once
        with open_version(root, writer.manifest, verify="full") as version:
            work = _Optimization(writer, version, options, own_fs, on_progress)
            fresh, drop = [], []
            for modality, target in (("image", report.images), ("text", report.texts)):
                segment, replaced = work.merge(modality, target)  # type: ignore[arg-type]
                if merged:
                    target.merged, target.changed = before[modality], True  # type: ignore[index]
                fresh += [segment] if segment else []
                drop += replaced
            if drop:
                writer.commit(fresh, drop=drop, operation="optimize")
        report.version = writer.manifest.version
    report.collected = writer.collected
    report.seconds = time.monotonic() - started
    return report


class _Optimization:
    """One optimization of an open version."""

    def __init__(
        self,
        writer: IndexWriter,
        version: OpenVersion,
        options: OptimizeOptions,
        fs: Fs,
        on_progress: OnProgress,
    ) -> None:
        self._writer = writer
        self._version = version
        self._options = options
        self._fs = fs
        self._on_progress = on_progress

    def merge(
        self, modality: Modality, report: TargetReport
    ) -> tuple[SegmentWriter | None, list[int]]:
        """The segment of a modality's live rows, and the positions of those it replaces."""
        segments, dead = self._version.segments, self._version.dead
        positions = [at for at, one in enumerate(segments) if one.entry.modality == modality]
        report.rows = sum(int((~dead[at]).sum()) for at in positions)
        report.dropped = sum(int(dead[at].sum()) for at in positions)
        if not positions or self._is_done(positions, report):
            return None, []
        entries = [segments[at].entry for at in positions]
        whole = segments[positions[0]] if self._is_whole(positions, report) else None
        best: _Best | None = None
        if whole is not None:
            best = self._choose(modality, whole.vectors_ND, report)
            if _is_same(whole.entry.ann, best):
                report.notes.append("it is as it was: nothing better was found")
                if best is not None:
                    best[1].remove()
                return None, []
        report.merged, report.changed = len(positions), True
        if not report.rows:
            return None, positions
        room = sum(file.size for entry in entries for file in entry.files.values())
        require_space(self._writer.root, room)
        target = self._writer.new_segment(modality)
        lacking = modality == "image" and not all(segments[at].items.has_words for at in positions)
        captions = captions_by_picture(self._version) if lacking else {}
        for at in positions:
            rows = np.flatnonzero(~dead[at])
            for start in range(0, len(rows), _BLOCK * 64):
                part = rows[start : start + _BLOCK * 64].tolist()
                fields = self._version.manifest.declared
                copy_rows(segments[at], part, target, fields, captions=captions)
                self._on_progress(f"copying {_TARGETS[modality]}", target.rows, report.rows)
        if whole is None:
            best = self._choose(modality, target.vectors(), report)
        if best is not None:
            entry, spool = best
            target.attach_ann(spool.read(), entry)
            spool.remove()
        return target, positions

    def _is_whole(self, positions: list[int], report: TargetReport) -> bool:
        """Whether a modality is one segment without dead rows, as a merge would leave it."""
        segment = self._version.segments[positions[0]]
        if len(positions) > 1 or report.dropped or segment.ann_damage:
            return False
        return segment.items.has_words  # those of format 1 have none

    def _is_done(self, positions: list[int], report: TargetReport) -> bool:
        """Whether a modality is whole, and has the structure that is asked for."""
        if not self._is_whole(positions, report):
            return False
        entry = self._version.segments[positions[0]].entry
        wanted = self._options.structure
        if entry.ann is None:
            return wanted == "exact" or report.rows < self._options.fewest
        same = wanted in ("auto", entry.ann.structure) and entry.ann.floor == self._options.floor
        done = same and self._fits(entry.ann, entry.rows) and self._options.queries_QD is None
        if done:
            report.take(entry.ann)
        return done

    def _fits(self, entry: AnnEntry, rows: int) -> bool:
        memory = self._options.memory
        return memory is None or entry.operating.bytes_per_vector * rows <= memory

    def _choose(
        self, modality: Modality, vectors_ND: HalfVectors, report: TargetReport
    ) -> _Best | None:
        """The fastest structure over these rows that meets the floor, if one does."""
        options = self._options
        rows = len(vectors_ND)
        if options.structure == "exact":
            return None
        if rows < options.fewest:
            report.notes.append(f"fewer than {options.fewest} rows are searched exactly")
            return None
        questions = self._questions(modality)
        if questions is None:
            report.notes.append("no queries of the other modality to measure recall with")
            return None
        dim = self._version.manifest.dim
        candidates = recipes(rows, dim, options.structure, options.memory)
        if not candidates:
            report.notes.append("no structure fits into the memory")
            return None
        trial = Trial(vectors_ND, questions, options.floor, options.gain, options.memory)
        report.exact_ms, report.queries = trial.exact_ms, questions.kind
        best = self._fastest(trial, candidates, modality, rows, report)
        if best is not None:
            report.take(best[0])
        return best

    def _fastest(
        self,
        trial: Trial,
        candidates: Sequence[Recipe],
        modality: Modality,
        rows: int,
        report: TargetReport,
    ) -> _Best | None:
        """The candidate that answers soonest, in a file: one structure is in memory at a time."""
        best: _Best | None = None
        for recipe in candidates:
            slow_to_build = recipe.structure == "hnsw" and rows > GRAPH_ROWS
            if best is not None and slow_to_build and self._options.structure == "auto":
                report.notes.append(f"{recipe.name} is not tried on more than {GRAPH_ROWS} rows")
                continue
            started = time.monotonic()
            done = partial(self._built, recipe.name, rows)
            measured, why = trial.build(recipe, done)
            report.build_seconds += time.monotonic() - started
            if measured is None:
                report.notes.append(why)
                continue
            index, entry = measured
            if best is not None and _latency(best[0]) <= _latency(entry):
                continue
            spool = self._fs.spool(self._writer.root / SCRATCH / f"{modality}.{recipe.structure}")
            index.write(spool.write)
            del index, measured
            if best is not None:
                best[1].remove()
            best = entry, spool
        return best

    def _built(self, name: str, rows: int, done: int) -> None:
        self._on_progress(f"building {name}", done, rows)

    def _questions(self, modality: Modality) -> Questions | None:
        """Queries of the other modality, as many as there are, up to a bound."""
        if modality == "image" and self._options.queries_QD is not None:
            return Questions(unit_rows(self._options.queries_QD), "texts")
        rows = [
            (segment.vectors_ND, np.flatnonzero(~dead))
            for segment, dead in zip(self._version.segments, self._version.dead, strict=True)
            if segment.entry.modality == _OTHER[modality]
        ]
        total = sum(len(live) for _, live in rows)
        if total >= FEWEST_QUERIES:
            chosen = np.sort(
                np.random.default_rng(0).choice(total, min(total, MOST_QUERIES), replace=False)
            )
            found, first = [], 0
            for vectors_ND, live in rows:
                inside = chosen[(chosen >= first) & (chosen < first + len(live))] - first
                found.append(vectors_ND[live[inside]].astype(np.float32))
                first += len(live)
            kind: Literal["texts", "images"] = "texts" if modality == "image" else "images"
            return Questions(np.concatenate(found), kind)
        background = read_background(self._version.root, self._version.manifest)
        if background is None or len(background.queries_QD) < FEWEST_QUERIES:
            return None
        return Questions(background.queries_QD, "background")


def _is_same(old: AnnEntry | None, best: _Best | None) -> bool:
    """Whether the structure found is the one that is there, searched in the same way.

    The build is deterministic: the same recipe over the same rows gives the same structure.
    """
    if old is None or best is None:
        return old is None and best is None
    new = best[0]
    way = [(one.operating.effort, one.operating.refine, one.operating.kind) for one in (old, new)]
    same = (old.recipe, old.parameters, old.floor) == (new.recipe, new.parameters, new.floor)
    return same and way[0] == way[1]


def _latency(entry: AnnEntry) -> float:
    return entry.operating.latency_ms
