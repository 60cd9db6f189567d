"""The ranking of one query by words: which rows of which segments, in order, with their cosines.

Joins BM25 (`indexer.search.bm25`) with what a search allows: living rows, selected by a filter. It
knows segments; how the ranking is fused with another is `indexer.search.fusion`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from indexer.format.segment import Segment
from indexer.search.bm25 import WordIndex
from indexer.search.fusion import DEPTH, Ranked, ranked
from indexer.search.ranking import Candidates, rescore
from models.errors import InputError
from models.vectors import Vectors

Selected = Callable[[int, npt.NDArray[np.int64]], npt.NDArray[np.bool_]]
"""Which rows [M] of the segment at a position a filter lets through: bool [M]."""


class WordSearch:
    """Search by words over the segments of one modality. Safe to use from many threads."""

    def __init__(self, segments: Sequence[Segment], live: Sequence[npt.NDArray[np.bool_]]) -> None:
        """`live` tells per segment, bool [N], which rows may be found."""
        self._segments = list(segments)
        items = [segment.items for segment in segments]
        self.lacking = [segment.name for segment in segments if not segment.items.has_words]
        """Segments that cannot be searched by words."""
        self._index = WordIndex(list(zip(items, live, strict=True)))

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
