"""Turns texts into terms, and keeps which rows of a segment hold a term, and how often.

    words(term, rows, postings)              one row per term, sorted
    words_about(tokenizer, rows, lengths)    one row: `TOKENIZER`, and how many terms each row has,
                                             <u2 [N], capped

**Terms.** A term is a run of letters, digits and marks, in one case, width and composition, Latin
and Greek letters without accents. Scripts that are written without spaces, and Korean, whose words
carry particles, have no such runs: there every character and every overlapping pair of characters
is a term. On native Chinese captions (5,000 of Flickr8k's, one as query, the picture's others as
its document) pairs with single characters find about as much as single characters alone (mean
reciprocal rank 0.448 and 0.455) and more than pairs (0.418) or trigrams (0.343); of two-character
words, the commonest kind, trigrams find none, and single characters find others that hold both
characters (precision of the first ten 0.77 against 1.00). Nothing is stemmed: it changed nothing
measurable on English (0.650 both ways), and languages are mixed within an index. Queries are text,
never a syntax: there are no operators to escape.

**Tables**, in the segment's `items.sqlite`. `postings` is a head of two bytes and two arrays: the
gaps between the ascending row numbers (the first row is a gap from -1), of the head's first byte's
width, then counts of one byte, left out (second byte 0) where every count is one. Reading a term is
one lookup and one cumulative sum, so that BM25 can be computed with the statistics of the whole
index; FTS5's own `bm25()` knows only those of its table, and visits rows one by one: at 300,000
captions it took 320 ms for "a man in a red shirt" against 9 ms, and 58 bytes a caption against 30.

The tables are written and read through a connection that `indexer.format.items` gives; ranking is
`indexer.search.words`.
"""

from __future__ import annotations

import heapq
import re
import sqlite3
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt

from indexer.format.field_table import Query

TOKENIZER: Final = 1
"""Stored with every word table; one made by another version of this module is not searched."""

_LONGEST: Final = 64
"""Characters of a term; the rest of a longer run is left out, in texts and queries alike."""

_UNSPACED: Final = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Myanmar, Khmer
    "\u1100-\u11ff\uac00-\ud7af"  # Hangul
    "\u3005\u3007\u3040-\u30ff\u31f0-\u31ff"  # Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_ASCII: Final = re.compile("[a-z0-9]+")
_ACCENTED: Final = re.compile("[\u00c0-\u024f\u0370-\u03ff\u1e00-\u1fff]")


def terms(text: str) -> list[str]:
    """The terms of a text in order, repeated as often as they occur; none if it has no letters."""
    if text.isascii():  # a shortcut, eight times as fast as the way below
        return [run[:_LONGEST] for run in _ASCII.findall(text.lower())]
    found: list[str] = []
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    # NFD puts the bare letter first, its accents after it
    text = _ACCENTED.sub(lambda match: unicodedata.normalize("NFD", match[0])[0], text)
    for run, unspaced in _pattern().findall(text):
        if run:
            found.append(run[:_LONGEST])
        else:
            found.extend(unspaced)
            found.extend(unspaced[at : at + 2] for at in range(len(unspaced) - 1))
    return found


def file_name(uri: str, item_id: str) -> str:
    """What a picture's file is called, without folders and suffix: words it is found by.

    `file:///photos/2019/IMG_2041.jpg` and `file:///a.tar#2019/IMG_2041.jpg` -> `IMG_2041`; the end
    of the id where there is no URI.
    """
    parts = urlsplit(uri)
    path = unquote(parts.fragment or parts.path) or item_id
    return PurePosixPath(path).stem


def names(query: str, texts: Iterable[str], name: str) -> bool:
    """Whether a query's words themselves say that an item is meant.

    All of them are in its texts or file name, or its whole file name is most of the query. One word
    of several is not enough: "a" is in most captions.
    """
    wanted = set(terms(query))
    called = set(terms(name))
    held = called.union(*(terms(text) for text in texts))
    return bool(wanted) and (wanted <= held or (called <= wanted and 2 * len(called) > len(wanted)))


