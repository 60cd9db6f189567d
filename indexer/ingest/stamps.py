"""What files looked like when they were indexed, so that a build need not read them again.

    photos.index.stamps     beside the index: a cache; without it, builds are only slower

For each record of a folder: its stamp (`models.sources.records.Stamp`) and the content hash it had.
Equal stamp, and the index holds that very content: the record is unchanged, unread. Trusted as git
trusts its index, and with git's caution: a file that was young when it was read may have changed
once more within a tick of its clock, so it is not remembered. Keys are kept as hashes only.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from array import array
from bisect import bisect_left
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from models.sources.records import Stamp

MARGIN_NS: Final = 2_000_000_000
"""A file younger than this when the build began is read again by the next one. FAT counts in steps
of two seconds; every other file system in finer ones."""
CONTENT_BYTES: Final = 16
_MAGIC: Final = b"diptych stamps 1"
_HEAD: Final = struct.Struct("<16s16s16sQ")
"""Magic, index, options, entries; then the entries, sorted by key, and a checksum of it all."""
Entries: TypeAlias = npt.NDArray[np.void]
_ENTRY: Final = np.dtype([("key", "<u8"), ("stamp", "V16"), ("content", f"V{CONTENT_BYTES}")])


def stamps_path(root: Path) -> Path:
    return root.absolute().with_name(root.absolute().name + ".stamps")


class Stamps:
    """The cache of one index. Not thread-safe."""

    def __init__(self, path: Path, index: str, options: str, *, rehash: bool = False) -> None:
        """Read it; one that is missing, damaged or of another index or options counts as empty.

        Args:
            index: the index's uuid (hex).
            options: what besides the files decides a content hash.
            rehash: know nothing, so that everything is read; what is learnt is kept.
        """
        self._path = path
        self._head = _MAGIC, bytes.fromhex(index), _hash(options.encode(), 16)
        self._old = np.zeros(0, dtype=_ENTRY) if rehash else self._read()
        self._keys = array("Q", self._old["key"].tobytes())
        self._bytes = self._old.tobytes()  # 100 times faster to look into than the array
        self._began_ns = time.time_ns()
        self._new: dict[int, tuple[bytes, bytes]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def content(self, key: str, stamp: Stamp) -> bytes | None:
        """The first bytes of the content hash a record had when it looked like this."""
        number = _number(key)
        at = bisect_left(self._keys, number)
        if at == len(self._keys) or self._keys[at] != number:
            return None
        start = at * _ENTRY.itemsize + 8
        if self._bytes[start : start + 16] != stamp.digest:
            return None
        return self._bytes[start + 16 : start + 16 + CONTENT_BYTES]

    def note(self, key: str, stamp: Stamp | None, content_hash: str) -> None:
        """Remember a record that was read, if its files are old enough to be told apart."""
        if stamp is not None and stamp.newest_ns < self._began_ns - MARGIN_NS:
            content = bytes.fromhex(content_hash)[:CONTENT_BYTES]
            self._new[_number(key)] = stamp.digest, content

    def save(self) -> None:
        """Write what is known now, if there is any news. A cache that cannot be written is none."""
        if not self._new:
            return
        fresh = np.zeros(len(self._new), dtype=_ENTRY)
        fresh["key"] = list(self._new)
        fresh["stamp"] = [np.void(stamp) for stamp, _ in self._new.values()]
        fresh["content"] = [np.void(content) for _, content in self._new.values()]
        replaced = np.isin(self._old["key"], fresh["key"])
        entries = np.concatenate([self._old[~replaced], fresh])
        entries = entries[np.argsort(entries["key"], kind="stable")]
        data = _HEAD.pack(*self._head, len(entries)) + entries.tobytes()
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with suppress(OSError):
            try:
                partial.write_bytes(data + xxhash.xxh3_128_digest(data))
                partial.replace(self._path)
            finally:
                partial.unlink(missing_ok=True)

    def _read(self) -> Entries:
        try:
            data = self._path.read_bytes()
        except OSError:
            return np.zeros(0, dtype=_ENTRY)
        body, digest = data[:-16], data[-16:]
        if len(body) < _HEAD.size or xxhash.xxh3_128_digest(body) != digest:
            return np.zeros(0, dtype=_ENTRY)
        *head, count = _HEAD.unpack(body[: _HEAD.size])
        if tuple(head) != self._head or len(body) != _HEAD.size + count * _ENTRY.itemsize:
            return np.zeros(0, dtype=_ENTRY)
        return np.frombuffer(body, dtype=_ENTRY, offset=_HEAD.size)


def _number(key: str) -> int:
    return int.from_bytes(_hash(key.encode("utf-8", "surrogatepass"), 8), "little")


def _hash(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()
