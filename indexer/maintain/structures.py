"""Measures ANN structures over a segment's rows with the queries they are for; `optimize` chooses.

Texts asking for pictures are off the distribution of the pictures, and a structure tuned with
pictures as queries promises a recall that texts do not get. So the queries here are of the other
modality. Half of them choose, the other half report:

    for each recipe within the memory budget: build it, then measure recall@10 against exact search
        and latency (one query a call, one thread) over a grid of effort and refine
    of the points whose recall is the floor plus a standard error, or more, take the fastest that
        also has the floor on the other half
    it must be so many times (`gain`) as fast as the exact scan, or the segment stays exact

A result counts as found when its cosine reaches that of the true tenth, so equal rows are equal.
This knows rows, queries and FAISS structures; files, segments and versions are its caller's.

Shapes: N rows, Q queries, K neighbours, D embedding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from indexer.format.entries import AnnEntry, CurvePoint, MeasuredWith, OperatingPoint, Structure
from indexer.format.segment import HalfVectors
from indexer.search.ranking import STEP
from indexer.search.vector_index import (
    TRAIN_ROWS,
    AnnIndex,
    ExactIndex,
    build_ann,
    make_canaries,
    one_thread,
)
from models.vectors import Vectors

K: Final = 10
FEWEST_ROWS: Final = 10_000
"""Fewer rows are scanned in a millisecond or two: nothing to gain."""
FEWEST_QUERIES: Final = 64
MOST_QUERIES: Final = 1000
GAIN: Final = 2.0
"""Less is not worth a structure, which costs memory, time to build, and a little recall."""
GRAPH_ROWS: Final = 250_000
"""Above, a graph takes minutes to build and was slower at equal recall: at a million real picture
vectors and real texts 1.75 ms (CPU time of two threads) against 0.34, where at 100,000 it was 0.2
against 0.3. It is still tried where the inverted file misses the floor, or it is asked for."""
_EFFORTS: Final[dict[Structure, tuple[int, ...]]] = {
    "hnsw": (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    "ivf": (4, 8, 16, 24, 32, 40, 48, 64, 96, 128, 192, 256, 512),
}
_REFINES: Final[dict[Structure, tuple[int, ...]]] = {"hnsw": (1, 2), "ivf": (2, 4, 8, 16)}
_ENOUGH: Final = 0.995
_TIMED: Final = 64
_BLOCK: Final = 16_384

Choice = Literal["auto", "exact", "hnsw", "ivf"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What may be built, and what it should weigh."""

    structure: Structure
    name: str
    parameters: dict[str, int]
    bytes_per_vector: float


@dataclass(frozen=True, slots=True)
class Questions:
    """Queries of the other modality, float32 [Q, D], and where they are from."""

    queries_QD: Vectors
    kind: MeasuredWith


def recipes(rows: int, dim: int, choice: Choice, memory: int | None) -> list[Recipe]:
    """What is worth building for N rows, the cheapest to build first.

    `memory` bounds the bytes of a structure, which are estimated here and counted by a `Trial`.
    """
    lists = 2 ** min(
        round(np.log2(4 * max(rows, 1) ** 0.5)), int(np.log2(max(rows / TRAIN_ROWS, 2)))
    )
    links = 32
    # a byte, or a bit, per dimension; 2 M links of 4 bytes, a few more above them; lists have
    # two factors and an id per row, a graph of centroids, and are filled up to whole blocks of
    # 32 codes, which is half a block each
    graph = 8.0 * links + 20
    in_list = 4.0 * dim + graph + 16 * (dim / 8 + 8)
    found = [
        Recipe("ivf", f"IVF{lists}_HNSW{links},RaBitQfs", {"nlist": lists, "M": links},
               dim / 8 + 16 + in_list * lists / max(rows, 1)),
        Recipe("hnsw", f"HNSW{links},SQ8", {"M": links, "efConstruction": 40}, dim + graph),
    ]  # fmt: skip
    return [
        one
        for one in found
        if choice in ("auto", one.structure)
        and (memory is None or one.bytes_per_vector * rows <= memory)
    ]


