"""Scores collected while a source streams by: eight bytes a caption, four a picture and language.

Numpy and the standard library only.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_NONE = float("-inf")


class Samples:
    """Scores of captions with their own pictures, and with other ones."""

    def __init__(self) -> None:
        self._own = array("f")
        self._other = array("f")

    def add(self, own: float, other: float) -> None:
        self._own.append(own)
        self._other.append(other)

    def __len__(self) -> int:
        return len(self._own)

    def arrays(self) -> tuple[Floats, Floats]:
        """(own, other), float32 [M] each; `other` may hold NaN."""
        return np.array(self._own, dtype=np.float32), np.array(self._other, dtype=np.float32)


class BestScores:
    """The best score of each picture in each language."""

    def __init__(self) -> None:
        self._best: dict[str, array[float]] = {}
        self._pictures = 0

    def __len__(self) -> int:
        return self._pictures

    def add(self, captions: Iterable[tuple[str, float]]) -> None:
        """The (language, score) of one picture's captions."""
        self._pictures += 1
        for language, score in captions:
            column = self._best.setdefault(language, array("f"))
            column.extend([_NONE] * (self._pictures - len(column)))
            column[-1] = max(column[-1], score)

    def all_below(self, floors: Mapping[str, float]) -> int:
        """Pictures of which no caption reaches its language's floor."""
        stays_N = np.zeros(self._pictures, dtype=np.bool_)
        for language, column in self._best.items():
            best = np.array(column, dtype=np.float32)
            # a language that a picture lacks is minus infinity, below a floor of minus infinity too
            stays_N[: len(best)] |= (best >= floors[language]) & (best > _NONE)
        return int((~stays_N).sum())