@cache
def _pattern() -> re.Pattern[str]:
    """Groups: a run of a spaced script, or one of an unspaced script.

    `\\w` lacks the marks that many scripts write vowels with; they belong to their letters.
    """
    marks = "".join(chr(at) for at in range(0x20000) if unicodedata.category(chr(at))[0] == "M")
    return re.compile(rf"((?:(?![{_UNSPACED}_])[\w{marks}])+)|((?:(?!_)[{_UNSPACED}])+)")


class WordSource(Protocol):
    """Words to take over; `indexer.format.items.ItemsReader` has them."""

    def word_lengths(self) -> npt.NDArray[np.uint16]: ...

    def all_postings(self) -> Iterator[tuple[str, Postings]]: ...


_SCHEMA: Final = (
    "CREATE TABLE words(term TEXT PRIMARY KEY, rows INTEGER NOT NULL, postings BLOB NOT NULL) "
    "WITHOUT ROWID",
    "CREATE TABLE words_about(tokenizer INTEGER NOT NULL, rows INTEGER NOT NULL, "
    "lengths BLOB NOT NULL)",
)
_MOST: Final = 255
_LENGTH: Final = 65_535
_BLOCK: Final = 1024
IN_TURN: Final = 8192
"""Words of a segment of fewer rows are read when they are taken, so that it need not stay open."""


@dataclass(frozen=True, slots=True)
class Postings:
    """The rows that hold a term, ascending, int64 [M], and how often each does, uint8 [M]."""

    rows_M: npt.NDArray[np.int64]
    counts_M: npt.NDArray[np.uint8]


class WordTableWriter:
    """Fills the tables of a new `items.sqlite`; `finish` writes them.

    Memory is about 9 bytes per term of a text added, next to nothing per term taken over from a
    large segment.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        for statement in _SCHEMA:
            db.execute(statement)
        self._lengths = array("H")
        # row and count in one number, so that a term costs one array
        self._postings: dict[str, array[int]] = {}
        self._taken: list[tuple[WordSource, npt.NDArray[np.int64]]] = []

    def add(self, row: int, texts: Iterable[str]) -> None:
        """A row is found by the terms of its texts; rows come in ascending order."""
        counts = Counter(term for text in texts for term in terms(text))
        self._set_length(row, counts.total())
        for term, count in counts.items():
            where = self._postings.get(term)
            if where is None:
                where = self._postings[term] = array("q")
            where.append(row << 8 | min(count, _MOST))

    def take(self, source: WordSource, target_N: npt.NDArray[np.int64]) -> None:
        """Take over what another table says of its rows.

        Args:
            source: open until `finish`, unless it has fewer than `IN_TURN` rows.
            target_N: for each of its rows the row it becomes here, or -1.
        """
        moved_M = np.flatnonzero(target_N >= 0)
        lengths_M = source.word_lengths()[moved_M]
        for row, length in zip(target_N[moved_M].tolist(), lengths_M.tolist(), strict=True):
            self._set_length(row, length)
        if len(target_N) < IN_TURN:
            for term, postings in _moved(source, target_N):
                if len(postings.rows_M):
                    where = self._postings.setdefault(term, array("q"))
                    where.frombytes((postings.rows_M << 8 | postings.counts_M).tobytes())
            return
        for place, (known, before_N) in enumerate(self._taken):
            if known is source:  # taken piece by piece, it is still read once
                self._taken[place] = source, np.maximum(before_N, target_N)
                return
        self._taken.append((source, target_N))

    def finish(self, rows: int) -> None:
        """Write both tables of a segment of so many rows."""
        sources: list[Iterator[tuple[str, Postings]]] = [
            ((term, _unpack(self._postings[term])) for term in sorted(self._postings)),
            *(_moved(source, target_N) for source, target_N in self._taken),
        ]
        merged = heapq.merge(*sources, key=itemgetter(0))
        for term, parts in groupby(merged, key=itemgetter(0)):
            found = _join([part for _, part in parts])
            if len(found.rows_M):
                entry = (term, len(found.rows_M), encode(found))
                self._db.execute("INSERT INTO words VALUES (?, ?, ?)", entry)
        self._lengths.extend([0] * (rows - len(self._lengths)))
        about = (TOKENIZER, rows, np.array(self._lengths, dtype="<u2").tobytes())
        self._db.execute("INSERT INTO words_about VALUES (?, ?, ?)", about)
        self._postings.clear()

    def _set_length(self, row: int, length: int) -> None:
        if row >= len(self._lengths):
            self._lengths.extend([0] * (row + 1 - len(self._lengths)))
        self._lengths[row] = min(length, _LENGTH)


def has_words(query: Query) -> bool:
    """Whether the table is there and of this version's terms."""
    if not query("SELECT 1 FROM sqlite_master WHERE name = 'words_about'", ()):
        return False
    return bool(query("SELECT tokenizer FROM words_about", ()) == [(TOKENIZER,)])


