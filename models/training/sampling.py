"""Which record comes when: endless passes over sources, each in another order, always the same.

The order of a pass depends on the seed, the pass and the sources alone, so a run can be continued
anywhere and every rank of a distributed run sees the same order. Shards are opened in random
order, a few at a time, and their records go through a bounded buffer; nothing is extracted and no
list of the records is kept. Knows neither pictures nor models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from models.errors import SourceError
from models.sources.records import Record, Source

OPEN_PARTS: Final = 4
"""Files read at a time: more mix better, and each is an open file."""

BUFFER_RECORDS: Final = 4_096
BUFFER_BYTES: Final = 256 * 1024**2
"""Encoded pictures that wait to be drawn: 256 MiB are some 2,000 photographs."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A record, and the name of its own random numbers (see `generator`)."""

    record: Record
    name: str

    def generator(self) -> Random:
        """The same numbers wherever and whenever the record is worked on."""
        return Random(self.name)  # noqa: S311  # augmentation, not secrets


class Shuffled:
    """Passes over the usable records of some sources.

    Args:
        sources: read once a pass.
        usable: which records count; the others are passed over.
        seed: of the order.
        name: keeps the random numbers of several streams apart.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        usable: Callable[[Record], bool],
        *,
        seed: int,
        name: str,
        buffer: int = BUFFER_RECORDS,
    ) -> None:
        self._parts = [part for source in sources for part in source.parts()]
        self._usable = usable
        self._seed = seed
        self._name = name
        self._buffer = buffer

    def epoch(self, number: int) -> Iterator[Drawn]:
        """One pass."""
        name = f"{self._seed}/{self._name}/{number}"
        dice = Random(name)  # noqa: S311
        for position, record in enumerate(self._through_buffer(self._interleaved(dice), dice)):
            yield Drawn(record, f"{name}/{position}")

    def endless(self, *, skip: int = 0, length: int) -> Iterator[Drawn]:
        """Pass after pass, without the first `skip` records; `length` is that of one pass.

        Whole passes are skipped by counting, the rest by reading.
        """
        number, within = divmod(skip, length)
        while True:
            found = 0
            for drawn in self.epoch(number):
                found += 1
                if found > within:
                    yield drawn
            if not found:
                raise SourceError("the source holds no usable records any more")
            number, within = number + 1, 0

    def _interleaved(self, dice: Random) -> Iterator[Record]:
        """Records of a few parts at a time, the next part of a record drawn evenly."""
        waiting = list(self._parts)
        dice.shuffle(waiting)
        waiting.reverse()
        opened: list[Iterator[Record]] = []
        while waiting or opened:
            while waiting and len(opened) < OPEN_PARTS:
                opened.append(self._records(waiting.pop()))
            at = dice.randrange(len(opened))
            record = next(opened[at], None)
            if record is None:
                opened.pop(at)
            else:
                yield record

    def _records(self, part: Source) -> Iterator[Record]:
        for row in part:
            if isinstance(row, Record) and self._usable(row):
                yield row

    def _through_buffer(self, records: Iterator[Record], dice: Random) -> Iterator[Record]:
        held: list[Record] = []
        size = 0
        for record in records:
            held.append(record)
            size += len(record.image or b"")
            while len(held) > self._buffer or (size > BUFFER_BYTES and len(held) > 1):
                drawn = _take(held, dice)
                size -= len(drawn.image or b"")
                yield drawn
        while held:
            yield _take(held, dice)


def _take(held: list[Record], dice: Random) -> Record:
    """A random one; the last takes its place, so that nothing is moved."""
    at = dice.randrange(len(held))
    held[at], held[-1] = held[-1], held[at]
    return held.pop()


def group_of(content: bytes) -> int:
    """A number for what must not be contrasted with itself: equal bytes, equal numbers.

    Of 10 million different pictures two share a number with a probability below 1e-5.
    """
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)
