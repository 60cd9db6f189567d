"""What a source is and what it yields: `Record` for a usable row, `Reject` for one that is not.

Every reader is a `Source`; whatever changes or leaves out rows on their way is a `SourceWrapper`.
Whoever reads a source asks it what it can do (`rereadable`, `keys_are_paths`, ...), never what kind
it is. Sources look at names, sizes and text; they never decode pictures (`models.images.decode`).
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple, Self, TypeAlias

UNDETERMINED = "und"
"""BCP 47's tag for a text whose language the source does not tell."""


PUT: Final = "put:"
"""`Record.origin` of what was put into an index one by one, by its id: no source gives it again."""


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
        origin: `file:` URI of the folder, shard or manifest it stands in, which tells whether a
            record of the same key is this one again; `PUT`; empty where nothing is known.
        stamp: where a source can tell it, and all of the record was read without a complaint.
    """

    key: str
    uri: str
    image: bytes | None
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
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


class RefusedError(ValueError):
    """A row, or the file or field it is made of, cannot be used; readers make a `Reject` of it."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail

    def reject(self, source: str, key: str) -> Reject:
        return Reject(source, key, self.code, self.detail)


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


Skip: TypeAlias = Callable[[str, str, Stamp], bool]
"""(key, uri, stamp) -> whether the record need not be read."""


class Source(ABC):
    """A stream of rows in a stable order; a reader of one format overrides what it can tell.

    Attributes:
        name: what the user typed.
        kind: `folder`, `tar`, `jsonl`, `csv`, `parquet`, `coco`, ...: for people to read, and what
            an index notes of its origins.
        rereadable: iterating twice gives the same rows. Standard input cannot be read again: the
            second iteration raises `SourceError`.
        keys_are_paths: keys, of rejects too, are paths below `name`; one that ends in `/` is a
            folder that could not be listed. Otherwise a reject names a line, a byte or a member.
        in_archives: the pictures are members of archives, not files of their own.
    """

    name: str
    kind: str
    rereadable: bool = True
    keys_are_paths: bool = False
    in_archives: bool = False

    def count(self) -> int | None:
        """How many rows to expect, None where that is not cheap to know; for progress bars only."""
        return None

    def plan(self) -> Plan:
        """Counts and sizes, without decoding; for what a run would cost."""
        return Plan(None, None, None, None, exact=False)

    def parts(self) -> list[Source]:
        """Sources that hold the same records together, to be read in any order.

        Sources of several files have one for each; any other is its own only part.
        """
        return [self]

    def rows_unless(self, skip: Skip) -> Iterator[Row | Kept]:  # noqa: ARG002 (see below)
        """As iterating, with `Kept` in place of the records that `skip` says need not be read.

        Only sources that know stamps before they read anything ask `skip` at all.
        """
        return iter(self)

    @abstractmethod
    def __iter__(self) -> Iterator[Row]: ...


class SourceWrapper(Source):
    """Another source with rows changed or left out; everything else is the other's."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name, self.kind = source.name, source.kind
        self.rereadable = source.rereadable
        self.keys_are_paths = source.keys_are_paths
        self.in_archives = source.in_archives

    def count(self) -> int | None:
        return self.source.count()

    def plan(self) -> Plan:
        return self.source.plan()

    def parts(self) -> list[Source]:
        """The source's own parts, wrapped alike."""
        return [self._around(part) for part in self.source.parts()]

    def _around(self, source: Source) -> Self:
        wrapper = copy(self)
        SourceWrapper.__init__(wrapper, source)
        return wrapper


def total_count(sources: Iterable[Source]) -> int | None:
    """How many rows to expect of all of them; None where one cannot tell cheaply."""
    counts = [source.count() for source in sources]
    return None if None in counts else sum(count or 0 for count in counts)


def folder_of(key: str) -> str | None:
    """The name of the folder a record's key lies in, or None: where classes are folders, its class.

    Example:
        >>> folder_of("train/cats/tom.jpg"), folder_of("tom.jpg")
        ('cats', None)
    """
    folder, _, _ = key.rpartition("/")
    return folder.rpartition("/")[2] or None


