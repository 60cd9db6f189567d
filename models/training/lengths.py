"""How long captions are, in characters: counts by length, so that quantiles are exact."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import Final

LENGTH_BINS: Final = (8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper ends of the histogram's bins; one more holds what is longer."""
_LONGEST: Final = 4096


class Lengths:
    """Caption lengths of one language in characters, kept as one count a length up to 4,096."""

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * (_LONGEST + 1)))
        self.captions = 0
        self.longest = 0

    def add(self, length: int) -> None:
        self._counts[min(length, _LONGEST)] += 1
        self.captions += 1
        self.longest = max(self.longest, length)

    def quantile(self, share: float) -> int:
        """The smallest length that `share` of the captions do not exceed; 4,096 at most."""
        wanted, below = share * self.captions, 0
        for length, count in enumerate(self._counts):
            below += count
            if count and below >= wanted:
                return length
        return 0

    def histogram(self) -> list[int]:
        """Captions per bin of `LENGTH_BINS`, and one more."""
        bins = [0] * (len(LENGTH_BINS) + 1)
        for length, count in enumerate(self._counts):
            bins[bisect_left(LENGTH_BINS, length)] += count
        return bins


def bin_names() -> list[str]:
    """What the bins are called, `1-8` to `1025-`."""
    starts = [1, *(end + 1 for end in LENGTH_BINS)]
    return [
        *(f"{start}-{end}" for start, end in zip(starts, LENGTH_BINS, strict=False)),
        f"{starts[-1]}-",
    ]
