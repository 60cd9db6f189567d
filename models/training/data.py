"""What a batch consists of and which record comes when; called by `models.training.open_clip`.

Passes over sources are endless, each in another order, always the same: the order of a pass depends
on the seed, the pass and the sources alone, so a run can be continued anywhere and every rank of a
distributed run sees the same order. Shards are opened in random order, a few at a time, and their
records go through a bounded buffer; nothing is extracted and no list of the records is kept. Each
global batch is laid out from pictures of the main sources, of extra ones, and of classes by name;
every rank takes its own run of places. Decodes nothing, and knows no models.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from models.errors import SourceError
from models.labels.prompts import DEFAULT_TEMPLATES, build_prompts
from models.sources.fields import group_of, said
from models.sources.records import Record, Row, Source, SourceWrapper

Kind: TypeAlias = Literal["main", "extra", "class"]
Numbers: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Stream:
    """One kind of pictures.

    Attributes:
        kind: `class` pictures have names for captions, which are put into templates.
        shuffled: their order.
        pairs: usable records of one pass.
        share: of each batch; the main stream takes what the others leave.
    """

    kind: Kind
    shuffled: Shuffled
    pairs: int
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One place of a batch."""

    key: str
    image: bytes
    texts: tuple[tuple[str, tuple[str, ...]], ...]
    """(language, captions)"""
    group: int
    """Of its picture, or its class."""
    drawn: Drawn

    def choose(self, random: Random) -> str:
        """A language at random, then a caption of it: languages with few captions are not lost."""
        return random.choice(random.choice(self.texts)[1])

    def all_texts(self) -> list[str]:
        return [text for _, texts in self.texts for text in texts]

    def groups(self, text: str) -> tuple[int, ...]:
        """A row of `Batch.group_B` for this sample with that one of its captions."""
        return self.group, said(text), *map(said, self.all_texts())


