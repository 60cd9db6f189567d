"""What scans one segment's rows for a search: its ANN structure, all of it exactly, or a few rows.

`indexer.search.searcher` takes a `LiveSegment`'s own scanner, or where a filter is given one of
`Selections`; `indexer.search.ranking` asks it for rows and scores them.

An `AnnScan`'s effort is the recorded operating point's unless the search names another. It grows
with the number of results wanted, and where only some rows may be returned: what a graph walk keeps
must hold enough of them, and their neighbours lie in more lists. Where that would cost more than an
exact scan, or a query gets fewer rows than asked for though more live, the exact scan answers, so k
hits come back whenever k exist.

Filters repeat (a page keeps one while the reader types), so what was worked out for a filter is
kept, least recently used out first, within a budget of bytes.

Shapes: N rows of a segment, M some of them, Q queries, K the best, D embedding.
"""

from __future__ import annotations

import math
import mmap
import threading
from collections import OrderedDict
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from indexer.filters.declared import Field
from indexer.filters.language import Filter
from indexer.filters.sql import condition
from indexer.format.entries import AnnEntry, Structure
from indexer.format.field_table import columns_of, rows_where
from indexer.format.items import Item
from indexer.format.segment import HalfVectors, Segment
from indexer.search.ranking import STEP, Scanner, rescore
from indexer.search.vector_index import AnnIndex, BadStructureError, ExactIndex, check_canaries
from models.vectors import Vectors

FEWEST_SHARE: Final[dict[Structure, float]] = {"ivf": 1 / 128, "hnsw": 1 / 16}
"""Below this share of selected rows an exact scan of them is faster at equal recall.

Measured for `ivf` at 1,000,000 x 512 (`tests/bench/search_crossover.py`): of 1% 1.4 ms at recall
0.961 against 3.5 ms, of 0.1% 2.0 ms at 0.84 against 1.9. A graph is walked in proportion to the
inverse of the share, so it gives up sooner.
"""


class AnnScan:
    """Proposals from an ANN structure; an `indexer.search.ranking.Proposer`. Thread-safe."""

    exact: Literal[False] = False

    def __init__(self, index: AnnIndex, entry: AnnEntry, everything: Scanner) -> None:
        """`everything` scans the same rows exactly."""
        self._index = index
        self._everything = everything
        self._structure = entry.structure
        self._effort = entry.operating.effort
        self._refine = entry.operating.refine
        self.fewest = FEWEST_SHARE[entry.structure]
        self.live = index.live

    def at(self, effort: int | None) -> AnnScan:
        """The same, at another effort."""
        if effort is None:
            return self
        view = copy(self)
        view._effort = effort
        return view

    def restricted(self, selected_N: npt.NDArray[np.bool_], everything: Scanner) -> AnnScan:
        """The same, of which only these rows may be returned."""
        view = copy(self)
        view._index = self._index.restricted(selected_N)
        view._everything = everything
        view.live = view._index.live
        return view

    def propose(self, queries_QD: Vectors, k: int) -> list[npt.NDArray[np.int64]]:
        """For each query k rows or more, or all that live, without repeats."""
        k = min(k, self.live)
        effort = self._effort_for(k)
        if effort > self._index.most or k * self._refine * 4 > self._index.rows:
            return list(self._everything.search(queries_QD, k)[1])
        rows_QK = self._index.search(queries_QD, k, effort, self._refine)
        found = [rows_K[rows_K >= 0] for rows_K in rows_QK]
        short = [query for query, rows_K in enumerate(found) if len(rows_K) < k]
        if short:
            _, exact_QK = self._everything.search(queries_QD[short], k)
            for query, rows_K in zip(short, exact_QK, strict=True):
                found[query] = rows_K
        return found

    def _effort_for(self, k: int) -> int:
        share = self.live / self._index.rows
        wider = max(1.0, k / STEP) / share
        if self._structure == "ivf":
            # lists of the nearest hold most of the next nearest, too
            wider = math.sqrt(wider)
        return math.ceil(self._effort * wider)