def read_lengths(query: Query) -> npt.NDArray[np.uint16]:
    """How many terms each row has, capped at 65,535: uint16 [N]."""
    [(rows, lengths)] = query("SELECT rows, lengths FROM words_about", ())
    return np.frombuffer(lengths, dtype="<u2", count=rows)


def read_postings(query: Query, wanted: Sequence[str]) -> dict[str, Postings]:
    """Postings of those terms that occur at all.

    Raises:
        ValueError: a posting list is damaged.
    """
    found: dict[str, Postings] = {}
    for start in range(0, len(wanted), _BLOCK):
        part = wanted[start : start + _BLOCK]
        marks = ", ".join("?" * len(part))
        for term, rows, data in query(
            f"SELECT term, rows, postings FROM words WHERE term IN ({marks})",  # noqa: S608
            part,
        ):
            found[term] = decode(rows, data)
    return found


def all_postings(query: Query) -> Iterator[tuple[str, Postings]]:
    """Every term and its postings, terms ascending, a block in memory.

    Raises:
        ValueError: a posting list is damaged.
    """
    last = ""
    while block := query(
        "SELECT term, rows, postings FROM words WHERE term > ? ORDER BY term LIMIT ?",
        (last, _BLOCK),
    ):
        for term, rows, data in block:
            yield term, decode(rows, data)
        last = block[-1][0]


def encode(postings: Postings) -> bytes:
    """The stored form of postings of at least one row."""
    gaps_M = np.diff(postings.rows_M, prepend=-1)
    width = next(size for size in (1, 2, 4, 8) if gaps_M.max() < 1 << 8 * size)
    counted = bool((postings.counts_M != 1).any())
    counts = postings.counts_M.tobytes() if counted else b""
    return bytes([width, counted]) + gaps_M.astype(f"<u{width}").tobytes() + counts


def decode(rows: int, data: bytes) -> Postings:
    """The opposite of `encode`.

    Raises:
        ValueError: not what `encode` writes for so many rows.
    """
    width, counted = data[0], data[1]
    if width not in (1, 2, 4, 8) or len(data) != 2 + rows * (width + bool(counted)):
        raise ValueError("a posting list has the wrong length")
    gaps_M = np.frombuffer(data, dtype=f"<u{width}", count=rows, offset=2)
    rows_M = np.cumsum(gaps_M, dtype=np.int64)
    rows_M -= 1
    if counted:
        counts_M = np.frombuffer(data, dtype=np.uint8, offset=2 + rows * width)
    else:
        counts_M = np.ones(rows, dtype=np.uint8)
    return Postings(rows_M, counts_M)


def _unpack(where: array[int]) -> Postings:
    both_M = np.frombuffer(where, dtype=np.int64)
    return Postings(both_M >> 8, (both_M & 0xFF).astype(np.uint8))


def _moved(source: WordSource, target_N: npt.NDArray[np.int64]) -> Iterator[tuple[str, Postings]]:
    for term, postings in source.all_postings():
        target_M = target_N[postings.rows_M]
        kept_M = target_M >= 0
        yield term, Postings(target_M[kept_M], postings.counts_M[kept_M])


def _join(parts: Sequence[Postings]) -> Postings:
    rows_M = np.concatenate([part.rows_M for part in parts])
    counts_M = np.concatenate([part.counts_M for part in parts])
    order_M = np.argsort(rows_M, kind="stable")
    return Postings(rows_M[order_M], counts_M[order_M])