class Trial:
    """Structures over the same rows, measured with the same queries.

    Args:
        memory: bytes that a structure may take, as it is stored and searched.

    Attributes:
        exact_ms: what an exact scan takes a query.
    """

    def __init__(
        self,
        vectors_ND: HalfVectors,
        questions: Questions,
        floor: float,
        gain: float = GAIN,
        memory: int | None = None,
    ) -> None:
        self._vectors_ND = vectors_ND
        self._kind = questions.kind
        self._floor = floor
        self._gain = gain
        self._memory = memory
        order = np.random.default_rng(0).permutation(len(questions.queries_QD))[:MOST_QUERIES]
        queries_QD = np.ascontiguousarray(questions.queries_QD[order], dtype=np.float32)
        tenth_Q = exact_scores(vectors_ND, queries_QD, K)[:, -1]
        half = len(order) // 2
        self._tune = queries_QD[:half], tenth_Q[:half]
        self._report = queries_QD[half:], tenth_Q[half:]
        self.exact_ms = self._exact_latency()

    def build(
        self, recipe: Recipe, on_rows: Callable[[int], None] = lambda _: None
    ) -> tuple[tuple[AnnIndex, AnnEntry] | None, str]:
        """Build and measure -> the structure and its entry; None and why where no point will do."""
        index = build_ann(
            self._vectors_ND, recipe.structure, recipe.name, recipe.parameters, on_rows
        )
        size = 0

        def count(piece: bytes) -> None:
            nonlocal size
            size += len(piece)

        index.write(count)
        if self._memory is not None and size > self._memory:
            return None, f"{recipe.name} takes {size:,} bytes, more than {self._memory:,}"
        with one_thread():
            measured = list(self._curve(index, recipe, size / len(self._vectors_ND)))
        if not measured:
            rows = len(self._vectors_ND)
            return None, f"{recipe.name} has nothing to gain on {rows} rows"
        curve = [point for point, _ in measured]
        best = max(point.recall for point in curve)
        willing = sorted(
            (point for point, error in measured if point.recall >= min(1.0, self._floor + error)),
            key=lambda point: point.latency_ms,
        )
        for point in willing:
            recall, _ = self._recall(index, point.effort, point.refine, self._report)
            if recall < self._floor:
                continue
            if point.latency_ms * self._gain > self.exact_ms:
                return None, (
                    f"{recipe.name} takes {point.latency_ms:.2f} ms at recall {recall:.3f}, an "
                    f"exact scan {self.exact_ms:.2f} ms"
                )
            operating = OperatingPoint(
                **{**point.model_dump(), "recall": recall},
                queries=len(self._report[0]),
                kind=self._kind,
            )
            entry = AnnEntry(
                structure=recipe.structure,
                recipe=recipe.name,
                parameters=recipe.parameters,
                operating=operating,
                floor=self._floor,
                curve=curve,
                canaries=make_canaries(index, self._vectors_ND),
            )
            return (index, entry), ""
        return None, f"{recipe.name} reaches recall {best:.3f}, below {self._floor}"

    def _curve(
        self, index: AnnIndex, recipe: Recipe, size: float
    ) -> Iterable[tuple[CurvePoint, float]]:
        """Points of the grid, each with the standard error of its recall."""
        for refine in _REFINES[recipe.structure]:
            for effort in _EFFORTS[recipe.structure]:
                if effort > index.most:
                    break
                recall, error = self._recall(index, effort, refine, self._tune)
                latency = self._latency(index, effort, refine)
                point = CurvePoint(
                    recipe=recipe.name,
                    effort=effort,
                    refine=refine,
                    recall=recall,
                    latency_ms=latency,
                    bytes_per_vector=size,
                )
                yield point, error
                if recall >= _ENOUGH or latency > self.exact_ms:
                    break

    def _recall(
        self,
        index: AnnIndex,
        effort: int,
        refine: int,
        half: tuple[Vectors, npt.NDArray[np.float32]],
    ) -> tuple[float, float]:
        """Mean recall@10 of one half of the queries, and its standard error."""
        queries_QD, tenth_Q = half
        recall_Q = recall_of(index, self._vectors_ND, queries_QD, tenth_Q, effort, refine)
        return float(recall_Q.mean()), float(recall_Q.std() / len(recall_Q) ** 0.5)

    def _latency(self, index: AnnIndex, effort: int, refine: int) -> float:
        queries_QD = self._tune[0]
        return _median_ms(
            lambda i: index.search(queries_QD[i % len(queries_QD)][None], STEP, effort, refine),
            _TIMED,
        )

    def _exact_latency(self) -> float:
        everything = ExactIndex(self._vectors_ND, np.ones(len(self._vectors_ND), dtype=np.bool_))
        queries_QD = self._tune[0]
        with one_thread():
            return _median_ms(lambda i: everything.search(queries_QD[i][None], K), 7)


def recall_of(
    index: AnnIndex,
    vectors_ND: HalfVectors,
    queries_QD: Vectors,
    tenth_Q: npt.NDArray[np.float32],
    effort: int,
    refine: int,
) -> npt.NDArray[np.float64]:
    """recall@10 of each query, float64 [Q], asked as a search asks.

    Args:
        tenth_Q: the score of each query's true tenth: whatever reaches it is a hit.
    """
    rows_QK = index.search(queries_QD, STEP, effort, refine)[:, :K]
    found_QKD = vectors_ND[np.maximum(rows_QK, 0)].astype(np.float32)
    scores_QK = np.einsum("qkd,qd->qk", found_QKD, queries_QD)
    recall_Q: npt.NDArray[np.float64] = (
        (scores_QK >= tenth_Q[:, None] - 1e-6) & (rows_QK >= 0)
    ).mean(axis=1)
    return recall_Q


def exact_scores(vectors_ND: HalfVectors, queries_QD: Vectors, k: int) -> npt.NDArray[np.float32]:
    """The k highest inner products of each query, float32 [Q, K], falling; a block at a time."""
    best_QK = np.zeros((len(queries_QD), 0), dtype=np.float32)
    for start in range(0, len(vectors_ND), _BLOCK):
        scores_QN = queries_QD @ vectors_ND[start : start + _BLOCK].astype(np.float32).T
        if scores_QN.shape[1] > k:
            scores_QN = np.partition(scores_QN, scores_QN.shape[1] - k, axis=1)[:, -k:]
        best_QK = -np.sort(-np.concatenate([best_QK, scores_QN], axis=1), axis=1)[:, :k]
    return best_QK


def _median_ms(call: Callable[[int], object], repeats: int) -> float:
    call(0)
    spans = []
    for i in range(repeats):
        started = time.perf_counter()
        call(i)
        spans.append((time.perf_counter() - started) * 1e3)
    return max(float(np.median(spans)), 1e-3)
