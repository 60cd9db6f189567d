"""Search by words: which living rows hold a query's words, best first, with their cosines.

BM25 over the word tables of several segments, as if they were one (Robertson & Zaragoza 2009).

    score(row) = sum over the query's terms t of  idf(t) * n * (k1 + 1) / (n + k1 * (1 - b + b * l))

with n how often the row has t, l its length relative to the mean, k1 = 1.2, b = 0.75, and
idf(t) = ln(1 + (N - df + 1/2) / (df + 1/2)), Lucene's, which is never negative.

N, df and the mean length count the living rows of all segments. A segment's own statistics would
make the scores of a small new segment and a large old one incomparable: where few rows hold a word
it seems rare. This way a row's score depends on the living rows and nothing else, so that merging
segments or dropping dead rows changes no ranking. A filter does not enter the statistics.

A row need hold only one of the terms: people type sentences, and with all terms required most
would find nothing; rows that hold more and rarer terms come first anyway.

`WordIndex` scores; `WordSearch` joins that with what a search allows, and `indexer.search.ranking`
fuses its ranking with the one by cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from indexer.format.items import ItemsReader
from indexer.format.word_table import Postings, terms
from indexer.search.ranking import DEPTH, Candidates, Ranked, ranked, rescore
from indexer.search.scanners import LiveSegment
from models.errors import InputError
from models.vectors import Vectors

K1: Final = 1.2
B: Final = 0.75
_MOST_TERMS: Final = 256
"""Distinct terms of a query that count, the first ones; a model reads fewer."""


@dataclass(frozen=True, slots=True)
class WordScores:
    """One segment's rows that hold a term, int64 [M], and their scores, float32 [M]."""

    rows_M: npt.NDArray[np.int64]
    scores_M: npt.NDArray[np.float32]


class WordIndex:
    """Search by words over the living rows of some segments. Safe to use from many threads.

    Raises (every method):
        IndexCorruptError: a word table is damaged.
    """

    def __init__(self, parts: Sequence[tuple[ItemsReader, npt.NDArray[np.bool_]]]) -> None:
        """`parts`: a segment's items, which have a word table, and which rows live, bool [N]."""
        self._parts = list(parts)

    def search(self, text: str) -> list[WordScores]:
        """Per segment the living rows that hold a term of the text, in no order."""
        # sorted, so that the same sum is rounded the same way everywhere
        wanted = sorted(list(dict.fromkeys(terms(text)))[:_MOST_TERMS])
        found = [self._living(items.postings(wanted), live_N) for items, live_N in self._parts]
        frequency = {
            term: sum(len(one[term].rows_M) for one in found if term in one) for term in wanted
        }
        return [
            self._score(one, frequency, norm_N)
            for one, norm_N in zip(found, self._statistics[1], strict=True)
        ]

    @cached_property
    def _statistics(self) -> tuple[int, list[npt.NDArray[np.float64]]]:
        """Living rows with any words, and per segment k1 * (1 - b + b * l), float64 [N]."""
        lengths = [items.word_lengths() for items, _ in self._parts]
        rows, total = 0, 0
        for length_N, (_, live_N) in zip(lengths, self._parts, strict=True):
            rows += int((length_N[live_N] > 0).sum())
            total += int(length_N[live_N].sum(dtype=np.int64))
        mean = total / rows if rows else 1.0
        return rows, [K1 * (1.0 - B + B * (length_N / mean)) for length_N in lengths]

    def _living(
        self, found: dict[str, Postings], live_N: npt.NDArray[np.bool_]
    ) -> dict[str, Postings]:
        living = {}
        for term, postings in found.items():
            live_M = live_N[postings.rows_M]
            living[term] = Postings(postings.rows_M[live_M], postings.counts_M[live_M])
        return living

    def _score(
        self,
        found: dict[str, Postings],
        frequency: dict[str, int],
        norm_N: npt.NDArray[np.float64],
    ) -> WordScores:
        rows, scores_N = self._statistics[0], np.zeros(len(norm_N))
        for term in sorted(found):
            rows_M, n_M = found[term].rows_M, found[term].counts_M.astype(np.float64)
            df = frequency[term]
            idf = math.log(1.0 + (rows - df + 0.5) / (df + 0.5))
            scores_N[rows_M] += idf * n_M * (K1 + 1.0) / (n_M + norm_N[rows_M])
        rows_M = np.flatnonzero(scores_N)
        return WordScores(rows_M, scores_N[rows_M].astype(np.float32))


Selected = Callable[[int, npt.NDArray[np.int64]], npt.NDArray[np.bool_]]
"""Which rows [M] of the segment at a position a filter lets through: bool [M]."""


class WordSearch:
    """Search by words over the segments of one modality. Safe to use from many threads."""

    def __init__(self, segments: Sequence[LiveSegment]) -> None:
        self._segments = [one.segment for one in segments]
        self.lacking = [one.name for one in self._segments if not one.items.has_words]
        """Segments that cannot be searched by words."""
        self._index = WordIndex([(one.segment.items, one.live_N) for one in segments])

    def rank(self, text: str, query_D: Vectors, selected: Selected | None) -> Ranked:
        """The `DEPTH` best rows by BM25, then id; `scores_M` are their cosines to the query.

        Raises:
            InputError: segments of an older format lack words.
            IndexCorruptError: a word table is damaged.
        """
        if self.lacking:
            raise InputError(
                f"{len(self.lacking)} segments of this index were written before search by words",
                code="no-words",
                hint="`diptych index optimize` adds what it needs, without embedding anything",
            )
        best = self._best(text, selected)
        order = ranked(self._segments, best, DEPTH)
        cosines_M = np.zeros(len(order), dtype=np.float32)
        for position, segment in enumerate(self._segments):
            (where,) = np.nonzero(order.segments_M == position)
            if len(where):
                cosines_M[where] = rescore(segment.vectors_ND[order.rows_M[where]], query_D)
        return replace(order, scores_M=cosines_M)

    def _best(self, text: str, selected: Selected | None) -> Candidates:
        """The best rows and all that tie with the last of them."""
        positions, rows, scores = [], [], []
        for position, found in enumerate(self._index.search(text)):
            rows_M, scores_M = found.rows_M, found.scores_M
            if selected is not None:
                kept_M = selected(position, rows_M)
                rows_M, scores_M = rows_M[kept_M], scores_M[kept_M]
            positions.append(np.full(len(rows_M), position, dtype=np.int64))
            rows.append(rows_M)
            scores.append(scores_M)
        none = np.zeros(0, dtype=np.int64)
        scores_M = np.concatenate([*scores, np.zeros(0, dtype=np.float32)])
        floor = -np.inf
        if len(scores_M) > DEPTH:
            floor = np.partition(scores_M, len(scores_M) - DEPTH)[len(scores_M) - DEPTH]
        kept_M = scores_M >= floor
        return Candidates(
            np.concatenate([*positions, none])[kept_M],
            np.concatenate([*rows, none])[kept_M],
            scores_M[kept_M],
        )
