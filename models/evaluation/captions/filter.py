"""A source without its badly fitting captions, for training.

Two steps: `filter_sources` scores everything once, decides the floors and says what goes; the
sources it returns look scores up and can be read as often as a trainer likes, without the encoder.
Knows no training loop.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from models.encoder import Encoder
from models.errors import InputError, SourceError
from models.evaluation.captions.alignment import ScoreMemory, score_pairs
from models.evaluation.captions.mixture import FEWEST, BestScores, Samples, best_floor, wrong_share
from models.sources.records import Record, Reject, Row, Source, SourceWrapper

Floor = float | Literal["auto"]


@dataclass(slots=True)
class FilterReport:
    """What a filter does, by language where there is more than one way to say it.

    Attributes:
        floors: the lowest score that stays; minus infinity keeps everything.
        wrong: estimated share of wrong captions before, see `models.evaluation.captions.mixture`.
        captions, dropped: by language.
        pictures: with captions; dropped_pictures of these have none left.
    """

    floors: dict[str, float] = field(default_factory=dict)
    wrong: dict[str, float | None] = field(default_factory=dict)
    captions: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    pictures: int = 0
    dropped_pictures: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible: a floor of minus infinity, which keeps everything, is null."""
        return {
            "floors": {
                language: floor if np.isfinite(floor) else None
                for language, floor in sorted(self.floors.items())
            },
            "estimated_wrong": dict(sorted(self.wrong.items())),
            "captions": dict(sorted(self.captions.items())),
            "dropped_captions": dict(sorted(self.dropped.items())),
            "pictures": self.pictures,
            "dropped_pictures": self.dropped_pictures,
        }

    def lines(self) -> list[str]:
        """For people."""
        lines = []
        for language in sorted(self.captions):
            count, dropped = self.captions[language], self.dropped[language]
            wrong = self.wrong[language]
            guess = "" if wrong is None else f"; about {100 * wrong:.0f} % look mismatched"
            lines.append(
                f"filter: {language} captions below {self.floors[language]:.3f}: {dropped} of "
                f"{count} left out ({100 * dropped / count:.1f} %){guess}"
            )
        if self.dropped_pictures:
            lines.append(
                f"filter: {self.dropped_pictures} of {self.pictures} pictures have no caption left"
            )
        return lines


class FilteredSource(SourceWrapper):
    """A source without the captions below the floor of their language, and without the records
    that had captions and have none left. What was never scored stays as it is: pictures that do
    not decode are for the trainer to report.
    """

    def __init__(self, source: Source, memory: ScoreMemory, floors: Mapping[str, float]) -> None:
        super().__init__(source)
        self._memory = memory
        self._floors = dict(floors)

    def __iter__(self) -> Iterator[Row]:
        for row in self.source:
            if not isinstance(row, Record) or row.image is None or not row.texts:
                yield row
                continue
            sha256 = hashlib.sha256(row.image).hexdigest()
            texts = {
                language: tuple(text for text in texts if self._stays(sha256, language, text))
                for language, texts in row.texts.items()
            }
            left = {language: kept for language, kept in texts.items() if kept}
            if left:
                yield replace(row, texts=left)

    def _stays(self, sha256: str, language: str, text: str) -> bool:
        score = self._memory.get(sha256, text)
        return score is None or score[0] >= self._floors.get(language, float("-inf"))


def filter_sources(
    sources: Sequence[Source],
    encoder: Encoder,
    floor: Floor,
    memory: ScoreMemory,
    *,
    on_picture: Callable[[], object] | None = None,
) -> tuple[list[Source], FilterReport]:
    """Score the sources and leave out the captions below the floor.

    Args:
        sources: readable more than once; standard input is not.
        encoder: the pair that judges.
        floor: a cosine for all languages, or `auto`: for each language the score that makes the
            fewest mistakes, see `models.evaluation.captions.mixture.best_floor`.
        memory: of the encoder; afterwards it knows every pair of the sources.

    Raises:
        InputError: a floor that is not a cosine; standard input.
        SourceError: `all-filtered`: no caption is left; `too-few-pairs` for `auto`.
    """
    if floor != "auto" and not -1.0 <= floor <= 1.0:
        raise InputError(f"the floor {floor} is not a cosine between -1 and 1")
    if not all(source.rereadable for source in sources):
        raise InputError(
            "filtering reads a source twice, and standard input can be read once",
            hint="write it to a file first",
        )
    samples: dict[str, Samples] = {}
    best = BestScores()
    report = FilterReport()
    for source in sources:
        for scored in score_pairs(source, encoder, memory, on_picture=on_picture):
            if isinstance(scored, Reject):
                continue
            for caption in scored.captions:
                sample = samples.setdefault(caption.language, Samples())
                sample.add(caption.score, caption.other)
                report.captions[caption.language] += 1
            best.add((one.language, one.score) for one in scored.captions)
    report.pictures = len(best)
    for language, sample in samples.items():
        own_M, other_M = sample.arrays()
        report.wrong[language] = wrong_share(own_M, other_M)
        report.floors[language] = _floor_of(language, floor, own_M, other_M)
        report.dropped[language] = int((own_M < report.floors[language]).sum())
    report.dropped_pictures = best.all_below(report.floors)
    if report.pictures and report.dropped_pictures == report.pictures:
        highest = max(float(sample.arrays()[0].max()) for sample in samples.values())
        raise SourceError(
            f"every caption scores below {floor}; the best one has {highest:.3f}",
            code="all-filtered",
            hint="look at the scores: diptych data report SOURCE; or use --filter-below auto",
        )
    return [FilteredSource(source, memory, report.floors) for source in sources], report


def _floor_of(
    language: str, floor: Floor, own_M: np.ndarray[Any, Any], other_M: np.ndarray[Any, Any]
) -> float:
    if floor != "auto":
        return float(np.float32(floor))  # scores are kept as such, and equal ones stay
    found = best_floor(own_M, other_M)
    if found is None:
        raise SourceError(
            f"{len(own_M)} captions in {language}; finding a floor takes at least {FEWEST}, and "
            "more than one picture",
            code="too-few-pairs",
            hint="name a floor: --filter-below 0.1",
        )
    return found
