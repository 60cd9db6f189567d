"""Reads the erasure list of a version: what was deleted and must not come back unasked.

    erased/00000042.npy    uint8 [E, 32]: sorted sha256 of what was deleted, without repeats

A record, or an item that has an id of its own, is remembered by its id (`hash_id`). A caption whose
id is a place among its record's (`cat.jpg#en/0`) is remembered by what it says (`hash_text`): put
another before it, and it has another place; correct it, and the place has another text. Lists of
earlier releases hold ids of places, which are left out as they always were.

Whoever adds or restores rows asks it. It holds hashes only, so it can outlive a purge; it grants no
secrecy to ids that can be guessed. It knows nothing of rows, segments or commits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from indexer.format.integrity import verify_file
from indexer.format.items import Item, ItemsReader
from indexer.format.manifest import ERASED, HINT, Manifest
from indexer.format.npy import check_npy, npy_header
from models.errors import IndexCorruptError
from models.sources.fields import bare_words

_BYTES: Final = 32
_PLACE: Final = re.compile(r"#[^#/]*/[0-9]+")

Erased: TypeAlias = str | bytes
"""An id, or the hash of something that has none of its own."""


class Erasures:
    """An immutable set of hashes, about 100 bytes of memory each.

    `item_id in erasures` asks for an id, `hash_text(...) in erasures` for a text.
    """

    def __init__(self, hashes: Iterable[bytes] = ()) -> None:
        self._hashes = frozenset(hashes)

    def __contains__(self, erased: Erased) -> bool:
        return bool(self._hashes) and hashed(erased) in self._hashes

    def text(self, record: str, language: str | None, text: str | None) -> bool:
        """Whether this text of a record was deleted by what it says."""
        return (
            bool(self._hashes)
            and text is not None
            and hash_text(record, language, text) in self._hashes
        )

    def holds(self, record: str, item: Item) -> bool:
        """Whether an item must stay out: it or its record was deleted."""
        if item.id in self or record in self:
            return True
        return item.modality == "text" and self.text(record, item.language, item.text)

    def __len__(self) -> int:
        return len(self._hashes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Erasures) and self._hashes == other._hashes

    def __hash__(self) -> int:
        return hash(self._hashes)

    def changed(self, *, erase: Iterable[Erased] = (), unerase: Iterable[Erased] = ()) -> Erasures:
        """With some taken off and others put on; what is named in both is on."""
        hashes = self._hashes - {hashed(one) for one in unerase}
        return Erasures(hashes | {hashed(one) for one in erase})

    def joined(self, hashes: Iterable[bytes]) -> Erasures:
        """With these hashes of ids as well."""
        return Erasures(self._hashes | set(hashes))

    def encode(self) -> bytes:
        """The file form."""
        return npy_header("|u1", (len(self), _BYTES)) + b"".join(sorted(self._hashes))


def hash_id(item_id: str) -> bytes:
    """sha256 of an id; a lone surrogate, which no stored id can hold, is hashed all the same."""
    return hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).digest()


def hash_text(record: str, language: str | None, text: str) -> bytes:
    """sha256 of a text within its record, in one case, composition and spacing.

    Otherwise a deleted text would be back with a space more. The language belongs to it: where two
    languages share a word, deleting one leaves the other.
    """
    return hash_id("\0".join(("text", record, language or "", bare_words(text))))


def is_place(record: str, item_id: str) -> bool:
    """Whether the id of a text says only where it stands among its record's texts."""
    rest = item_id.removeprefix(record)
    return rest != item_id and _PLACE.fullmatch(rest) is not None


def hashed(erased: Erased) -> bytes:
    """The hash that a list has of something."""
    return erased if isinstance(erased, bytes) else hash_id(erased)


def read_erasures(root: Path, manifest: Manifest) -> Erasures:
    """The erasure list of a version, verified.

    Raises:
        IndexCorruptError: missing, damaged, unsorted or repeated.
        StoreError: the operating system refused to read.
    """
    entry = manifest.erased
    if entry is None:
        return Erasures()
    name = f"{ERASED}/{entry.file}"
    with verify_file(root, name, entry) as file:
        data = file.read()
    offset = check_npy(name, data[:4096], len(data), "|u1", (entry.count, _BYTES))
    rows = np.frombuffer(data, dtype=f"V{_BYTES}", offset=offset).tolist()
    if any(one >= two for one, two in pairwise(rows)):
        raise IndexCorruptError(name, "it is not sorted, or repeats an id", hint=HINT)
    return Erasures(rows)


def erased_rows(items: ItemsReader, erasures: Erasures) -> Iterator[tuple[int, str]]:
    """(row, record) of every row that the list keeps out: see `Erasures.holds`.

    Raises:
        IndexCorruptError: the items are damaged.
    """
    if len(erasures):
        for row, item_id, record, language, text in items.texts():
            if item_id in erasures or record in erasures or erasures.text(record, language, text):
                yield row, record


def hashes_in(path: Path) -> set[bytes]:
    """The hashes of an erasure list that nothing vouches for; none where it is no such list."""
    try:
        data = path.read_bytes()
    except OSError:
        return set()
    for start in range(64, 257, 64):  # a header is padded to a multiple of 64
        count, odd = divmod(len(data) - start, _BYTES)
        if count > 0 and not odd and data.startswith(npy_header("|u1", (count, _BYTES))):
            return {data[at : at + _BYTES] for at in range(start, len(data), _BYTES)}
    return set()
