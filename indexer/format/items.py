"""Writes and reads one segment's `items.sqlite`: everything about an item but its vector.

Rows are numbered like the rows of `vectors.npy`. `ItemsWriter` writes the file once, outside any
journal; it is scratch until it is sealed and renamed, so SQLite syncs nothing. `ItemsReader` reads
it for ever after as immutable. Neither knows vectors, versions or tombstones; whether an item is
still alive is the caller's knowledge.

Filterable values are in two more tables, see `indexer.format.field_table`, and the words that a row
is found by in another two, see `indexer.format.word_table`. A file of format 1 has no such words.

`record` is the key of the source record a row came from; a picture and its captions share it, so
that replacing a record finds all of its rows.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote_from_bytes

import numpy as np
import numpy.typing as npt

from indexer.files.fs import FEWER_FILES
from indexer.filters.declared import Field, Value
from indexer.format.entries import ITEMS_FILE, Modality
from indexer.format.field_table import FieldTableWriter
from indexer.format.manifest import HINT
from indexer.format.word_table import (
    Postings,
    WordTableWriter,
    all_postings,
    file_name,
    has_words,
    read_lengths,
    read_postings,
)
from models.errors import IndexCorruptError, NoSpaceError, StorageError

T = TypeVar("T")

_SCHEMA: Final = """
CREATE TABLE items(
  row INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  record TEXT NOT NULL,
  uri TEXT NOT NULL,
  text TEXT,
  language TEXT,
  image_id TEXT,
  label TEXT,
  attributes TEXT NOT NULL,
  content_hash BLOB NOT NULL
);
CREATE INDEX items_record ON items(record);
-- apart from the items, so that looking up rows does not drag pictures through the page cache
CREATE TABLE thumbnails(row INTEGER PRIMARY KEY, jpeg BLOB NOT NULL);
CREATE TABLE pictures(
  row INTEGER PRIMARY KEY,
  width INTEGER NOT NULL,
  height INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  pixels BLOB NOT NULL
);
PRAGMA user_version = 1;
"""
_ORIGINS: Final = "CREATE TABLE origins(row INTEGER PRIMARY KEY, origin INTEGER NOT NULL)"
"""Made by the first row that has one; segments of earlier releases have no such table."""
_INSERT: Final = "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SELECT_ITEMS: Final = (
    "SELECT row, id, uri, text, language, image_id, label, attributes, content_hash FROM items"
)
_IN_BATCH: Final = 500
_MAPPED: Final = 2**31 - 65_536
"""Bytes of the file that are mapped; SQLite is commonly built with no more. Address space only."""
_SCAN_BATCH: Final = 65_536


@dataclass(frozen=True, slots=True)
class Item:
    """One indexed picture or text.

    Attributes:
        id: unique among the live items of its modality.
        modality: `image` or `text`.
        uri: where the picture can be found again.
        text: a text item's text; a picture's first caption, or None.
        language: BCP 47 tag of `text`; `und` where unknown, None where there is no text.
        image_id: the picture a text belongs to; None for pictures and for texts without one.
        label: the class the source gave, or None.
        attributes: the record's other fields.
        content_hash: sha256 (hex) of the source record's content.
    """

    id: str
    modality: Modality
    uri: str
    text: str | None
    language: str | None
    image_id: str | None
    label: str | None
    attributes: Mapping[str, Any]
    content_hash: str


@dataclass(frozen=True, slots=True)
class Picture:
    """What is known of the picture behind a row, besides its embedding.

    Attributes:
        width, height: in pixels, upright.
        size: of the encoded file, in bytes.
        pixels: 16 bytes; equal where every decoded pixel is
        (`models.images.pictures.pixel_digest`).
    """

    width: int
    height: int
    size: int
    pixels: bytes


@dataclass(frozen=True, slots=True)
class NewRow:
    """An item about to be stored, and what is stored with it.

    Attributes:
        record: the key of its source record.
        thumbnail: JPEG bytes.
        values: of the index's filterable fields, in their order; none are known if empty.
        texts: what search by words finds the row by: a picture's texts, to which its file's name
            is added. None takes the item's own; empty leaves the row to `ItemsWriter.take_words`.
        picture: what is known of it; None for texts and where nothing is.
        origin: `origin_number` of its source record's origin; None where it is not known.
    """

    record: str
    item: Item
    thumbnail: bytes | None = None
    values: tuple[Value, ...] = ()
    texts: tuple[str, ...] | None = None
    picture: Picture | None = None
    origin: int | None = None


def origin_number(origin: str) -> int | None:
    """What an index keeps of `models.sources.records.Record.origin`: 64 bits; None for none."""
    if not origin:
        return None
    digest = hashlib.blake2b(origin.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class ItemsReader:
    """A verified `items.sqlite`, opened immutable; safe to use from several threads.

    Raises (every method):
        IndexCorruptError: SQLite finds the file damaged or not what it should be.
    """

    def __init__(self, path: Path, modality: Modality, *, name: str = ITEMS_FILE) -> None:
        self._name = name
        self._path = path
        self._modality: Modality = modality
        self._lock = threading.Lock()
        uri = f"file:{quote_from_bytes(bytes(path.absolute()))}?mode=ro&immutable=1"
        # one connection behind a lock: a lookup takes microseconds, a connection a thread would
        # cost file descriptors in proportion to segments times threads
        self._db = self._do(lambda: sqlite3.connect(uri, uri=True, check_same_thread=False))
        self._do(lambda: self._db.execute("PRAGMA trusted_schema = OFF"))
        # a page read without a system call: 15 to 35% off a lookup (tests/bench/metadata.py)
        self._do(lambda: self._db.execute(f"PRAGMA mmap_size = {_MAPPED:d}"))
        self.has_words = has_words(self._all)
        self._has_pictures = bool(
            self._all("SELECT 1 FROM sqlite_master WHERE name = 'pictures'")  # format 1 has not
        )
        self.has_origins = bool(self._all("SELECT 1 FROM sqlite_master WHERE name = 'origins'"))

    def count(self) -> int:
        """Number of items; their rows are 0 .. count - 1.

        Raises:
            IndexCorruptError: also when the rows are not numbered so.
        """
        # one by one: SQLite counts rows without reading them only where nothing else is asked
        [(count,)] = self._all("SELECT count(*) FROM items")
        [(low,)] = self._all("SELECT min(row) FROM items")
        [(high,)] = self._all("SELECT max(row) FROM items")
        if count and (low, high) != (0, count - 1):
            raise IndexCorruptError(self._name, "its rows are not numbered 0 to N-1", hint=HINT)
        return int(count)

    def items(self, rows: Sequence[int]) -> dict[int, Item]:
        """Items by row; an unknown row is an error."""
        found = {int(values[0]): self._item(values) for values in self._by_row(_SELECT_ITEMS, rows)}
        self._expect_all(rows, found)
        return found

    def ids(self, rows: Sequence[int]) -> dict[int, str]:
        """Item ids by row."""
        found = {row: str(item) for row, item in self._by_row("SELECT row, id FROM items", rows)}
        self._expect_all(rows, found)
        return found

    def find(self, item_id: str) -> int | None:
        """The row of an item id, live or not."""
        try:
            rows = self._all("SELECT row FROM items WHERE id = ?", (item_id,))
        except UnicodeEncodeError:  # a lone surrogate: no stored id can hold one
            return None
        return int(rows[0][0]) if rows else None

    def rows_of(self, record: str) -> list[int]:
        """Rows that came from a source record."""
        try:
            rows = self._all("SELECT row FROM items WHERE record = ?", (record,))
        except UnicodeEncodeError:  # a lone surrogate: no stored key can hold one
            return []
        return [int(row) for (row,) in rows]

    def records(self) -> Iterator[tuple[int, str, str, bytes]]:
        """(row, id, record, content hash) of every row, in row order."""
        start = 0
        query = (
            "SELECT row, id, record, content_hash FROM items WHERE row >= ? ORDER BY row LIMIT ?"
        )
        while block := self._all(query, (start, _SCAN_BATCH)):
            yield from block
            start = block[-1][0] + 1

    def texts(self) -> Iterator[tuple[int, str, str, str | None, str | None]]:
        """(row, id, record, language, text) of every row in row order; a picture's has no text."""
        start = 0
        text = "language, text" if self._modality == "text" else "NULL, NULL"
        query = f"SELECT row, id, record, {text} FROM items WHERE row >= ? ORDER BY row LIMIT ?"  # noqa: S608
        while block := self._all(query, (start, _SCAN_BATCH)):
            yield from block
            start = block[-1][0] + 1

    def image_ids(self) -> Iterator[tuple[int, str]]:
        """(row, image id) of every row that names a picture."""
        yield from self._all("SELECT row, image_id FROM items WHERE image_id IS NOT NULL")

    def thumbnail(self, row: int) -> bytes | None:
        """JPEG bytes, or None where none was stored."""
        rows = self._all("SELECT jpeg FROM thumbnails WHERE row = ?", (row,))
        return bytes(rows[0][0]) if rows else None

    def pictures(self, rows: Sequence[int]) -> dict[int, Picture]:
        """What is known of the pictures behind rows; rows of which nothing is are left out."""
        if not self._has_pictures:
            return {}
        select = "SELECT row, width, height, bytes, pixels FROM pictures"
        return {row: Picture(*known) for row, *known in self._by_row(select, rows)}

    def origins(self, rows: Sequence[int]) -> dict[int, int]:
        """`NewRow.origin` by row; rows whose origin is not known are left out."""
        if not self.has_origins:
            return {}
        return dict(self._by_row("SELECT row, origin FROM origins", rows))

    def query(self, select: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of one SELECT over this database; values only ever as parameters."""
        return self._all(select, values)

    def postings(self, terms: Sequence[str]) -> dict[str, Postings]:
        """The rows that hold each of the terms; needs `has_words`."""
        return self._decode(lambda: read_postings(self._all, terms))

    def all_postings(self) -> Iterator[tuple[str, Postings]]:
        """Every term and its rows, terms ascending; needs `has_words`."""
        found = all_postings(self._all)
        while True:
            one = self._decode(lambda: next(found, None))
            if one is None:
                return
            yield one

    def word_lengths(self) -> npt.NDArray[np.uint16]:
        """How many terms each row has, uint16 [N]; needs `has_words`."""
        return self._decode(lambda: read_lengths(self._all))

    def integrity(self) -> str | None:
        """SQLite's own full check: None when sound, otherwise its first complaint."""
        [(answer,), *_] = self._all("PRAGMA integrity_check(1)")
        return None if answer == "ok" else str(answer)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _item(self, values: Sequence[Any]) -> Item:
        _, item_id, uri, text, language, image_id, label, attributes, content_hash = values
        return Item(
            id=item_id,
            modality=self._modality,
            uri=uri,
            text=text,
            language=language,
            image_id=image_id,
            label=label,
            attributes=json.loads(attributes),
            content_hash=content_hash.hex(),
        )

    def _by_row(self, select: str, rows: Sequence[int]) -> Iterator[Any]:
        for start in range(0, len(rows), _IN_BATCH):
            part = [int(row) for row in rows[start : start + _IN_BATCH]]
            yield from self._all(f"{select} WHERE row IN ({_marks(len(part))})", part)

    def _expect_all(self, rows: Iterable[int], found: Mapping[int, object]) -> None:
        for row in rows:
            if row not in found:
                raise IndexCorruptError(self._name, f"it has no row {row}", hint=HINT)

    def _all(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            return self._do(lambda: self._db.execute(query, values).fetchall())

    def _decode(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except ValueError as error:
            raise IndexCorruptError(self._name, f"its words: {error}", hint=HINT) from error

    def _do(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except sqlite3.ProgrammingError:
            raise  # use after close: a defect of ours, not damage
        except sqlite3.Error as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_CANTOPEN and self._path.exists():
                raise StorageError(
                    f"cannot open {self._path}: {error}",
                    hint=FEWER_FILES,
                ) from error
            raise IndexCorruptError(self._name, f"SQLite: {error}", hint=HINT) from error


def _marks(count: int) -> str:
    return ", ".join("?" * count)


class ItemsWriter:
    """Writes a new `items.sqlite`; `close` finishes it. Durability is the caller's (`Fs`)."""

    def __init__(self, path: Path, fields: Sequence[Field] = ()) -> None:
        self._path = path
        # one thread writes, but another may have to close it
        self._db = self._do(
            lambda: sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        )
        # the file is scratch until sealed and renamed: no journal and no sync of SQLite's own
        self._do(
            lambda: self._db.executescript(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; "
                f"PRAGMA locking_mode = EXCLUSIVE; {_SCHEMA} BEGIN;"
            )
        )
        self._table = self._do(lambda: FieldTableWriter(self._db, fields))
        self._words = self._do(lambda: WordTableWriter(self._db))
        self._rows = 0
        self._has_origins = False

    def add(self, new: NewRow) -> None:
        """Store the next row; the first is row 0."""
        row, item, picture = self._rows, new.item, new.picture
        columns = (
            row,
            item.id,
            new.record,
            item.uri,
            item.text,
            item.language,
            item.image_id,
            item.label,
            json.dumps(item.attributes, ensure_ascii=False, allow_nan=False),
            bytes.fromhex(item.content_hash),
        )
        self._do(lambda: self._db.execute(_INSERT, columns))
        self._do(lambda: self._table.add(row, item.label, item.language, new.values))
        own = () if item.text is None else (item.text,)
        words = own if new.texts is None else new.texts
        if item.modality == "image" and new.texts != ():
            words = (*words, file_name(item.uri, item.id))
        self._words.add(row, words)
        self._rows = row + 1
        if new.thumbnail is not None:
            pair = (row, new.thumbnail)
            self._do(lambda: self._db.execute("INSERT INTO thumbnails VALUES (?, ?)", pair))
        if picture is not None:
            known = (row, picture.width, picture.height, picture.size, picture.pixels)
            self._do(lambda: self._db.execute("INSERT INTO pictures VALUES (?,?,?,?,?)", known))
        if new.origin is not None:
            self._add_origin(row, new.origin)

    def _add_origin(self, row: int, origin: int) -> None:
        if not self._has_origins:
            self._has_origins = True
            self._do(lambda: self._db.execute(_ORIGINS))
        self._do(lambda: self._db.execute("INSERT INTO origins VALUES (?, ?)", (row, origin)))

    def take_words(self, source: ItemsReader, target_N: npt.NDArray[np.int64]) -> None:
        """Find rows by the words that another segment finds them by, without their texts.

        Args:
            source: has words; open until `close`, unless it has fewer rows than `IN_TURN`.
            target_N: for each of its rows the row it is here, or -1 where it is not.

        Raises:
            IndexCorruptError: the source's words are damaged; also raised by `close`.
        """
        assert source.has_words
        self._words.take(source, target_N)

    def close(self) -> None:
        self._do(self._table.finish)
        self._do(lambda: self._words.finish(self._rows))
        self._do(lambda: self._db.execute("COMMIT"))
        self._db.close()

    def abort(self) -> None:
        self._db.close()

    def _do(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise NoSpaceError(
                    f"no space left: write {self._path}",
                    hint="the previous version is intact; free some space and run again",
                ) from error
            raise StorageError(f"cannot write {self._path}: {error}") from error
