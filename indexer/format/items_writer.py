"""Writes one segment's `items.sqlite`; `indexer.format.items` reads it, and says what it is.

The file is scratch until it is sealed and renamed, so SQLite keeps no journal and syncs nothing.
It knows nothing of vectors, versions or tombstones.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from indexer.filters.declared import Field, Value
from indexer.format.field_table import FieldTableWriter
from indexer.format.items import Item, ItemsReader, Picture
from indexer.format.word_table import WordTableWriter
from models.errors import NoSpaceError, StorageError

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
_INSERT: Final = "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


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

    def add(
        self,
        row: int,
        record: str,
        item: Item,
        thumbnail: bytes | None,
        values: Sequence[Value] = (),
        texts: Sequence[str] | None = None,
        picture: Picture | None = None,
    ) -> None:
        """Store one row; rows come in order from 0.

        Args:
            record: the key of its source record.
            thumbnail: JPEG bytes.
            values: of the declared fields, in their order; none are known if empty.
            texts: what search by words finds it by: a picture's texts. None takes the item's own;
                empty leaves the row to `take_words`.
            picture: what is known of it; None for texts and where nothing is.
        """
        columns = (
            row,
            item.id,
            record,
            item.uri,
            item.text,
            item.language,
            item.image_id,
            item.label,
            json.dumps(item.attributes, ensure_ascii=False, allow_nan=False),
            bytes.fromhex(item.content_hash),
        )
        self._do(lambda: self._db.execute(_INSERT, columns))
        self._do(lambda: self._table.add(row, item.label, item.language, values))
        if texts is None:
            texts = () if item.text is None else (item.text,)
        self._words.add(row, texts)
        self._rows = row + 1
        if thumbnail is not None:
            pair = (row, thumbnail)
            self._do(lambda: self._db.execute("INSERT INTO thumbnails VALUES (?, ?)", pair))

        if picture is not None:
            known = (row, picture.width, picture.height, picture.size, picture.pixels)
            self._do(lambda: self._db.execute("INSERT INTO pictures VALUES (?,?,?,?,?)", known))

    def take_words(self, source: ItemsReader, target_N: npt.NDArray[np.int64]) -> None:
        """Find rows by the words that another segment finds them by, without their texts.

        Args:
            source: has words; open until `close`.
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
