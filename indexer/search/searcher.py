"""Search in one version of an index: from query vectors to a page of hits.

Each segment's rows are scanned (`indexer.search.scanners`), `indexer.search.ranking` scores what
that finds, `indexer.search.ranking` puts it in order, with the ranking by words
(`indexer.search.words`) where that is wanted, or sorts by fields (`indexer.search.sorting`), and
here the page is cut. It knows segments and which
of their rows live; not how versions are opened, nor who asks.

Shapes: Q queries, K hits, D embedding, N rows, M some rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from indexer.filters.language import Filter, check_filter
from indexer.format.entries import Modality
from indexer.format.manifest import Manifest
from indexer.format.segment import Segment
from indexer.search.options import SearchOptions, SortKey, Target
from indexer.search.ranking import (
    DEPTH,
    Ranked,
    Scanner,
    candidates,
    distinct,
    fuse,
    ranked,
    reaching,
)
from indexer.search.reader import Hit
from indexer.search.scanners import AnnScan, LiveSegment, Selections
from indexer.search.sorting import FieldOrder, Ranks, check_sort, sort_rows
from indexer.search.words import WordSearch
from models.errors import InputError, InvalidVectorError
from models.vectors import Vectors, unit_rows

_MODALITY: Final[dict[Target, Modality]] = {"images": "image", "texts": "text"}
_DEEPER: Final = 4
_Page: TypeAlias = Sequence[tuple[int, Sequence[int]]]
"""Places in a ranking, each with those of its duplicates."""


class Searcher:
    """The searchable segments of a version, by modality. Safe to use from several threads."""

    def __init__(self, manifest: Manifest, segments: Sequence[LiveSegment]) -> None:
        self._manifest = manifest
        self.selections = Selections(manifest.declared)
        self.segments: dict[Modality, list[LiveSegment]] = {"image": [], "text": []}
        for one in segments:
            self.segments[one.segment.entry.modality].append(one)
        self._order = FieldOrder(manifest.declared)
        self._words = {modality: WordSearch(some) for modality, some in self.segments.items()}

    def search(
        self,
        queries_QD: Vectors,
        options: SearchOptions,
        texts: Sequence[str | None] | None = None,
    ) -> list[list[Hit]]:
        """As `indexer.search.reader.IndexReader.search`, where it is described."""
        queries_QD = self._checked(queries_QD)
        modality = _MODALITY[options.target]
        live = self.segments[modality]
        scanners = self._scanners(live, options)
        total = sum(scanner.live for scanner in scanners)
        if options.offset >= total or not len(queries_QD):
            return [[] for _ in queries_QD]
        worded: list[Ranked | None] = [None] * len(queries_QD)
        if options.hybrid:
            worded = self._by_words(modality, queries_QD, texts, options.filter)
        segments = [one.segment for one in live]
        keys = [(key, self._order.ranks(key.field, modality, live)) for key in options.sort]
        pages = _Pages(live, scanners, total, queries_QD, worded, options, keys)
        found = pages.all() if options.deduplicate is None else pages.distinct(options.deduplicate)
        return _hits(segments, found)

    def _scanners(
        self, segments: Sequence[LiveSegment], options: SearchOptions
    ) -> list[Scanner | AnnScan]:
        """What scans each segment, over the rows that may be found."""
        check_sort(options.sort, self._manifest.declared)
        exact = options.exact or bool(options.sort)
        scanners = [one.scanner(exact=exact) for one in segments]
        if options.filter is not None:
            check_filter(options.filter, self._manifest.declared)
            scanners = self.selections.scanners(options.filter, segments, exact=exact)
        return [one if one.exact else one.at(options.effort) for one in scanners]

    def _by_words(
        self,
        modality: Modality,
        queries_QD: Vectors,
        texts: Sequence[str | None] | None,
        filter: Filter | None,
    ) -> list[Ranked | None]:
        """Per query its ranking by words; None where it has no text."""
        if texts is None or len(texts) != len(queries_QD):
            raise InputError("hybrid search needs a text, or None, for each query")
        segments, words = self.segments[modality], self._words[modality]

        def selected(position: int, rows_M: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
            assert filter is not None
            return self.selections.selects(filter, segments[position], rows_M)

        return [
            None if text is None else words.rank(text, query_D, selected if filter else None)
            for text, query_D in zip(texts, queries_QD, strict=True)
        ]

    def _checked(self, queries_QD: Vectors) -> Vectors:
        queries_QD = unit_rows(queries_QD)
        dim = self._manifest.dim
        if queries_QD.shape[1] != dim:
            raise InvalidVectorError(
                f"a query has {queries_QD.shape[1]} dimensions, the index has {dim}"
            )
        return queries_QD


@dataclass(frozen=True, slots=True)
class _Pages:
    """One call's queries, and the page of its ranking that each of them gets.

    Attributes:
        scanners: one per segment, of the rows that may be found; `total` of them in all.
        worded: per query its ranking by words, or None.
        keys: fields to sort by, each with the ranks of its values in every segment.
    """

    live: Sequence[LiveSegment]
    scanners: Sequence[Scanner | AnnScan]
    total: int
    queries_QD: Vectors
    worded: Sequence[Ranked | None]
    options: SearchOptions
    keys: Sequence[tuple[SortKey, Sequence[Ranks]]]

    @property
    def segments(self) -> list[Segment]:
        return [one.segment for one in self.live]

    @property
    def want(self) -> int:
        """How far down the ranking the page ends."""
        return min(self.options.offset + self.options.k, self.total)

    def all(self) -> list[tuple[Ranked, _Page]]:
        """Every row counts."""
        start = self.options.offset
        return [
            (one, [(place, []) for place in range(start, min(self.want, len(one)))])
            for one in self._ranked(range(len(self.queries_QD)), self.want)
        ]

    def distinct(self, threshold: float) -> list[tuple[Ranked, _Page]]:
        """Near-duplicates of a better row do not count."""
        vectors = [segment.vectors_ND for segment in self.segments]
        found: dict[int, tuple[Ranked, _Page]] = {}
        pending, depth = list(range(len(self.queries_QD))), self.want
        while pending:
            # deeper until each query has its distinct hits, or has seen everything
            depth = min(self.total, _DEEPER * depth)
            for number, one in zip(pending, self._ranked(pending, depth), strict=True):
                kept = distinct(one, vectors, threshold, self.want)
                if len(kept) == self.want or depth == self.total or len(one) < depth:
                    found[number] = (one, kept[self.options.offset :])
            pending = [number for number in pending if number not in found]
        return [found[number] for number in range(len(self.queries_QD))]

    def _ranked(self, chosen_Q: Sequence[int], depth: int) -> list[Ranked]:
        """Rankings of some of the queries, `depth` rows of each at least, or all that fit."""
        if self.keys:
            return [self._sorted(number, min(depth, self.total)) for number in chosen_Q]
        hybrid, floor = self.options.hybrid, self.options.min_score
        depth = min(self.total, max(depth, DEPTH) if hybrid else depth)
        vectors = [segment.vectors_ND for segment in self.segments]
        # ids decide ties of fused scores, and name duplicates
        named = bool(hybrid) or self.options.deduplicate is not None
        rankings = []
        found_Q = candidates(self.scanners, vectors, self.queries_QD[chosen_Q], depth, floor)
        for number, found in zip(chosen_Q, found_Q, strict=True):
            one, words = ranked(self.segments, found, depth, named=named), self.worded[number]
            one = one if words is None else fuse(one, words, hybrid)
            # after fusing: what an item's rank gives it does not depend on who else is wanted
            low = floor is not None and not (reach_M := reaching(one.scores_M, floor)).all()
            rankings.append(one.take(np.flatnonzero(reach_M).tolist()) if low else one)
        return rankings

    def _sorted(self, number: int, depth: int) -> Ranked:
        """The first rows by the values of fields, `depth` or all that fit."""
        query_D, words, fused = self.queries_QD[number], self.worded[number], None
        scanners = [one for one in self.scanners if one.exact]
        vectors = [segment.vectors_ND for segment in self.segments]
        if words is not None:
            keep = min(self.total, DEPTH)
            [found] = candidates(scanners, vectors, query_D[None], keep)
            fused = fuse(ranked(self.segments, found, keep), words, self.options.hybrid)
        return sort_rows(
            self.keys,
            self.live,
            scanners,
            query_D,
            depth,
            floor=self.options.min_score,
            fused=fused,
            named=self.options.deduplicate is not None,
        )


def _hits(segments: Sequence[Segment], pages: Sequence[tuple[Ranked, _Page]]) -> list[list[Hit]]:
    """Load the items of each query's page, those of a segment at once."""
    wanted: dict[int, set[int]] = {}
    keys_Q = []
    for rows, page in pages:
        places = [place for place, _ in page]
        keys = list(
            zip(rows.segments_M[places].tolist(), rows.rows_M[places].tolist(), strict=True)
        )
        keys_Q.append(keys)
        for position, row in keys:
            wanted.setdefault(position, set()).add(row)
    items = {
        position: segments[position].items.items(sorted(some)) for position, some in wanted.items()
    }
    return [
        [
            Hit(
                items[position][row],
                _score(rows, place),
                fused=None if rows.fused_M is None else float(rows.fused_M[place]),
                duplicates=tuple(rows.ids[other] for other in duplicates),
            )
            for (place, duplicates), (position, row) in zip(page, keys, strict=True)
        ]
        for (rows, page), keys in zip(pages, keys_Q, strict=True)
    ]


def _score(rows: Ranked, place: int) -> float:
    # a rounded row may be a hair longer than 1
    return max(-1.0, min(1.0, float(rows.scores_M[place])))