class RowScan:
    """Exact search over a few rows of a segment, each scored as `candidates.rescore` does."""

    exact: Literal[True] = True

    def __init__(self, vectors_ND: HalfVectors, rows_M: npt.NDArray[np.int64]) -> None:
        self.live = len(rows_M)
        self._vectors_ND = vectors_ND
        self._rows_M = rows_M

    def search(
        self, queries_QD: Vectors, k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The k best rows of each query, as `ExactIndex.search`."""
        rows_MD = self._vectors_ND[self._rows_M]
        scores_QM = np.stack([rescore(rows_MD, query_D) for query_D in queries_QD])
        best_QK = np.argsort(-scores_QM, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores_QM, best_QK, axis=1), self._rows_M[best_QK]

    def above(
        self, query_D: Vectors, floor: float
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Every row scoring above `floor`, as `ExactIndex.above`."""
        scores_M = rescore(self._vectors_ND[self._rows_M], query_D)
        chosen = scores_M > floor
        return scores_M[chosen], self._rows_M[chosen]

    def rows(self) -> npt.NDArray[np.int64]:
        """The rows themselves, as `ExactIndex.rows`."""
        return self._rows_M


@dataclass(frozen=True, slots=True)
class LiveSegment:
    """A segment that can be searched: which of its rows live, and what scans them."""

    segment: Segment
    live_N: npt.NDArray[np.bool_]
    index: ExactIndex
    ann: AnnScan | None = None

    @classmethod
    def of(
        cls,
        segment: Segment,
        live_N: npt.NDArray[np.bool_],
        before: LiveSegment | None = None,
    ) -> LiveSegment:
        """`live_N` tells which rows may be found; damage of the ANN structure is noted on it.

        `before` is the same segment in another version: its structures serve again.
        """
        if before is not None and before.segment is segment:
            if np.array_equal(before.live_N, live_N):
                return before
            index = before.index.restricted(live_N)
            ann = None if before.ann is None else before.ann.restricted(live_N, index)
            return cls(segment, live_N, index, ann)
        index = ExactIndex(segment.vectors_ND, live_N)
        return cls(segment, live_N, index, structure_of(segment, live_N, index))

    def find(self, item_id: str) -> int | None:
        """The row of a live item; None where there is none of this id."""
        row = self.segment.items.find(item_id)
        return row if row is not None and self.live_N[row] else None

    def item(self, row: int) -> Item:
        return self.segment.items.items([row])[row]

    def scanner(self, *, exact: bool) -> Scanner | AnnScan:
        """What scans all live rows: exactly if asked to, or if there is no other way."""
        return self.index if exact or self.ann is None else self.ann


def structure_of(
    segment: Segment, live_N: npt.NDArray[np.bool_], index: ExactIndex
) -> AnnScan | None:
    """The segment's ANN structure; where none is sound, its rows are searched exactly."""
    entry = segment.entry.ann
    if segment.ann is None or entry is None:
        return None
    # mapped through the descriptor that was summed
    mapped = mmap.mmap(segment.ann.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        ann = AnnIndex.read(mapped, entry.structure, segment.vectors_ND, live_N)
        check_canaries(ann, entry, segment.vectors_ND)
    except BadStructureError as error:
        segment.give_up_ann(str(error))
        return None
    return AnnScan(ann, entry, index)


# measured at 100,000 x 512 on one core: FAISS spends 1.7 ns on a row that is not selected and
# 0.12 us on one that is, scoring rows here 0.8 us each, so below one in 400 this is faster
_SELECTIVE: Final = 400
_BUDGET: Final = 64 << 20
_ENTRY: Final = 4096
"""Bytes an entry costs besides its rows: the filter, which may be large, and the objects."""


@dataclass(frozen=True, slots=True)
class _Selection:
    """A filter's rows in one segment, either listed in order or as packed bits."""

    scanner: Scanner
    ann: AnnScan | None = None
    rows_M: npt.NDArray[np.int64] | None = None
    bits: npt.NDArray[np.uint8] | None = None

    def selects(self, rows_M: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        if self.rows_M is not None:
            return np.isin(rows_M, self.rows_M, assume_unique=True)
        assert self.bits is not None
        shift_M = (7 - (rows_M & 7)).astype(np.uint8)
        chosen_M: npt.NDArray[np.bool_] = (self.bits[rows_M >> 3] >> shift_M) & 1 == 1
        return chosen_M


class Selections:
    """Scanners of the rows that a filter selects, per segment. Safe to use from many threads."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._columns = columns_of(fields)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Filter, str], tuple[_Selection, int]] = OrderedDict()
        self._bytes = 0

    @property
    def kept_bytes(self) -> int:
        """What is remembered of filters."""
        return self._bytes

    def scanners(
        self, wanted: Filter, segments: Sequence[LiveSegment], *, exact: bool = False
    ) -> list[Scanner | AnnScan]:
        """One per segment, over its live rows that a checked filter selects.

        `exact` leaves ANN structures aside.

        Raises:
            IndexCorruptError: a segment's database cannot answer.
        """
        chosen = [self._selection(wanted, one) for one in segments]
        return [one.scanner if exact or one.ann is None else one.ann for one in chosen]

    def selects(
        self, wanted: Filter, live: LiveSegment, rows_M: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Which of these living rows of a segment a checked filter selects: bool [M].

        Raises:
            IndexCorruptError: the segment's database cannot answer.
        """
        return self._selection(wanted, live).selects(rows_M)

    def _selection(self, wanted: Filter, live: LiveSegment) -> _Selection:
        key = wanted, live.segment.name
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        # outside the lock: two threads may both work it out, which costs time but nothing else
        selection, size = self._select(wanted, live)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = selection, size
                self._bytes += size
            while self._bytes > _BUDGET:
                _, (_, freed) = self._kept.popitem(last=False)
                self._bytes -= freed
        return selection

    def _select(self, wanted: Filter, live: LiveSegment) -> tuple[_Selection, int]:
        rows_M = rows_where(live.segment.items.query, condition(wanted, self._columns))
        rows_M = rows_M[live.live_N[rows_M]]
        if len(rows_M) * _SELECTIVE <= len(live.live_N):
            scanner = RowScan(live.segment.vectors_ND, rows_M)
            return _Selection(scanner, rows_M=rows_M), rows_M.nbytes + _ENTRY
        selected_N = np.zeros(len(live.live_N), dtype=np.bool_)
        selected_N[rows_M] = True
        index, ann = live.index.restricted(selected_N), None
        if live.ann is not None and len(rows_M) >= live.ann.fewest * len(live.live_N):
            ann = live.ann.restricted(selected_N, index)
        selection = _Selection(index, ann, bits=np.packbits(selected_N))
        return selection, len(selected_N) // 2 + _ENTRY