class Mix:
    """Global batches of a fixed composition.

    Args:
        streams: the first one is what epochs go over; the others are drawn from endlessly.
        batch: pairs a global batch; fewer where the first stream has fewer.
    """

    def __init__(self, streams: Sequence[Stream], batch: int) -> None:
        self._main, *self._others = streams
        self._counts = [round(batch * stream.share) for stream in self._others]
        self._own = max(1, min(batch - sum(self._counts), self._main.pairs))
        self.size = self._own + sum(self._counts)
        self.per_epoch = max(1, self._main.pairs // self._own)

    def batches(self, start: int) -> Iterator[list[Sample]]:
        """Batch `start` and those after it, without end. A pass's last incomplete one is left out,
        which are other pictures in every pass."""
        epoch, within = divmod(start, self.per_epoch)
        others = [
            stream.shuffled.endless(skip=start * count, length=stream.pairs)
            for stream, count in zip(self._others, self._counts, strict=True)
        ]
        while True:
            drawn = self._main.shuffled.epoch(epoch)
            for at in range(self.per_epoch):
                main = list(islice(drawn, self._own))
                if at < within:
                    continue
                batch = [sample(record, self._main.kind) for record in main]
                for stream, records, count in zip(self._others, others, self._counts, strict=True):
                    batch += [sample(next(records), stream.kind) for _ in range(count)]
                yield batch
            epoch, within = epoch + 1, 0


def sample(drawn: Drawn, kind: Kind) -> Sample:
    """What training needs of a record that `usable` let through."""
    record = drawn.record
    assert record.image is not None
    if kind == "class":
        names = [name for texts in record.texts.values() for name in texts]
        prompts = tuple(
            prompt for line in build_prompts(names, DEFAULT_TEMPLATES) for prompt in line
        )
        group = group_of(b"class " + names[0].encode())
        return Sample(record.key, record.image, (("class names", prompts),), group, drawn)
    texts = tuple(sorted((language, tuple(lines)) for language, lines in record.texts.items()))
    return Sample(record.key, record.image, texts, group_of(record.image), drawn)


def usable(record: Record) -> bool:
    """Whether a record is a pair: a picture, and at least one caption."""
    return record.image is not None and any(
        text.strip() for texts in record.texts.values() for text in texts
    )


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


LADDER: Final = (10, 100, 1_000, 10_000)
"""One record in so many may be held back for validation; which of these is decided by the count."""
FEWEST_TO_HOLD: Final = 100
FEWEST_HELD: Final = 10
"""Fewer tell nothing."""
_SCATTERING: Final = np.uint64(0x9E3779B97F4A7C15)
"""An odd number whose multiples, modulo 2 ** 64, are all over the place."""
_MOST_HELD: Final = 1_000


def refuse_streams(sources: Sequence[Source]) -> None:
    """Raises SourceError: one of the sources can be read only once."""
    if not all(source.rereadable for source in sources):
        raise SourceError(
            "training reads its data again and again, and standard input can be read once",
            code="not-rereadable",
            hint="write it to a file first",
        )


class Surveyed(SourceWrapper):
    """A source that counts its pairs as it is read. Reading it again counts again.

    Attributes:
        source: what is read, for whoever wants it without the counting.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._begin()

    def _begin(self) -> None:
        self._pictures = array("q")
        self._captions = array("q")
        self._counts = array("q")
        self._digest = hashlib.sha256()

    @property
    def pairs(self) -> int:
        """Usable records."""
        return len(self._pictures)

    def contents(self) -> tuple[Numbers, Numbers, Numbers]:
        """(each pair's picture [N], captions [M], the pair each of these belongs to [M])."""
        pictures, captions, counts = (
            np.frombuffer(numbers, dtype=np.int64) if numbers else np.zeros(0, np.int64)
            for numbers in (self._pictures, self._captions, self._counts)
        )
        return pictures, captions, np.repeat(np.arange(len(counts)), counts)

    @property
    def digest(self) -> str:
        """Of keys, captions and pictures, in order: other data, another digest."""
        return self._digest.hexdigest()[:32]

    def parts(self) -> list[Source]:
        """The source's own, uncounted: they are read in pieces and again and again."""
        return self.source.parts()

    def __iter__(self) -> Iterator[Row]:
        self._begin()
        for row in self.source:
            if isinstance(row, Record) and usable(row):
                assert row.image is not None
                picture, captions = group_of(row.image), _said_in(row)
                self._pictures.append(picture)
                self._captions.extend(captions)
                self._counts.append(len(captions))
                described = f"{row.key}\0{picture}\0{sorted(row.texts.items())}\n"
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


@dataclass(frozen=True, slots=True)
class Held:
    """What is held back for validation, and so is left out of whatever is trained on.

    Attributes:
        pictures: numbers of pictures (`group_of`).
        captions: what is said of these (`said`).
    """

    pictures: frozenset[int] = frozenset()
    captions: frozenset[int] = frozenset()

    def holds(self, kind: Kind, record: Record) -> bool:
        """Whether training must not see a pair. The name of a class says little of one picture."""
        assert record.image is not None
        return group_of(record.image) in self.pictures or (
            kind != "class" and not self.captions.isdisjoint(_said_in(record))
        )

    def count(self, kind: Kind, surveyed: Surveyed) -> int:
        """How many pairs of a source it holds."""
        pictures_N, captions_M, owner_M = surveyed.contents()
        held_N = np.isin(pictures_N, list(self.pictures))
        if kind != "class":
            held_N[owner_M[np.isin(captions_M, list(self.captions))]] = True
        return int(held_N.sum())


class Apart(SourceWrapper):
    """The pairs of a source that are held back, or all others. Rejects pass through."""

    def __init__(self, source: Source, kind: Kind, held: Held, *, held_out: bool) -> None:
        super().__init__(source)
        self._kind: Kind = kind
        self._held = held
        self._held_out = held_out

    def count(self) -> int | None:
        return None

    def __iter__(self) -> Iterator[Row]:
        for row in self.source:
            pair = isinstance(row, Record) and usable(row)
            if not pair or self._held.holds(self._kind, row) == self._held_out:  # type: ignore[arg-type]
                yield row


def hold_back(main: Sequence[Surveyed], one_in: int) -> Held:
    """About one pair in `one_in`, none of which shares a picture or a caption with the others.

    Pairs that share one, or are joined by others that do, stay together. Which of these groups are
    held is a matter of a hash of their pictures, so that it is the same in every run and on every
    rank; one that alone is more than what is wanted is not held, so that where nearly all share a
    caption, nothing may be.
    """
    parts = [source.contents() for source in main]
    pictures_N = np.concatenate([pictures for pictures, _, _ in parts])
    captions_M = np.concatenate([captions for _, captions, _ in parts])
    begins = np.cumsum([0, *(len(pictures) for pictures, _, _ in parts)])
    owner_M = np.concatenate(
        [owner + begin for (_, _, owner), begin in zip(parts, begins, strict=False)]
    )
    unique_P, picture_N = np.unique(pictures_N, return_inverse=True)
    unique_C, caption_M = np.unique(captions_M, return_inverse=True)
    group_P = joined(picture_N[owner_M], len(unique_P) + caption_M, len(unique_P) + len(unique_C))
    group_N = group_P[picture_N]
    names, sizes = np.unique(group_N, return_counts=True)
    # a group is named by its smallest picture: by nothing that depends on the order of the data
    smallest = np.full(len(group_P), np.iinfo(np.int64).max)
    np.minimum.at(smallest, group_N, pictures_N)
    order = np.argsort(smallest[names].astype(np.uint64) * _SCATTERING, kind="stable")
    wanted, taken = len(pictures_N) // one_in, 0
    chosen = []
    for at in order:
        if taken + sizes[at] <= wanted:
            taken += int(sizes[at])
            chosen.append(names[at])
    if taken < min(FEWEST_HELD, wanted):
        return Held()
    held_N = np.isin(group_N, chosen)
    return Held(
        frozenset(pictures_N[held_N].tolist()), frozenset(captions_M[held_N[owner_M]].tolist())
    )


def joined(one_E: Numbers, other_E: Numbers, count: int) -> Numbers:
    """Connected components: nodes 0 ... count - 1, edges between `one` and `other`.

    Returns:
        [count] the smallest node that each is joined to.

    Example:
        >>> joined(np.array([0, 1, 4]), np.array([3, 3, 4]), 5).tolist()
        [0, 0, 2, 0, 4]
    """
    root = np.arange(count)
    while True:
        lower = np.minimum(root[one_E], root[other_E])
        found = root.copy()
        for side_E in (root[one_E], root[other_E], one_E, other_E):
            np.minimum.at(found, side_E, lower)
        while not np.array_equal(shorter := found[found], found):
            found = shorter
        if np.array_equal(found, root):
            return found
        root = found


def _said_in(record: Record) -> list[int]:
    return [said(text) for texts in record.texts.values() for text in texts]
