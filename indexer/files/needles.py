"""Finds byte strings in files; `indexer.maintain.purge` looks with it whether anything is left.

Thousands of needles are sought in gigabytes at once. Each is known by eight of its bytes, those
that it shares with the fewest others; a table of them turns nearly every position down with one
look-up in numpy, and what is left is compared in full. It knows nothing of what the bytes mean.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from indexer.files.fs import open_regular

PROBE: Final = 8
_PLAIN: Final = 4
"""A needle whose every probe has fewer different bytes than this cannot be sought: it is zeros, or
nearly, and so is much of any file."""
_WINDOWS: Final = 12
"""So many places in a needle are considered for its probe."""
_BLOCK: Final = 4 << 20
_BITS: Final = 20
_SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)


class Needles:
    """Byte strings to look for; those too short or too plain to be sought are left out."""

    def __init__(self, needles: set[bytes]) -> None:
        self._by_probe: dict[bytes, list[tuple[int, bytes]]] = {}
        self.longest = PROBE
        self.count = 0
        shared = Counter(needle[at : at + PROBE] for needle in needles for at in windows(needle))
        for needle in needles:
            at = min(windows(needle), key=lambda at: shared[needle[at : at + PROBE]], default=None)
            if at is None:
                continue
            self._by_probe.setdefault(needle[at : at + PROBE], []).append((at, needle))
            self.longest = max(self.longest, len(needle))
            self.count += 1
        self._probes = np.sort(np.array(list(self._by_probe), dtype=f"V{PROBE}").view("<u8"))
        self._table = np.zeros(1 << _BITS, dtype=np.bool_)
        self._table[_slots(self._probes)] = True

    def find(self, data: bytes) -> set[bytes]:
        """Which needles occur in `data`."""
        found: set[bytes] = set()
        for offset in range(min(PROBE, max(0, len(data) - PROBE + 1))):
            words = np.frombuffer(data, dtype="<u8", offset=offset, count=(len(data) - offset) // 8)
            likely = np.flatnonzero(self._table[_slots(words)])
            likely = likely[np.isin(words[likely], self._probes)]
            for word in likely:
                here = offset + int(word) * PROBE
                for at, needle in self._by_probe[data[here : here + PROBE]]:
                    start = here - at
                    if start >= 0 and data[start : start + len(needle)] == needle:
                        found.add(needle)
        return found

    def find_in_file(self, path: Path) -> tuple[set[bytes], int]:
        """Which needles occur in a file, and how many bytes it has.

        Raises:
            OSError: it cannot be read.
        """
        found: set[bytes] = set()
        size = 0
        for block, new in _overlapping(path, self.longest - 1):
            found |= self.find(block)
            size += new
        return found, size


def windows(needle: bytes) -> list[int]:
    """Where its probe could be: some places that are not plain."""
    last = len(needle) - PROBE
    step = max(1, last // (_WINDOWS - 1))
    places = range(last, -1, -step)
    return [at for at in places if len(set(needle[at : at + PROBE])) >= _PLAIN]


def _slots(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    with np.errstate(over="ignore"):
        return ((words * _SPREAD) >> np.uint64(64 - _BITS)).astype(np.int64)


def _overlapping(path: Path, overlap: int) -> Iterator[tuple[bytes, int]]:
    """Blocks that each repeat the last `overlap` bytes, and how many bytes are new."""
    tail = b""
    with os.fdopen(open_regular(path), "rb") as stream:
        while data := stream.read(_BLOCK):
            block = tail + data
            yield block, len(data)
            tail = block[-overlap:] if overlap else b""