def is_held_out(key: str, one_in: int) -> bool:
    """Whether sha256(key), read as a number, is divisible by `one_in`."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()) % one_in == 0


class HoldOut(SourceWrapper):
    """A source restricted to its held-out records, or to all others. Rejects pass through.

    One record in N is held out, chosen by a hash of its key, or of its picture's bytes: the same in
    every run, on every machine, whatever the order or the rest of the source. Training leaves
    these out, evaluation takes only them.
    """

    def __init__(
        self, source: Source, one_in: int, *, held_out: bool, by_picture: bool = False
    ) -> None:
        super().__init__(source)
        self._one_in = one_in
        self._held_out = held_out
        self._by_picture = by_picture

    def count(self) -> int | None:
        total = self.source.count()
        if total is None:
            return None
        part = total // self._one_in
        return part if self._held_out else total - part

    def __iter__(self) -> Iterator[Row]:
        for row in self.source:
            if not isinstance(row, Record) or self._holds(row) == self._held_out:
                yield row

    def _holds(self, record: Record) -> bool:
        name = record.key
        if self._by_picture and record.image is not None:
            name = hashlib.sha256(record.image).hexdigest()
        return is_held_out(name, self._one_in)


class Prefixed(SourceWrapper):
    """A source whose keys begin with a name of their own, so that they meet no other source's.

    `{source}` in the prefix stands for the name, without its ending, of the folder or file that a
    record is in: of each shard, where a source has several.
    """

    def __init__(self, source: Source, prefix: str) -> None:
        super().__init__(source)
        self._prefix = prefix

    def __iter__(self) -> Iterator[Row]:
        for row in self.rows_unless(lambda *_: False):
            assert not isinstance(row, Kept)
            yield row

    def rows_unless(self, skip: Skip) -> Iterator[Row | Kept]:
        parts = self.source.parts() if _SOURCE_NAME in self._prefix else [self.source]
        for part in parts:
            prefix = f"{self._prefix.replace(_SOURCE_NAME, _own_name(part)).rstrip('/')}/"
            for row in part.rows_unless(partial(_skip_prefixed, skip, prefix)):
                if not isinstance(row, Reject):
                    yield replace(row, key=prefix + row.key)
                elif part.keys_are_paths:
                    yield replace(row, key=prefix + row.key.removeprefix("/"))
                else:
                    yield row


_SOURCE_NAME: Final = "{source}"


def _skip_prefixed(skip: Skip, prefix: str, key: str, uri: str, stamp: Stamp) -> bool:
    return skip(prefix + key, uri, stamp)


def _own_name(source: Source) -> str:
    """What a source is called, for its keys: no folder before it, no ending behind a file."""
    if source.name == "-":
        return "stdin"
    last = os.fsencode(os.path.basename(os.path.abspath(source.name)))  # noqa: PTH100, PTH119
    name = last.decode("utf-8", "backslashreplace")
    return name if source.keys_are_paths else name.rpartition(".")[0] or name


class FirstRows(SourceWrapper):
    """The first rows of a source, for a look at it; how many these are is not known before."""

    def __init__(self, source: Source, most: int) -> None:
        super().__init__(source)
        self._most = most

    def count(self) -> int | None:
        return None

    def parts(self) -> list[Source]:
        return [self]

    def __iter__(self) -> Iterator[Row]:
        return islice(iter(self.source), self._most)


class SeenKeys:
    """Which keys a source has yielded, in 8 bytes a key and some air instead of the key itself.

    An open-addressing table of digests: a `set` of a million ints takes 90 MB, this 16 MB. Two of
    a million different keys share a digest with a probability of about 3e-8.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._used = 0

    def add(self, key: str) -> bool:
        """Note a key; False if it was there already."""
        number = _number(key)
        at = _find(self._slots, number)
        if self._slots[at]:
            return False
        self._slots[at] = number
        self._used += 1
        if 3 * self._used > 2 * len(self._slots):
            self._grow()
        return True

    def __contains__(self, key: str) -> bool:
        return bool(self._slots[_find(self._slots, _number(key))])

    def __len__(self) -> int:
        return self._used

    def _grow(self) -> None:
        larger = array("Q", bytes(16 * len(self._slots)))
        for number in self._slots:
            if number:
                larger[_find(larger, number)] = number
        self._slots = larger


def _number(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1  # 0 marks a free slot


def _find(slots: array[int], number: int) -> int:
    """Where a number is, or the free slot where it belongs."""
    mask = len(slots) - 1
    at = number & mask
    while slots[at] and slots[at] != number:
        at = (at + 1) & mask
    return at
