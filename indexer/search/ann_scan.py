"""One segment's ANN structure as search uses it: how hard to look, and when to look at all rows.

A call's effort is the recorded operating point's unless it names another. It grows with the number
of results wanted, and where only some rows may be returned: what a graph walk keeps must hold
enough of them, and their neighbours lie in more lists. Where that would cost more than an exact
scan, or a query gets fewer rows than asked for though more live, the exact scan answers, so k hits
come back whenever k exist. It knows rows, not items or filters.
"""

from __future__ import annotations

import math
from copy import copy
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from indexer.format.entries import CANARIES, AnnEntry, Canary, Structure
from indexer.format.segment import HalfVectors
from indexer.search.ranking import STEP, Scanner
from indexer.search.vector_index import AnnIndex, BadStructureError
from models.vectors import Vectors

FEWEST_SHARE: Final[dict[Structure, float]] = {"ivf": 1 / 128, "hnsw": 1 / 16}
"""Below this share of selected rows an exact scan of them is faster at equal recall.

Measured for `ivf` at 1,000,000 x 512 (`tests/bench/search_crossover.py`): of 1% 1.4 ms at recall
0.961 against 3.5 ms, of 0.1% 2.0 ms at 0.84 against 1.9. A graph is walked in proportion to the
inverse of the share, so it gives up sooner.
"""
_EXPECTED: Final = 4
_EFFORT: Final = 32


def make_canaries(index: AnnIndex, vectors_ND: HalfVectors) -> list[Canary]:
    """A few rows and what the structure answers to their own vectors, for `check_canaries`."""
    rows = np.linspace(0, len(vectors_ND) - 1, CANARIES).astype(np.int64)
    return [
        Canary(row=int(row), expected=_answer(index, vectors_ND, int(row)))
        for row in np.unique(rows)
    ]


def check_canaries(index: AnnIndex, entry: AnnEntry, vectors_ND: HalfVectors) -> None:
    """Refuse a structure that no longer answers as when it was built.

    One answer may differ: the last bits of a score depend on the processor.

    Raises:
        BadStructureError: it answers otherwise.
    """
    wrong = 0
    for canary in entry.canaries:
        if max(canary.row, *canary.expected) >= len(vectors_ND):
            raise BadStructureError("its canary queries are of rows that it does not have")
        answer = _answer(index, vectors_ND, canary.row)
        wrong += not set(answer) & set(canary.expected)
    if wrong > 1:
        raise BadStructureError(f"{wrong} of {len(entry.canaries)} canary queries go wrong")


def _answer(index: AnnIndex, vectors_ND: HalfVectors, row: int) -> list[int]:
    query_1D = vectors_ND[row : row + 1].astype(np.float32)
    return [
        int(row) for row in index.unmasked().search(query_1D, _EXPECTED, _EFFORT)[0] if row >= 0
    ]


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
