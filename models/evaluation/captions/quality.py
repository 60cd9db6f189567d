"""The quality of a captioned set: how its captions score, which are worst, what is there twice.

`QualityReport` collects what `models.evaluation.captions.alignment` yields, `NearDuplicates`
vectors; nothing is read or printed here. `diptych data report` shows both.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.errors import InputError
from models.evaluation.captions.alignment import CaptionScore, Scored
from models.evaluation.captions.mixture import Samples, best_floor, wrong_share
from models.near_duplicates import HalfVectors, stars
from models.sources.records import Reject
from models.vectors import Vectors

QUANTILES: Final = (1, 5, 25, 50, 75, 95)
EDGES: Final = tuple(round(-0.3 + 0.05 * step, 2) for step in range(27))
"""Of the histogram's bins; the first and the last one take in what lies beyond."""


@dataclass(frozen=True, slots=True)
class LanguageQuality:
    """How the captions of one language score.

    Attributes:
        quantiles: score by percent; `other_quantiles` of captions with other pictures.
        histogram, other_histogram: counts per bin of `EDGES`.
        wrong: estimated share of captions that might as well stand beside any picture.
        floor: where dropping makes the fewest mistakes; None for too few captions.
        below: captions below that floor.
    """

    captions: int
    mean: float
    quantiles: dict[int, float]
    other_quantiles: dict[int, float]
    histogram: list[int]
    other_histogram: list[int]
    wrong: float | None
    floor: float | None
    below: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible; a floor that drops nothing is null, as is one that is not known."""
        has_floor = self.floor is not None and np.isfinite(self.floor)
        return {
            "captions": self.captions,
            "mean": self.mean,
            "quantiles": {f"p{q}": value for q, value in self.quantiles.items()},
            "other_quantiles": {f"p{q}": value for q, value in self.other_quantiles.items()},
            "histogram": {
                "edges": list(EDGES),
                "own": self.histogram,
                "other": self.other_histogram,
            },
            "estimated_wrong": self.wrong,
            "suggested_floor": self.floor if has_floor else None,
            "below_suggested": self.below,
        }


class QualityReport:
    """What `score_pairs` yielded, gathered: 8 bytes a caption and the worst ones in full.

    Args:
        worst: how many of the lowest scored captions to keep.
    """

    def __init__(self, worst: int = 20) -> None:
        self.pictures = 0
        self.rejects: list[Reject] = []
        """The first hundred, of `rejected` in all."""
        self.rejected = 0
        self._most = worst
        self._samples: dict[str, Samples] = {}
        # a heap of the worst: the best of them on top, later ones first among equals
        self._worst: list[tuple[float, int, Scored, CaptionScore]] = []
        self._captions = 0

    def add(self, row: Scored | Reject) -> None:
        if isinstance(row, Reject):
            self.rejected += 1
            if len(self.rejects) < 100:
                self.rejects.append(row)
            return
        self.pictures += 1
        for caption in row.captions:
            self._samples.setdefault(caption.language, Samples()).add(caption.score, caption.other)
            self._captions += 1
            if self._most:
                entry = (-caption.score, -self._captions, row, caption)
                if len(self._worst) < self._most:
                    heapq.heappush(self._worst, entry)
                elif entry > self._worst[0]:
                    heapq.heapreplace(self._worst, entry)

    def worst(self) -> list[tuple[Scored, CaptionScore]]:
        """The lowest scored captions, the worst first, equal ones in the set's order."""
        return [(row, caption) for _, _, row, caption in sorted(self._worst, reverse=True)]

    def samples(self) -> dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """Scores by language: (own, with other pictures), float32 [M] each."""
        return {language: one.arrays() for language, one in sorted(self._samples.items())}

    def languages(self) -> dict[str, LanguageQuality]:
        return {language: _quality(*arrays) for language, arrays in self.samples().items()}

    def to_dict(self) -> dict[str, Any]:
        return {
            "pictures": self.pictures,
            "languages": {tag: one.to_dict() for tag, one in self.languages().items()},
            "worst": [
                {
                    "key": row.key,
                    "uri": row.uri,
                    "language": caption.language,
                    "text": caption.text,
                    "score": caption.score,
                }
                for row, caption in self.worst()
            ],
            "rejected": self.rejected,
        }

    def lines(self) -> list[str]:
        """For people."""
        lines = []
        for language, one in self.languages().items():
            spread = "  ".join(f"{q} %: {value:.3f}" for q, value in one.quantiles.items())
            lines.append(
                f"{language}: {one.captions} captions, mean cosine {one.mean:.3f};  {spread}"
            )
            if one.wrong is None or one.floor is None:
                lines.append("  too few to say how many are wrong")
                continue
            lines.append(
                f"  with other pictures: median {one.other_quantiles[50]:.3f}, "
                f"95 % within {one.other_quantiles[95]:.3f}"
            )
            lines.append(f"  about {100 * one.wrong:.0f} % look mismatched")
            if np.isfinite(one.floor):
                lines.append(
                    f"  a floor of {one.floor:.3f} makes the fewest mistakes; below it: {one.below}"
                )
        worst = self.worst()
        if worst:
            lines.append(f"the {len(worst)} captions that fit least:")
            lines += [
                f"  {caption.score:6.3f}  {row.key}  [{caption.language}] {caption.text[:100]}"
                for row, caption in worst
            ]
        return lines


