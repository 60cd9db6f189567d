"""Search in one version of an index: from query vectors to a page of hits.

Each segment's rows are scanned (`indexer.search.scanners`), `indexer.search.ranking` scores what
that finds, `indexer.search.ranking` puts it in order, with the ranking by words
(`indexer.search.words`) where that is wanted, and here the page is cut. It knows segments and which
of their rows live; not how versions are opened, nor who asks.

Shapes: Q queries, K hits, D embedding, N rows, M some rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from indexer.filters.language import Filter, check_filter
from indexer.format.entries import Modality
from indexer.format.manifest import Manifest
from indexer.format.segment import Segment
from indexer.search.options import SearchOptions, Target
from indexer.search.ranking import DEPTH, Ranked, Scanner, candidates, distinct, fuse, ranked
from indexer.search.reader import Hit
from indexer.search.scanners import AnnScan, LiveSegment, Selections
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
        offset, want = options.offset, min(options.offset + options.k, total)
        if want <= offset or not len(queries_QD):
            return [[] for _ in queries_QD]
        segments = [one.segment for one in live]
        vectors = [segment.vectors_ND for segment in segments]
        worded: list[Ranked | None] = [None] * len(queries_QD)
        hybrid, deduplicate = options.hybrid, options.deduplicate
        if hybrid:
            worded = self._by_words(modality, queries_QD, texts, options.filter)

        def rank(chosen_Q: list[int], depth: int) -> list[Ranked]:
            depth = min(total, max(depth, DEPTH)) if hybrid else min(total, depth)
            found = candidates(scanners, vectors, queries_QD[chosen_Q], depth)
            named = bool(hybrid) or deduplicate is not None
            rankings = [ranked(segments, one, depth, named=named) for one in found]
            return [
                one if words is None else fuse(one, words, hybrid)
                for one, words in zip(rankings, [worded[i] for i in chosen_Q], strict=True)
            ]

        if deduplicate is None:
            page: _Page = [(place, []) for place in range(offset, want)]
            every = rank(list(range(len(queries_QD))), want)
            return _hits(segments, [(one, page) for one in every], options)
        kept_Q: list[tuple[Ranked, _Page] | None] = [None] * len(queries_QD)
        pending, depth = list(range(len(queries_QD))), want
        while pending:
            # deeper until each query has its distinct hits, or has seen everything
            depth = min(total, _DEEPER * depth)
            rankings = dict(zip(pending, rank(pending, depth), strict=True))
            for number, one in rankings.items():
                kept = distinct(one, vectors, deduplicate, want)
                if len(kept) == want or depth == total:
                    kept_Q[number] = (one, kept[offset:])
                    pending.remove(number)
        return _hits(segments, [one for one in kept_Q if one is not None], options)

    def _scanners(
        self, segments: Sequence[LiveSegment], options: SearchOptions
    ) -> list[Scanner | AnnScan]:
        """What scans each segment, over the rows that may be found."""
        exact = options.exact
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


def _hits(
    segments: Sequence[Segment], pages: Sequence[tuple[Ranked, _Page]], options: SearchOptions
) -> list[list[Hit]]:
    """Load the items of each query's page, those of a segment at once."""
    kept = [
        (rows, [(place, others) for place, others in page if options.keeps(_score(rows, place))])
        for rows, page in pages
    ]
    wanted: dict[int, set[int]] = {}
    keys_Q = []
    for rows, page in kept:
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
        for (rows, page), keys in zip(kept, keys_Q, strict=True)
    ]


def _score(rows: Ranked, place: int) -> float:
    # a rounded row may be a hair longer than 1
    return max(-1.0, min(1.0, float(rows.scores_M[place])))
