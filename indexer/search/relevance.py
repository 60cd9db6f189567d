"""Relevance: how far a hit stands out of its index, measured against a background of queries.

A cosine means nothing by itself: its level depends on the model, on the kind of query and on the
collection. So a version of an index keeps what queries without an answer look like here, and a hit
is judged against that. For a query q of kind text or mixed, a hit of cosine s, the mean m of what
the target's live vectors show and the mean b of the embedded background queries:

    excess   = (s - q.m - mean) / std      how far the hit stands out of this collection
    nonsense = (q.b - mean) / std          how much the query itself resembles the background
    t        = min(excess - nonsense, 4 * (excess - low))

with means, deviations and `low` (the lower quartile of excess) taken over the background queries
themselves. The second of the two keeps a fine query that nothing in the collection answers from
passing on its wording alone. For a query that is a picture t = s, and what counts is how close the
collection's own pictures are to their nearest neighbours. In both cases

    relevance = 1 / (1 + exp((gate - t) / width))

Sixty shots of one cat among ten other pictures would be most of a plain mean, and "a cat" would not
stand out of it. So in m each row counts by 1 over how many rows are like it: what is shown often
weighs as what is shown once (`mean_vector`). And where words reach a higher cosine than any
background query does anywhere in the collection, they fit, whatever their standing: t = s is judged
besides, with the gate at that highest cosine, and the better of the two relevances counts.

One half is the gate: 95 of 100 background queries stay below it, and 80 of 100 that are a picture
of the collection with background words added (a gate of 95 there would turn away 4 of 10 fitting
ones); of the collection's own pictures one in ten does. Within a query relevance never falls when
the score rises.

Small collections are judged with what there is: from two rows on by words, from eight pictures on
by pictures, None below. Queries without an answer are told from real ones nearly as well in ten
photographs as in a thousand, because half of the evidence is the query's own.

Measured before it was chosen (tests/bench/relevance.py): the plain z-score, (s - q.m) divided by
sqrt(q.C.q), is much weaker than even the raw cosine, because nonsense has a small spread too; so
only means are kept. The idea of judging a hit by a bank of other queries is that of Bogolin et
al. 2022 (arXiv:2112.12777). Knows numpy arrays, nothing of files, manifests or encoders.

Shapes: N rows, D embedding, Q queries, S sampled pictures, K hits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from indexer.format.segment import HalfVectors
from indexer.search.options import NEAR_DUPLICATE, Target
from indexer.search.reader import QueryKind
from models.vectors import Vectors, unit_rows

Floats: TypeAlias = npt.NDArray[np.float64]
LiveRows: TypeAlias = tuple[HalfVectors, npt.NDArray[np.bool_]]
"""The rows of one segment, float16 [N, D], and which of them live, bool [N]."""

MIN_ROWS: Final = 2
"""Of one row nothing can stand out."""
MIN_NEIGHBOURS: Final = 8
"""Below this many pictures their nearest neighbours say little."""
_SAMPLE: Final = 512
_DENSITY_SAMPLE: Final = 256
_ROWS_AT_ONCE: Final = 2048
_TEXT_GATE: Final = 0.95
_MIXED_GATE: Final = 0.80
_NEIGHBOUR_GATE: Final = 0.10
_STEEPNESS: Final = 4.0
_LOGIT_95: Final = float(np.log(19.0))
# deviations of cosines below this are rounding, and would make everything stand out
_LEAST_STD: Final = 1e-3
_LEAST_WIDTH: Final = 0.1
_LEAST_COSINE_WIDTH: Final = 0.01


@dataclass(frozen=True, slots=True)
class Standing:
    """How queries of words, alone or beside a picture, are judged; see the module.

    `reach` is the highest cosine of a background query with anything here, and `reach_width` its
    width; None in backgrounds that earlier releases measured, whose means are plain ones.
    """

    excess_mean: float
    excess_std: float
    nonsense_mean: float
    nonsense_std: float
    low: float
    gate: float
    width: float
    reach: float | None = None
    reach_width: float | None = None

    def relevance(self, score_K: Floats, excess_K: Floats, nonsense: float) -> Floats:
        """From s, s - q.m and q.b."""
        found_K = _logistic((self.statistic(excess_K, nonsense) - self.gate) / self.width)
        if self.reach is None or self.reach_width is None:
            return found_K
        return np.maximum(found_K, _logistic((score_K - self.reach) / self.reach_width))

    def statistic(self, excess_K: Floats, nonsense: float | Floats) -> Floats:
        """t from s - q.m and q.b."""
        excess_K = (excess_K - self.excess_mean) / self.excess_std
        nonsense = (nonsense - self.nonsense_mean) / self.nonsense_std
        return np.minimum(excess_K - nonsense, _STEEPNESS * (excess_K - self.low))


@dataclass(frozen=True, slots=True)
class Neighbours:
    """How queries that are pictures are judged: t is the cosine itself."""

    gate: float
    width: float


@dataclass(frozen=True, slots=True)
class TargetBackground:
    """The background of one modality's `rows` live rows; a kind that cannot be judged is None."""

    rows: int
    text: Standing | None = None
    mixed: Standing | None = None
    image: Neighbours | None = None


