"""Reads the erasure list of a version: which ids were deleted and must not come back unasked.

    erased/00000042.npy    uint8 [E, 32]: sorted sha256 of item and record ids, without repeats

Whoever adds or restores rows asks it. It holds hashes only, so it can outlive a purge; it grants no
secrecy to ids that can be guessed. It knows nothing of rows, segments or commits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from indexer.format.integrity import verify_file
from indexer.format.items import ItemsReader
from indexer.format.manifest import ERASED, HINT, Manifest
from indexer.format.npy import check_npy, npy_header
from models.errors import IndexCorruptError

_BYTES: Final = 32


class Erasures:
    """An immutable set of hashed ids: `item_id in erasures`; about 100 bytes of memory an id."""

    def __init__(self, hashes: Iterable[bytes] = ()) -> None:
        self._hashes = frozenset(hashes)

    def __contains__(self, item_id: str) -> bool:
        return bool(self._hashes) and hash_id(item_id) in self._hashes

    def __len__(self) -> int:
        return len(self._hashes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Erasures) and self._hashes == other._hashes

    def __hash__(self) -> int:
        return hash(self._hashes)

    def changed(self, *, erase: Iterable[str] = (), unerase: Iterable[str] = ()) -> Erasures:
        """With some ids taken off and others put on; one named in both is on."""
        hashes = self._hashes - {hash_id(item) for item in unerase}
        return Erasures(hashes | {hash_id(item) for item in erase})

    def joined(self, hashes: Iterable[bytes]) -> Erasures:
        """With these hashes of ids as well."""
        return Erasures(self._hashes | set(hashes))

    def encode(self) -> bytes:
        """The file form."""
        return npy_header("|u1", (len(self), _BYTES)) + b"".join(sorted(self._hashes))


def hash_id(item_id: str) -> bytes:
    """sha256 of an id; a lone surrogate, which no stored id can hold, is hashed all the same."""
    return hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).digest()


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
    """(row, record) of every row whose own id, or whose record's, is on the list.

    Raises:
        IndexCorruptError: the items are damaged.
    """
    if len(erasures):
        for row, item_id, record, _ in items.records():
            if item_id in erasures or record in erasures:
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
