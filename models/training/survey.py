"""Counting along while something else reads a source: how many pairs, held back or not, and which.

The data report reads everything once before the first step; this sits between it and the source,
so that the same pass also tells how long an epoch is and whether a continued run has the data it
began with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

from models.sources.records import Record, Row, Source, SourceWrapper, is_held_out
from models.training.mixing import usable

LADDER: Final = (10, 100, 1_000, 10_000)
"""One record in so many may be held back for validation; which of these is decided by the count."""
FEWEST_TO_HOLD: Final = 100
_MOST_HELD: Final = 1_000


class Surveyed(SourceWrapper):
    """A source that counts its pairs as it is read. Reading it again counts again.

    Attributes:
        source: what is read, for whoever wants it without the counting.
        pairs: usable records.
        held: of these, how many each rung of the ladder would hold back.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.pairs = 0
        self.held = dict.fromkeys(LADDER, 0)
        self._digest = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Of keys, captions and sizes of pictures, in order: other data, another digest."""
        return self._digest.hexdigest()[:32]

    def parts(self) -> list[Source]:
        """The source's own, uncounted: they are read in pieces and again and again."""
        return self.source.parts()

    def __iter__(self) -> Iterator[Row]:
        self.pairs = 0
        self.held = dict.fromkeys(LADDER, 0)
        self._digest = hashlib.sha256()
        for row in self.source:
            if isinstance(row, Record) and usable(row):
                self.pairs += 1
                for one_in in LADDER:
                    self.held[one_in] += is_held_out(row.key, one_in)
                size = len(row.image or b"")
                described = f"{row.key}\0{size}\0{sorted(row.texts.items())}\n"
                self._digest.update(described.encode("utf-8", "surrogatepass"))
            yield row


def one_in_for(pairs: int) -> int | None:
    """How many records to hold one of back for validation; None where there are too few to spare.

    Between 10 and 1,000 pictures: fewer tell nothing, more cost time at every validation.

    Example:
        >>> [one_in_for(n) for n in (99, 100, 9_999, 10_000, 2_000_000)]
        [None, 10, 10, 10, 10000]
    """
    if pairs < FEWEST_TO_HOLD:
        return None
    return next((rung for rung in LADDER if pairs // rung <= _MOST_HELD), LADDER[-1])
