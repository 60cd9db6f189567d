"""What a batch consists of: pictures of the main sources, of extra ones, and of classes by name.

Turns drawn records into samples (bytes, captions to choose from, group) and lays out each global
batch, of which every rank takes its own run of places. Decodes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Literal, TypeAlias

from models.labels.prompts import DEFAULT_TEMPLATES, build_prompts
from models.sources.records import Record
from models.training.sampling import Drawn, Shuffled, group_of

Kind: TypeAlias = Literal["main", "extra", "class"]


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
    drawn: Drawn

    def choose(self, random: Random) -> str:
        """A language at random, then a caption of it: languages with few captions are not lost."""
        return random.choice(random.choice(self.texts)[1])

    def all_texts(self) -> list[str]:
        return [text for _, texts in self.texts for text in texts]


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