def _quality(own_M: npt.NDArray[np.float32], other_M: npt.NDArray[np.float32]) -> LanguageQuality:
    known_M = other_M[np.isfinite(other_M)]
    floor = best_floor(own_M, other_M)
    return LanguageQuality(
        captions=len(own_M),
        mean=float(own_M.mean()),
        quantiles=_quantiles(own_M),
        other_quantiles=_quantiles(known_M) if len(known_M) else {},
        histogram=_histogram(own_M),
        other_histogram=_histogram(known_M),
        wrong=wrong_share(own_M, other_M),
        floor=floor,
        below=0 if floor is None else int((own_M < floor).sum()),
    )


def _quantiles(values_M: npt.NDArray[np.float32]) -> dict[int, float]:
    found = np.percentile(values_M, QUANTILES)
    return {q: float(value) for q, value in zip(QUANTILES, found, strict=True)}


def _histogram(values_M: npt.NDArray[np.float32]) -> list[int]:
    inside_M = np.clip(values_M.astype(np.float64), EDGES[0], EDGES[-1])
    counts, _ = np.histogram(inside_M, bins=EDGES)
    return [int(count) for count in counts]


@dataclass(frozen=True, slots=True)
class NearGroup:
    """The key to keep, and (key, cosine, the same bytes) of those close to it."""

    keep: str
    others: tuple[tuple[str, float, bool], ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "keep": self.keep,
            "others": [
                {"key": key, "cosine": round(min(cosine, 1.0), 6), "same_bytes": same}
                for key, cosine, same in self.others
            ],
        }


class NearDuplicates:
    """Groups of near-duplicate pictures by embedding; close it, or use it as a context.

    The vectors wait in an unnamed temporary file, float16, so that memory stays flat, and every
    pair is compared (`models.near_duplicates`): a minute for 100,000 pictures, hours for a million.
    Of each group the first picture of the set is the one to keep.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self._keys: list[tuple[str, str]] = []

    def __enter__(self) -> NearDuplicates:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def add(self, key: str, sha256: str, vector_D: Vectors) -> None:
        self._keys.append((key, sha256))
        self._file.write(vector_D.astype(np.float16).tobytes())

    def groups(
        self,
        threshold: float,
        *,
        on_progress: Callable[[int, int], None] = lambda *_: None,
    ) -> Iterator[NearGroup]:
        """Groups of two pictures and more, in the order of the set.

        Raises:
            InputError: the threshold is out of range.
        """
        if not 0.0 < threshold <= 1.0:
            raise InputError("the threshold is a cosine above 0 and at most 1")
        if not self._keys:
            return
        self._file.flush()
        rows = len(self._keys)
        vectors_ND: HalfVectors = np.memmap(
            self._file, dtype=np.float16, mode="r", shape=(rows, self._dim)
        )
        places_R2 = np.stack([np.zeros(rows, dtype=np.int64), np.arange(rows)], axis=1)
        for kept, others in stars([vectors_ND], places_R2, threshold, on_progress):
            key, sha256 = self._keys[kept]
            ordered = sorted(others, key=lambda one: (-one[1], one[0]))
            yield NearGroup(
                key,
                tuple(
                    (self._keys[at][0], cosine, self._keys[at][1] == sha256)
                    for at, cosine in ordered
                ),
            )
