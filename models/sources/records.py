"""What every reader yields: `Record` for a usable row, `Reject` for one that is not.

Readers look at names, sizes and text; they never decode pictures (that is `models.images.decode`).

A source as the files it is made of, so that training can read them in another order each epoch.

Only sources of several files have parts; a folder or a single file is its own only part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

UNDETERMINED = "und"
"""BCP 47's tag for a text whose language the source does not tell."""


class Stamp(NamedTuple):
    """What a record's files look like from outside, without reading them.

    Attributes:
        digest: 16 bytes; equal where names, sizes, times, inodes and the reading options are.
        newest_ns: the latest time among them. A file that changed as late as this may change again
            within the same tick of its clock, unnoticed.
    """

    digest: bytes
    newest_ns: int


@dataclass(frozen=True, slots=True)
class Record:
    """One image-text record of a source.

    Attributes:
        key: unique and stable within the source; becomes the item id.
        uri: where the picture can be found again (`file:` URI; `#member` for a shard's member).
        image: the encoded picture, or None for a record of text only.
        texts: captions by language tag, in source order; `und` where the language is unknown.
        label: the class, where the source has one.
        attributes: every other field of the record, JSON-compatible.
        stamp: where a source can tell it, and all of the record was read without a complaint.
    """

    key: str
    uri: str
    image: bytes | None
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    stamp: Stamp | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """A record that was not read, because whoever asked knows its stamp."""

    key: str


@dataclass(frozen=True, slots=True)
class Reject:
    """One record that was refused: where it came from, a stable code, and a line for people."""

    source: str
    key: str
    code: str
    detail: str

    def to_dict(self) -> dict[str, str]:
        return {"source": self.source, "key": self.key, "code": self.code, "detail": self.detail}


Row: TypeAlias = Record | Reject


@dataclass(frozen=True, slots=True)
class Plan:
    """What a source holds, as far as names, headers and a few rows tell; nothing is decoded.

    Attributes:
        rows: records and rejects to expect; None where only reading everything would tell.
        pictures: pictures among them.
        picture_bytes: their size together, encoded as they are.
        source_bytes: size of what the user named: shards, manifests, or the folder's pictures.
        exact: whether the figures were counted, not scaled up from the first rows.
    """

    rows: int | None
    pictures: int | None
    picture_bytes: int | None
    source_bytes: int | None
    exact: bool


class Source(Protocol):
    """A stream of rows in a stable order; iterating twice gives the same rows.

    Standard input is the exception: a second iteration raises `SourceError`.
    """

    @property
    def name(self) -> str:
        """What the user typed."""
        ...

    @property
    def kind(self) -> str:
        """`folder`, `tar`, `jsonl`, `csv`, `parquet`, `coco`, `karpathy`, `json`, `list`, ..."""
        ...

    def count(self) -> int | None:
        """How many rows to expect, if cheap to know; for progress bars only."""
        ...

    def plan(self) -> Plan:
        """Counts and sizes, without decoding; for what a run would cost."""
        ...

    def __iter__(self) -> Iterator[Row]: ...


Skip: TypeAlias = Callable[[str, str, Stamp], bool]
"""(key, uri, stamp) -> whether the record need not be read."""


@runtime_checkable
class StampedSource(Source, Protocol):
    """A source that knows its records' stamps before it reads them."""

    def rows_unless(self, skip: Skip) -> Iterator[Row | Kept]:
        """As iterating, with `Kept` in place of the records that `skip` says need not be read."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """A source that knows its parts; together they hold the same records."""

    def parts(self) -> Sequence[Source]: ...


def parts_of(source: Source) -> list[Source]:
    """The parts of a source, in its own order; the source itself where it has none."""
    return list(source.parts()) if isinstance(source, Divisible) else [source]
