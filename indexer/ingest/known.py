"""What an index knows of the records that come: held already, unread since, or gone.

`KnownRecords` has the records of one opened version: per record the hash of its content and of its
location, 40 bytes, about 200 of memory in all. `Stamps` is what files looked like when they were
indexed, so that they need not be read again. `Mirror` judges what is gone from the sources, and
whether one may believe it. The reader asks the first two, the pipeline the third at the end.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from indexer.format.version import OpenVersion
from models.errors import InputError
from models.sources.records import Record, Reject, SeenKeys, Source, Stamp

State = Literal["new", "unchanged", "moved", "changed"]

_BATCH: Final = 500
_URI_BYTES: Final = 8
_SCAN: Final = 65_536
_COLUMNS: Final = "row, record, content_hash, uri"


class KnownRecords:
    """The live records of a version, or those of some keys."""

    def __init__(self, base: OpenVersion, only: Collection[str] | None = None) -> None:
        """Read them.

        Args:
            base: stays open as long as this is used.
            only: keys to look up; None reads all there are.

        Raises:
            IndexCorruptError: a segment's database is damaged.
        """
        self._base = base
        self._states: dict[str, bytes] = {}
        for position, dead in enumerate(base.dead):
            for row, record, digest, uri in self._rows(position, only):
                if not dead[row]:
                    self._states[record] = digest + _short(uri)

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, key: str) -> bool:
        return key in self._states

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def state(self, record: Record, digest: str) -> State:
        """What a record of this content hash (hex) is to the index; moved: only its `uri` is."""
        stored = self._states.get(record.key)
        if stored is None:
            return "new"
        if stored[:-_URI_BYTES] != bytes.fromhex(digest):
            return "changed"
        return "unchanged" if stored[-_URI_BYTES:] == _short(record.uri) else "moved"

    def holds(self, key: str, content: bytes, uri: str) -> bool:
        """Whether a record is in the index with this start of its content hash, and this `uri`."""
        stored = self._states.get(key)
        return (
            stored is not None
            and stored[: len(content)] == content
            and stored[-_URI_BYTES:] == _short(uri)
        )

    def live_rows(self, key: str) -> list[tuple[int, int]]:
        """(position of the segment, row) of everything live that came from a record."""
        return [
            (position, row)
            for position, segment in enumerate(self._base.segments)
            for row in segment.items.rows_of(key)
            if not self._base.dead[position][row]
        ]

    def _rows(
        self, position: int, only: Collection[str] | None
    ) -> Iterator[tuple[int, str, bytes, str]]:
        query = self._base.segments[position].items.query
        if only is not None:
            keys = list(only)
            for start in range(0, len(keys), _BATCH):
                part = keys[start : start + _BATCH]
                marks = ", ".join("?" * len(part))
                yield from query(
                    f"SELECT {_COLUMNS} FROM items WHERE record IN ({marks})",  # noqa: S608
                    part,
                )
            return
        start = 0
        select = f"SELECT {_COLUMNS} FROM items WHERE row >= ? ORDER BY row LIMIT ?"  # noqa: S608
        while block := query(select, (start, _SCAN)):
            yield from block
            start = block[-1][0] + 1


def _short(uri: str) -> bytes:
    return hashlib.blake2b(uri.encode(), digest_size=_URI_BYTES).digest()


MOST: Final = 0.5
"""The largest share of its records that an index loses without `mirror_all`."""

_HARMLESS: Final = frozenset({"duplicate-key", "duplicate-id"})


@dataclass(slots=True)
class Mirror:
    """What a build saw of its sources, for judging afterwards what is gone.

    Only sources read to their end tell that. A row that a reader refused without telling whose it
    is might be any record's, and a disk that is not mounted looks like an empty folder. So a mirror
    removes nothing when in doubt, and never more than half without being told so.
    """

    seen: SeenKeys = field(default_factory=SeenKeys)
    _refused: set[str] = field(default_factory=set)
    _folders: list[str] = field(default_factory=list)
    _nameless: int = 0

    def refused(self, source: Source, reject: Reject) -> None:
        """Take note of a row that a reader refused: whatever it is, it is not gone."""
        if reject.code in _HARMLESS:
            return
        if not source.keys_are_paths:  # a line, a byte offset or a member, not the record's key
            self._nameless += 1
        elif reject.key.endswith("/"):
            self._folders.append("" if reject.key == "/" else reject.key)
        else:
            self._refused.add(reject.key)

    def gone(self, known: KnownRecords, *, remove_all: bool) -> list[str]:
        """Keys of the records that no source has any more.

        Raises:
            InputError: it cannot be told, or there are too many of them.
        """
        gone = [
            key
            for key in known
            if key not in self._refused
            and not any(key.startswith(folder) for folder in self._folders)
            and self.seen.add(key)
        ]
        if not gone:
            return []
        if self._nameless:
            raise InputError(
                f"nothing was removed: {self._nameless} rows could not be read, "
                f"and may be among the {len(gone)} records that seem to be gone",
                code="mirror-uncertain",
                hint="mend the source, whose rejects file names each, and run again",
            )
        if len(gone) > MOST * len(known) and not remove_all:
            raise InputError(
                f"nothing was removed: {len(gone)} of {len(known)} records seem to be gone",
                code="mirror-too-much",
                hint="see that every source is there and was named; --mirror-all removes them",
            )
        return gone


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
    """What the files of an index looked like. Not thread-safe.

        photos.index.stamps     beside the index: a cache; without it, builds are only slower

    For each record of a folder: its stamp (`models.sources.records.Stamp`) and the content hash it
    had. Equal stamp, and the index holds that very content: the record is unchanged, unread.
    Trusted as git trusts its index, and with git's caution: a file that was young when it was read
    may have changed once more within a tick of its clock, so it is not remembered. Keys are kept as
    hashes only.
    """

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
