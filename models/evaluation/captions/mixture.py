"""How many captions are wrong, and below which score, judged from two samples of scores.

Some captions of a set belong to their pictures (share 1 - p, scores distributed as G), the others
might as well stand beside any picture (share p, distributed as H). Seen are F = (1 - p) G + p H,
the scores of the captions with their own pictures, and H, their scores with other pictures.
Nothing is assumed of the shape of G or H. `Samples` and `BestScores` collect them while a source
streams by: eight bytes a caption, four a picture and language. Numpy only.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Final

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


Scores = npt.NDArray[np.floating]

FEWEST: Final = 50
"""Captions below which a share is not worth saying."""
_SHARES: Final = np.arange(0.2, 0.61, 0.05)


def wrong_share(own_M: Scores, other_M: Scores) -> float | None:
    """An estimate of p.

    F(t) / H(t) = p + (1 - p) G(t) / H(t), so each is an upper bound of p, and a close one where
    right captions hardly ever score below t (Blanchard et al. 2010, "Semi-supervised novelty
    detection", section 4). In loop form, with t = quantile(other, q):

        p = min over q in 0.2, 0.25 ... 0.6 of share(own <= t) / share(other <= t)

    Returns:
        0 to 1; None with fewer than 50 captions.
    """
    own, other = _known(own_M), _known(other_M)
    if min(len(own), len(other)) < FEWEST:
        return None
    ends = np.quantile(other, _SHARES)
    ratios = np.array([(own <= end).mean() / (other <= end).mean() for end in ends])
    return float(min(1.0, ratios.min()))


def best_floor(own_M: Scores, other_M: Scores, share: float | None = None) -> float | None:
    """The score below which dropping captions makes the fewest mistakes.

    Kept right ones and dropped wrong ones together are

        (1 - p) (1 - G(t)) + p H(t) = (1 - p) - F(t) + 2 p H(t)

    so the t is wanted that makes 2 p H(t) - F(t) largest; of several, the smallest.

    Args:
        share: p, instead of `wrong_share`.

    Returns:
        A score; minus infinity where nothing should be dropped, None with fewer than 50 captions.
    """
    own, other = _known(own_M), _known(other_M)
    if min(len(own), len(other)) < FEWEST:
        return None
    found = wrong_share(own, other)
    p = found if share is None else share
    assert p is not None
    # a caption goes if it scores below t, so F and H count what is strictly below
    ends = np.unique(np.concatenate([own, other]))
    gain = 2.0 * p * _below(other, ends) - _below(own, ends)
    at = int(gain.argmax())
    return float(ends[at]) if gain[at] > 0.0 else float("-inf")


def _known(values: Scores) -> Scores:
    flat: Scores = np.asarray(values, dtype=np.float64)
    return flat[np.isfinite(flat)]


def _below(values: Scores, ends: Scores) -> Scores:
    """The share of values below each end."""
    return np.searchsorted(np.sort(values), ends, side="left") / len(values)
