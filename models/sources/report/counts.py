"""What a training set holds, counted in one pass before the first step.

`inspect` streams the records of the shared readers: pictures are decoded a few at a time and
thrown away, captions go through the model's own tokenizer, duplicates are told by digests. A
million pictures and as many captions take about 50 MB, most of it two tables of eight-byte
digests. It counts and judges nothing: `models.sources.report.checks` refuses and warns.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from PIL.Image import Image

from models.encoder import PreparedImage, PreparedText
from models.sources.embedded import prepare_rows
from models.sources.records import Record, Reject, Row, SeenKeys, Source, is_held_out


class Frequent:
    """The most repeated texts of a stream, in memory that does not grow with it.

    Misra & Gries 1982, "Finding repeated elements". With k counters, every text that makes up more
    than 1 / (k + 1) of the stream is among those kept, and its count is too low by at most
    length / (k + 1).
    """

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


EXAMPLES: Final = 10
"""Examples kept of each kind of trouble: enough to recognise it by, whatever the size."""

TokenizerCheck = Callable[[str], PreparedText]


@dataclass(slots=True)
class DataReport:
    """What `inspect` counted. A pair is a usable picture together with one of its captions.

    Attributes:
        sources: what was read.
        records: rows that were neither refused by the reader nor by the decoder.
        pictures: usable pictures with at least one caption.
        pairs: captions of these pictures.
        captions: the same by language.
        distinct_captions: different ones, by language.
        distinct_pictures: different files among `pictures`, by content.
        without_caption, without_picture: records that lack one half; neither is used.
        checked_pictures: how many were decoded to see whether that works (see `one_in`).
        checked_captions, truncated: how many were tokenized, and how many the context cuts.
        one_in: pictures and captions of one record in so many were checked.
        known_pictures: pictures that are in the other set as well (see `against`).
        rejects: refused records by code.
    """

    sources: list[str] = field(default_factory=list)
    records: int = 0
    pictures: int = 0
    pairs: int = 0
    captions: Counter[str] = field(default_factory=Counter)
    distinct_captions: Counter[str] = field(default_factory=Counter)
    distinct_pictures: int = 0
    without_caption: int = 0
    without_picture: int = 0
    one_in: int = 1
    checked_pictures: int = 0
    checked_captions: int = 0
    truncated: int = 0
    known_pictures: int | None = None
    lengths: dict[str, Lengths] = field(default_factory=dict)
    rejects: Counter[str] = field(default_factory=Counter)
    reject_examples: list[Reject] = field(default_factory=list)
    duplicate_examples: list[str] = field(default_factory=list)
    """Keys of pictures that came before under another key."""
    truncated_examples: list[str] = field(default_factory=list)
    without_caption_examples: list[str] = field(default_factory=list)
    repeated: list[tuple[str, int]] = field(default_factory=list)
    """The most repeated captions, and how often at least."""
    seen_pictures: SeenKeys = field(default_factory=SeenKeys, repr=False)
    """To compare another set with this one."""

    @property
    def duplicate_pictures(self) -> int:
        return self.pictures - self.distinct_pictures

    @property
    def duplicate_captions(self) -> int:
        return self.pairs - self.distinct_captions.total()

    @property
    def undecodable(self) -> int:
        """Pictures that are none, or damaged, or refused for their size."""
        return sum(
            count for code, count in self.rejects.items() if code.startswith(("image-", "decode-"))
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible, all that a saved run should remember of its data."""
        return {
            "sources": self.sources,
            "records": self.records,
            "pictures": self.pictures,
            "pairs": self.pairs,
            "captions": dict(sorted(self.captions.items())),
            "duplicate_pictures": self.duplicate_pictures,
            "duplicate_captions": self.duplicate_captions,
            "repeated_captions": [
                {"caption": text, "at_least": count} for text, count in self.repeated
            ],
            "without_caption": self.without_caption,
            "without_picture": self.without_picture,
            "caption_lengths": {
                language: {
                    "median": lengths.quantile(0.5),
                    "p95": lengths.quantile(0.95),
                    "longest": lengths.longest,
                    "histogram": dict(zip(bin_names(), lengths.histogram(), strict=True)),
                }
                for language, lengths in sorted(self.lengths.items())
            },
            "checked_one_in": self.one_in,
            "checked_pictures": self.checked_pictures,
            "checked_captions": self.checked_captions,
            "truncated": self.truncated,
            "undecodable": self.undecodable,
            "known_pictures": self.known_pictures,
            "rejected": self.rejects.total(),
            "rejects": dict(sorted(self.rejects.items())),
        }


