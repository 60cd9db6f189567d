"""Finds the bytes that a damaged list had: sorted slots of one width, whose sha256 is known.

    whole = heal(form, entry, data, clues)     the file as the manifest sums it, or None

The manifest vouches for a list with a sha256, so a guess that has this sum is no guess any more.
What is left of the file gives most slots; the clues, which come from elsewhere in the index, give
those that were lost; and single bits and bytes are tried in turn, as a disk or memory spoils them.
All of it within a limit of work: some seconds, twenty for a long list without a clue.
`indexer.maintain.deletions` collects the clues for tombstones and erasure lists. It reads and
writes no file.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice, product
from typing import Final

import numpy as np

from indexer.format.entries import ErasedEntry, TombstoneEntry
from indexer.format.npy import Descr, npy_header

_WORK: Final = 1 << 30
"""Bytes to sum in each of the stages of a search: a second or two on one core."""
_DEAR: Final = 12
_START: Final = 1500
_SLOT: Final = 150
"""What beginning one more sum costs, and putting a slot into its place, in bytes summed."""
_CHOICES: Final = 4_000
"""So many ways to fill the gaps of a list are tried, and so many rows considered for one gap."""

Slots = Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Form:
    """How a list lies in its file; in memory its slots sort as bytes do.

    Attributes:
        descr: numpy's name of the array's type; <i8 is turned to big-endian in memory.
        columns: of the array; the rows are slots.
    """

    descr: Descr
    columns: int

    @property
    def width(self) -> int:
        """Bytes of one slot."""
        return self.columns * int(self.descr[-1])

    def header(self, count: int) -> bytes:
        return npy_header(self.descr, (count, self.columns))

    def slots(self, body: bytes) -> list[bytes]:
        """The whole slots among bytes that begin with one."""
        body = self._turned(body[: len(body) - len(body) % self.width])
        return [body[at : at + self.width] for at in range(0, len(body), self.width)]

    def body(self, slots: Iterable[bytes]) -> bytes:
        return self._turned(b"".join(slots))

    def _turned(self, body: bytes) -> bytes:
        return np.frombuffer(body, "<i8").byteswap().tobytes() if self.descr == "<i8" else body


HASHES: Final = Form("|u1", 32)
PAIRS: Final = Form("<i8", 2)


@dataclass(frozen=True, slots=True)
class Clues:
    """What the rest of an index tells of a list.

    Attributes:
        known: slots that it may well have.
        guesses: (slots that it has, slots that it may have besides), the likeliest first.
        valid: whether it can have a slot at all.
        between: every valid slot between two, exclusive, ascending; None where they are too many.
    """

    known: frozenset[bytes]
    guesses: Sequence[tuple[frozenset[bytes], frozenset[bytes]]] = ()
    valid: Callable[[bytes], bool] = lambda _: True
    between: Callable[[bytes | None, bytes | None], Iterator[bytes]] | None = None


def heal(
    form: Form, entry: ErasedEntry | TombstoneEntry, data: bytes, clues: Clues
) -> bytes | None:
    """The bytes of a file that have the entry's sum, or None where they are not found.

    Args:
        data: what is left of the file; empty where it is gone.
    """
    search = _Search(form, entry, data, clues)
    return search.filled() or search.guessed() or search.changed()


def readable(
    form: Form, count: int, data: bytes, valid: Callable[[bytes], bool] = lambda _: True
) -> list[bytes]:
    """The slots of a damaged file of so many that can be what they were: in order, and valid."""
    there = _read(form, count, data, valid)
    spine = _spine(there, valid)
    return [slot for at, slot in enumerate(there) if at in spine and slot]


class _Search:
    def __init__(
        self, form: Form, entry: ErasedEntry | TombstoneEntry, data: bytes, clues: Clues
    ) -> None:
        self._form = form
        self._sha256 = bytes.fromhex(entry.sha256)
        self._count = entry.count
        self._head = form.header(entry.count)
        self._clues = clues
        self._known = sorted(clues.known)
        self._read = _read(form, entry.count, data, clues.valid)
        spine = _spine(self._read, clues.valid)
        self._spine = [slot for at, slot in enumerate(self._read) if at in spine and slot]
        self._torn = [at not in spine for at in range(self._count)]
        self._unknown = [
            torn or slot not in clues.known
            for torn, slot in zip(self._torn, self._read, strict=True)
        ]
        self._left = 0

    # -- stages: each returns the whole file, or None

    def filled(self) -> bytes | None:
        """What can be read, its gaps filled with slots that are known or can be."""
        self._left = _WORK
        return self._first(
            chain(self._as_read(), self._gaps(self._torn), self._gaps(self._unknown))
        )

    def guessed(self) -> bytes | None:
        """The lists that the clues make, whatever can be read."""
        self._left = _WORK
        return self._first(self._lists())

    def changed(self) -> bytes | None:
        """One slot is another: known, or a bit or a byte away from what is read."""
        self._left = _DEAR * _WORK  # a bit among thousands of hashes, and no clue where
        places = self._mendable()
        doubt = [at for at in places if self._unknown[at]]
        rest = [at for at in places if not self._unknown[at]]
        for near in (True, False):
            for places in (doubt, rest):
                found = self._one_of(places, near)
                if found is not None:
                    return found
        return None

    # -- proofs

    def _first(self, attempts: Iterable[Slots]) -> bytes | None:
        size = 4 * _START + self._count * (_SLOT + self._form.width)
        for slots in attempts:
            whole = self._head + self._form.body(slots)
            if hashlib.sha256(whole).digest() == self._sha256:
                return whole
            self._left -= size
            if self._left < 0:
                break
        return None

    def _one_of(self, places: Iterable[int], near: bool) -> bytes | None:
        body = self._form.body(slot or b"" for slot in self._read)
        width = self._form.width
        before, done = hashlib.sha256(self._head), 0
        for at in places:
            before.update(body[done : at * width])
            done = at * width
            rest = body[done + width :]
            for slot in self._others(at, near):
                new = self._form.body([slot])
                sum_ = before.copy()
                sum_.update(new)
                sum_.update(rest)
                if sum_.digest() == self._sha256:
                    return self._head + body[:done] + new + rest
                self._left -= _START + len(rest)
                if self._left < 0:
                    return None
        return None

    # -- attempts

    def _as_read(self) -> Iterator[Slots]:
        slots = [slot for slot in self._read if slot is not None]
        if len(slots) == self._count:
            yield slots

    def _gaps(self, doubtful: Sequence[bool]) -> Iterator[Slots]:
        """Runs of doubtful slots filled: all at once, or else each alone."""
        runs: list[tuple[int, int]] = []
        for at, doubt in enumerate(doubtful):
            if doubt and runs and runs[-1][1] == at:
                runs[-1] = runs[-1][0], at + 1
            elif doubt:
                runs.append((at, at + 1))
        most = max(16, _CHOICES // max(1, len(runs)))
        ways = [list(islice(self._fillings(*run), most)) for run in runs]
        if math.prod(len(way) for way in ways) <= _CHOICES:
            for chosen in product(*ways):
                yield self._with(zip(runs, chosen, strict=True))
        for run, way in zip(runs, ways, strict=True) if len(runs) > 1 else ():
            others = [torn and not run[0] <= at < run[1] for at, torn in enumerate(self._torn)]
            if not any(others):
                for one in way:
                    yield self._with([(run, one)])

    def _with(self, filled: Iterable[tuple[tuple[int, int], Slots]]) -> Slots:
        slots = list(self._read)
        for (start, end), filling in filled:
            slots[start:end] = filling
        return [slot or b"" for slot in slots]

    def _fillings(self, start: int, end: int) -> Iterator[Slots]:
        there = self._read[start:end]
        if not any(self._torn[start:end]):
            yield [slot for slot in there if slot is not None]
        low, high = self._around(start, end)
        known = self._known_between(low, high)
        if math.comb(len(known), end - start) <= _CHOICES:
            yield from combinations(known, end - start)
        if self._clues.between is not None:
            every = list(islice(self._clues.between(low, high), _CHOICES))
            if len(every) < _CHOICES and math.comb(len(every), end - start) <= _CHOICES:
                yield from combinations(every, end - start)

    def _lists(self) -> Iterator[Slots]:
        for has, may in self._clues.guesses:
            for certain in (has, has.union(self._spine)):
                options = may - certain
                missing = self._count - len(certain)
                if missing >= 0 and math.comb(len(options), missing) <= _CHOICES:
                    for more in combinations(sorted(options), missing):
                        yield sorted(certain.union(more))
                elif missing < 0 and math.comb(len(certain), self._count) <= _CHOICES:
                    yield from combinations(sorted(certain), self._count)

    def _others(self, at: int, near: bool) -> Iterator[bytes]:
        """What one slot could be, between its neighbours; `near`: known, or a bit away."""
        low, high = self._around(at, at + 1)
        slot = self._read[at] or b""
        if near:
            yield from self._known_between(low, high)
        for byte in range(len(slot)):
            for change in (1 << bit for bit in range(8)) if near else range(1, 256):
                new = slot[:byte] + bytes([slot[byte] ^ change]) + slot[byte + 1 :]
                fits = (low is None or low < new) and (high is None or new < high)
                if fits and self._clues.valid(new):
                    yield new
        if not near and self._clues.between is not None:
            yield from islice(self._clues.between(low, high), _CHOICES)

    def _mendable(self) -> list[int]:
        """Places at which another slot would leave the list whole and in order."""
        last = self._count - 1
        if last > 0 and sum(slot is None for slot in self._read) > 1:
            return []
        wrong = {
            at for at, slot in enumerate(self._read) if slot is None or not self._clues.valid(slot)
        }
        breaks = {at for at in range(last) if not _ascends(self._read[at], self._read[at + 1])}
        return [
            at
            for at in range(self._count)
            if wrong <= {at}
            and breaks <= {at - 1, at}
            and (at in (0, last) or _ascends(self._read[at - 1], self._read[at + 1]))
        ]

    def _around(self, start: int, end: int) -> tuple[bytes | None, bytes | None]:
        low = self._read[start - 1] if start else None
        high = self._read[end] if end < self._count else None
        return low, high

    def _known_between(self, low: bytes | None, high: bytes | None) -> Slots:
        start = 0 if low is None else bisect_right(self._known, low)
        end = len(self._known) if high is None else bisect_left(self._known, high)
        return self._known[start:end]


def _ascends(one: bytes | None, two: bytes | None) -> bool:
    return one is not None and two is not None and one < two


def _read(
    form: Form, count: int, data: bytes, valid: Callable[[bytes], bool]
) -> list[bytes | None]:
    """Every slot as it is read, None where nothing is; bytes may have been lost or put between."""
    start, size = len(form.header(count)), count * form.width
    front: list[bytes | None] = list(form.slots(data[start : start + size]))
    front += [None] * (count - len(front))
    if len(data) == start + size:
        return front
    # counted from the end, too: what was lost or put in moved all that follows it
    body = data[start:] if data.startswith(form.header(count)) else data
    tail = body[-size:] if size <= len(body) else body[len(body) % form.width :]
    back: list[bytes | None] = [*form.slots(tail)]
    back = [*[None] * (count - len(back)), *back]
    before: bytes | None = None
    for at, slot in enumerate(front):
        if slot is None or not valid(slot) or (before is not None and slot <= before):
            return front[:at] + back[at:]
        before = slot
    return front


def _spine(slots: Sequence[bytes | None], valid: Callable[[bytes], bool]) -> set[int]:
    """Places of a longest ascending choice of valid slots: what is not in it must be wrong."""
    tails: list[bytes] = []
    ends: list[int] = []
    previous: dict[int, int | None] = {}
    for at, slot in enumerate(slots):
        if slot is not None and valid(slot):
            length = bisect_left(tails, slot)
            previous[at] = ends[length - 1] if length else None
            tails[length : length + 1] = [slot]
            ends[length : length + 1] = [at]
    found: set[int] = set()
    at_: int | None = ends[-1] if ends else None
    while at_ is not None:
        found.add(at_)
        at_ = previous[at_]
    return found