@dataclass(frozen=True)  # no slots: it keeps a cached property
class Background:
    """Everything relevance needs of a version.

    Attributes:
        queries_QD: float32 [Q, D], the embedded background queries.
        mean_D: per target, `mean_vector` of its live vectors, float32 [D]; zeros without any.
        targets: per target, how its hits are judged.
    """

    queries_QD: Vectors
    mean_D: dict[Target, Vectors]
    targets: dict[Target, TargetBackground]

    @cached_property
    def mean_query(self) -> Floats:
        """The mean of the background queries, b in the module, float64 [D]."""
        mean_D: Floats = self.queries_QD.mean(axis=0, dtype=np.float64)
        return mean_D

    def relevance(
        self,
        query_D: Vectors,
        scores_K: Sequence[float],
        *,
        kind: QueryKind,
        target: Target,
    ) -> list[float] | None:
        """Relevance of each score, in (0, 1); None where this index cannot judge such a query."""
        scale = getattr(self.targets[target], kind)
        if scale is None:
            return None
        scores = np.asarray(scores_K, dtype=np.float64)
        if isinstance(scale, Standing):
            wide_D = np.asarray(query_D, dtype=np.float64)
            excess_K = scores - wide_D @ self.mean_D[target]
            found_K = scale.relevance(scores, excess_K, float(wide_D @ self.mean_query))
        else:
            found_K = _logistic((scores - scale.gate) / scale.width)
        found: list[float] = found_K.tolist()
        return found


def measure(
    queries_QD: Vectors,
    images: Sequence[LiveRows],
    texts: Sequence[LiveRows],
    known: Background | None = None,
    stale: Collection[Target] = ("images", "texts"),
) -> Background:
    """The background of the live rows, from every one of them.

    Reads all vectors twice: about 2 N D (2 Q + 3 S / 2) floating-point operations.

    Args:
        known: of an earlier version, whose targets are kept but for those that are `stale`.
    """
    sample_SD = _sample(images, queries_QD.shape[1])
    probes = _Probes(queries_QD.astype(np.float32), sample_SD)
    mean_D: dict[Target, Vectors] = {}
    targets: dict[Target, TargetBackground] = {}
    both: tuple[tuple[Target, Sequence[LiveRows]], ...] = (("images", images), ("texts", texts))
    for target, parts in both:
        if known is not None and target not in stale:
            mean_D[target], targets[target] = known.mean_D[target], known.targets[target]
            continue
        mean, rows = mean_vector(parts, queries_QD.shape[1])
        mean_D[target] = mean
        targets[target] = _target(probes, parts, mean, rows, own=target == "images")
    return Background(probes.text_QD, mean_D, targets)