def inspect(
    sources: Iterable[Source],
    *,
    prepare_text: TokenizerCheck | None = None,
    one_in: int = 1,
    against: DataReport | None = None,
    on_row: Callable[[], object] | None = None,
) -> DataReport:
    """Read the sources once and count.

    Args:
        sources: as they will be trained on.
        prepare_text: the model's tokenizer, `Encoder.prepare_text`; without it no caption is
            checked for its length in tokens.
        one_in: decode the picture and tokenize the captions of one record in so many, chosen by
            key. Everything else is counted of all records.
        against: the report of the training set, to find pictures of it in a validation set.
        on_row: called after every row, for a progress bar.
    """
    tally = _Tally(DataReport(one_in=one_in), prepare_text, against)
    for source in sources:
        tally.report.sources.append(source.name)
        rows = _noted(source, on_row)
        for ready in prepare_rows(tally.to_decode(rows), _forget, source=source.name):
            if isinstance(ready, Reject):
                tally.reject(ready)
            else:
                tally.report.checked_pictures += 1
                tally.pair(ready[0])
    return tally.finish()


def sampling(sources: Iterable[Source], wanted: int = 10_000) -> int:
    """The `one_in` that checks about `wanted` records; 1 where the number is not known."""
    counts = [source.count() for source in sources]
    total = sum(count or 0 for count in counts)
    return max(1, total // wanted)


class _Tally:
    """The counting, record by record."""

    def __init__(
        self, report: DataReport, prepare_text: TokenizerCheck | None, against: DataReport | None
    ) -> None:
        self.report = report
        self._prepare_text = prepare_text
        self._against = against
        self._seen_captions = SeenKeys()
        self._frequent = Frequent()
        if against is not None:
            report.known_pictures = 0

    def to_decode(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows whose picture is to be decoded; all others are counted here and now."""
        report = self.report
        for row in rows:
            if isinstance(row, Reject):
                self.reject(row)
            elif row.image is None:
                report.records += 1
                report.without_picture += 1
            elif not row.texts:
                report.records += 1
                report.without_caption += 1
                _example(report.without_caption_examples, row.key)
            elif self._is_checked(row):
                yield row
            else:
                self.pair(row)

    def _is_checked(self, record: Record) -> bool:
        return self.report.one_in == 1 or is_held_out(record.key, self.report.one_in)

    def reject(self, reject: Reject) -> None:
        self.report.rejects[reject.code] += 1
        _example(self.report.reject_examples, reject)

    def pair(self, record: Record) -> None:
        """Count a picture and its captions."""
        report = self.report
        assert record.image is not None
        report.records += 1
        report.pictures += 1
        digest = hashlib.sha256(record.image).hexdigest()
        if not report.seen_pictures.add(digest):
            _example(report.duplicate_examples, record.key)
        if self._against is not None and digest in self._against.seen_pictures:
            report.known_pictures = (report.known_pictures or 0) + 1
        checked = self._prepare_text is not None and self._is_checked(record)
        for language, captions in record.texts.items():
            lengths = report.lengths.setdefault(language, Lengths())
            report.captions[language] += len(captions)
            report.pairs += len(captions)
            for caption in captions:
                lengths.add(len(caption))
                report.distinct_captions[language] += self._seen_captions.add(
                    f"{language}\0{caption}"
                )
                self._frequent.add(caption)
                if checked:
                    self._tokenize(caption)

    def _tokenize(self, caption: str) -> None:
        assert self._prepare_text is not None
        self.report.checked_captions += 1
        if self._prepare_text(caption).truncated:
            self.report.truncated += 1
            _example(self.report.truncated_examples, caption)

    def finish(self) -> DataReport:
        self.report.distinct_pictures = len(self.report.seen_pictures)
        self.report.repeated = self._frequent.top(EXAMPLES)
        return self.report


def _example(examples: list[Any], one: object) -> None:
    if len(examples) < EXAMPLES:
        examples.append(one)


def _noted(rows: Iterable[Row], on_row: Callable[[], object] | None) -> Iterator[Row]:
    for row in rows:
        yield row
        if on_row is not None:
            on_row()


def _forget(_: Image) -> PreparedImage:
    return np.zeros(0, dtype=np.uint8)
