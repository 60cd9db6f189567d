"""The most repeated values of a stream, in memory that does not grow with it.

Misra & Gries 1982, "Finding repeated elements". With k counters, every value that makes up more
than 1 / (k + 1) of the stream is among those kept, and its count is too low by at most
length / (k + 1).
"""

from __future__ import annotations


class Frequent:
    """Counts a stream of texts in at most `counters` places."""

    def __init__(self, counters: int = 512) -> None:
        self._most = counters
        self._counts: dict[str, int] = {}

    def add(self, value: str) -> None:
        counts = self._counts
        if value in counts:
            counts[value] += 1
        elif len(counts) < self._most:
            counts[value] = 1
        else:
            # a full table pays for the newcomer with one of each: amortised over the adds before
            self._counts = {kept: count - 1 for kept, count in counts.items() if count > 1}

    def top(self, most: int, *, at_least: int = 2) -> list[tuple[str, int]]:
        """(value, count at least) of the most frequent, ties in order of the text."""
        found = [item for item in self._counts.items() if item[1] >= at_least]
        return sorted(found, key=lambda item: (-item[1], item[0]))[:most]