def mean_vector(parts: Sequence[LiveRows], dim: int) -> tuple[Vectors, int]:
    """The mean of what the live rows show -> (float32 [D], rows); zeros for no rows.

        sum(w[i] * row[i]) / sum(w),  w[i] = 1 / max(1, N / S * sum over s of max(0, cos(i, s))^2)

    with S evenly spaced rows for all N: w is 1 over about how many rows are like row i.
    """
    sample_SD = _sample(parts, dim, _DENSITY_SAMPLE)
    total_D, weights, rows = np.zeros(dim, dtype=np.float64), 0.0, 0
    everything = sum(int(live_N.sum()) for _, live_N in parts)
    for block_ND in _blocks(parts):
        cosine_NS = np.maximum(block_ND @ sample_SD.T, 0.0)
        alike_N = np.einsum("ns,ns->n", cosine_NS, cosine_NS, dtype=np.float64)
        weight_N = 1.0 / np.maximum(alike_N * everything / len(sample_SD), 1.0)
        total_D += weight_N @ block_ND
        weights += float(weight_N.sum())
        rows += len(block_ND)
    return (total_D / (weights or 1.0)).astype(np.float32), rows


class _Probes:
    """The queries whose best hit is measured: words, sampled pictures, and both together."""

    def __init__(self, text_QD: Vectors, sample_SD: Vectors) -> None:
        self.text_QD = text_QD
        self.image_SD = sample_SD
        self.mixed_owner = np.arange(len(text_QD)) % max(len(sample_SD), 1)
        mixed_QD = text_QD + sample_SD[self.mixed_owner] if len(sample_SD) else text_QD[:0]
        # opposite vectors leave nothing to search for
        kept = np.einsum("qd,qd->q", mixed_QD, mixed_QD) > 1e-6
        self.mixed_QD = unit_rows(mixed_QD[kept]) if kept.any() else text_QD[:0]
        self.mixed_owner = self.mixed_owner[: len(mixed_QD)][kept]

    def best(self, parts: Sequence[LiveRows], positions_S: npt.NDArray[np.int64]) -> list[Floats]:
        """Highest cosine of each text, image and mixed probe.

        `positions_S` are the live positions of the sampled pictures among the rows, which must not
        find themselves; empty when the rows are of another modality.
        """
        groups = (self.text_QD, self.image_SD, self.mixed_QD)
        probes_PD = np.concatenate(groups)
        own_P = np.full(len(probes_PD), -1, dtype=np.int64)
        if len(positions_S):
            start = len(self.text_QD)
            own_P[start : start + len(self.image_SD)] = positions_S
            own_P[start + len(self.image_SD) :] = positions_S[self.mixed_owner]
        best_P = np.full(len(probes_PD), -np.inf)
        first = 0
        for block_ND in _blocks(parts):
            scores_PN = probes_PD @ block_ND.T
            inside = (own_P >= first) & (own_P < first + len(block_ND))
            scores_PN[inside, own_P[inside] - first] = -np.inf
            np.maximum(best_P, scores_PN.max(axis=1), out=best_P)
            first += len(block_ND)
        ends = np.cumsum([len(group) for group in groups])[:-1]
        return np.split(best_P, ends)


def _target(
    probes: _Probes, parts: Sequence[LiveRows], mean_D: Vectors, rows: int, *, own: bool
) -> TargetBackground:
    if rows < MIN_ROWS:
        return TargetBackground(rows)
    positions_S = _positions(rows) if own else np.zeros(0, dtype=np.int64)
    text_Q, image_S, mixed_Q = probes.best(parts, positions_S)
    nonsense_Q = _nonsense_of_itself(probes.text_QD)
    enough = len(probes.image_SD) >= MIN_NEIGHBOURS
    mixed = None
    if enough and len(probes.mixed_QD):
        nonsense = probes.mixed_QD.astype(np.float64) @ probes.text_QD.mean(axis=0)
        mixed = _standing(
            mixed_Q, (probes.mixed_QD @ mean_D).astype(np.float64), nonsense, gate=_MIXED_GATE
        )
    return TargetBackground(
        rows,
        text=_standing(
            text_Q, (probes.text_QD @ mean_D).astype(np.float64), nonsense_Q, gate=_TEXT_GATE
        ),
        mixed=mixed,
        image=_neighbours(image_S) if enough else None,
    )


def _nonsense_of_itself(text_QD: Vectors) -> Floats:
    """q.b of each background query against the others."""
    with_itself_Q: Floats = text_QD.astype(np.float64) @ text_QD.sum(axis=0, dtype=np.float64)
    return (with_itself_Q - 1.0) / max(len(text_QD) - 1, 1)


def _standing(best_Q: Floats, level_Q: Floats, nonsense_Q: Floats, *, gate: float) -> Standing:
    """From each query's highest cosine, its q.m and its q.b."""
    excess_Q = best_Q - level_Q
    mean, std = float(excess_Q.mean()), max(float(excess_Q.std()), _LEAST_STD)
    ungated = Standing(
        excess_mean=mean,
        excess_std=std,
        nonsense_mean=float(nonsense_Q.mean()),
        nonsense_std=max(float(nonsense_Q.std()), _LEAST_STD),
        low=float(np.quantile((excess_Q - mean) / std, 0.25)),
        gate=0.0,
        width=1.0,
    )
    middle, top = np.quantile(ungated.statistic(excess_Q, nonsense_Q), [0.5, gate])
    width = max(float(top - middle) / _LOGIT_95, _LEAST_WIDTH)
    usual = float(np.median(best_Q))
    reach_width = max((float(best_Q.max()) - usual) / _LOGIT_95, _LEAST_COSINE_WIDTH)
    # where the background has no spread at all, beating it takes more than equalling it
    return replace(
        ungated,
        gate=float(middle) + width * _LOGIT_95,
        width=width,
        reach=usual + reach_width * _LOGIT_95,
        reach_width=reach_width,
    )


def _neighbours(best_S: Floats) -> Neighbours:
    gate, middle = np.quantile(best_S, [_NEIGHBOUR_GATE, 0.5])
    width = max(float(middle - gate) / _LOGIT_95, _LEAST_COSINE_WIDTH)
    # in a collection of duplicates every neighbour is at 1, and a copy must still pass the gate
    return Neighbours(gate=min(float(middle) - width * _LOGIT_95, NEAR_DUPLICATE), width=width)


def _positions(rows: int, most: int = _SAMPLE) -> npt.NDArray[np.int64]:
    """Evenly spaced positions of at most so many rows."""
    count = min(rows, most)
    return np.arange(count, dtype=np.int64) * rows // max(count, 1)


def _sample(parts: Sequence[LiveRows], dim: int, most: int = _SAMPLE) -> Vectors:
    rows = sum(int(live.sum()) for _, live in parts)
    wanted = _positions(rows, most)
    found, first = [np.zeros((0, dim), dtype=np.float32)], 0
    for block_ND in _blocks(parts):
        inside = wanted[(wanted >= first) & (wanted < first + len(block_ND))] - first
        found.append(block_ND[inside])
        first += len(block_ND)
    return np.concatenate(found)


def _blocks(parts: Sequence[LiveRows]) -> Iterator[Vectors]:
    """The live rows as float32, a block at a time, in order."""
    for vectors_ND, live_N in parts:
        for start in range(0, len(vectors_ND), _ROWS_AT_ONCE):
            end = start + _ROWS_AT_ONCE
            block_ND = vectors_ND[start:end][live_N[start:end]].astype(np.float32)
            if len(block_ND):
                yield block_ND


def _logistic(x: Floats) -> Floats:
    # clipped: exp(1000) overflows, and nobody reads the tenth nine
    clipped: Floats = 1.0 / (1.0 + np.exp(-np.clip(x, -60.0, 60.0)))
    return clipped
