"""What a build has embedded and not yet committed, so that a killed one need not do it again.

    photos.index.resume     beside the index; gone once everything in it is committed

Every embedded batch is appended, unsynced: a killed process loses nothing of it, a power cut what
the system had not written. Each entry has a checksum, and reading stops at the first that is
damaged. Entries count only for the very version of the index, model and options that they were made
for: any other writer's commit in between makes the journal worthless. It knows rows and vectors,
nothing of sources or segments.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash

from indexer.format.entries import Modality
from indexer.format.items import Item, NewRow, Picture
from indexer.ingest.arrivals import Arrival, ItemRow
from models.sources.records import Reject

_MAGIC: Final = b"diptych resume 1"
_HEAD: Final = struct.Struct("<16s16s")
"""Magic, and a digest of what the entries are made for."""
_ENTRY: Final = struct.Struct("<IIQ")
"""Bytes of JSON, bytes of vectors and thumbnails behind it, XXH3 of both."""
_MOST: Final = 256 << 20
"""Bytes of one entry; more is damage."""
_ROWS: Final[tuple[tuple[str, Modality], ...]] = (("images", "image"), ("texts", "text"))


def journal_path(root: Path) -> Path:
    return root.absolute().with_name(root.absolute().name + ".resume")


class Journal:
    """The journal of one index; safe from any thread.

    A journal that cannot be read or written is none: the build goes on without.
    """

    def __init__(self, path: Path, *purpose: str) -> None:
        """Open it, and learn what an earlier build left for the same `purpose`."""
        self._path = path
        self._lock = threading.RLock()
        self._fd: int | None = None
        self._places: dict[tuple[str, str], tuple[int, int, int, int]] = {}
        self._end = 0
        with suppress(OSError):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if os.pread(self._fd, _HEAD.size, 0) == self._head(*purpose):
                self._read()
            else:
                self.begin(*purpose)

    def __len__(self) -> int:
        """Records that an earlier build left."""
        return len(self._places)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to go on with."""
        return self._end <= _HEAD.size

    def restore(self, arrival: Arrival) -> bool:
        """Give a record the rows that an earlier build embedded, if there are any."""
        place = self._places.get((arrival.key, arrival.content_hash))
        if place is None or self._fd is None:
            return False
        at, text, blob, checksum = place
        try:
            data = os.pread(self._fd, text + blob, at)
        except OSError:
            return False
        if xxhash.xxh3_64_intdigest(data) != checksum:  # `begin` was quicker
            return False
        _unpack(json.loads(data[:text]), memoryview(data)[text:], arrival)
        return True

    def add(self, embedded: Iterable[Arrival]) -> None:
        """Append what was embedded; a record without a row is nothing to keep."""
        packed = b"".join(_pack(one) for one in embedded if one.rows)
        with self._lock:
            self._write(packed)

    def mark(self) -> int:
        """Where the journal ends now; for `begin`."""
        return self._end

    def begin(self, *purpose: str, covered: int | None = None) -> None:
        """What came before `covered`, a mark, is committed: keep the rest, for another purpose."""
        with self._lock:
            self._places = {}
            if self._fd is None:
                return
            try:
                end = self._end if covered is None else covered
                rest = os.pread(self._fd, max(self._end - end, 0), end)
                os.ftruncate(self._fd, 0)
            except OSError:
                self._give_up()
                return
            self._end = 0
            self._write(self._head(*purpose) + rest)

    def close(self, *, remove: bool) -> None:
        """Stop using it; `remove` it where nothing is left to go on with."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if remove:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _read(self) -> None:
        assert self._fd is not None
        at = _HEAD.size
        while len(head := os.pread(self._fd, _ENTRY.size, at)) == _ENTRY.size:
            text, blob, checksum = _ENTRY.unpack(head)
            start = at + _ENTRY.size
            if text + blob > _MOST:
                break
            data = os.pread(self._fd, text + blob, start)
            if len(data) < text + blob or xxhash.xxh3_64_intdigest(data) != checksum:
                break
            entry = json.loads(data[:text])
            self._places[entry["record"], entry["content"]] = start, text, blob, checksum
            at = start + text + blob
        self._end = at
        os.ftruncate(self._fd, at)

    def _write(self, data: bytes) -> None:
        if self._fd is None:
            return
        try:
            while data:
                written = os.pwrite(self._fd, data, self._end)
                self._end += written
                data = data[written:]
        except OSError:  # a full disk: the index needs the room more
            self._give_up()

    def _give_up(self) -> None:
        self._places = {}
        self.close(remove=True)

    @staticmethod
    def _head(*purpose: str) -> bytes:
        digest = xxhash.xxh3_128_digest(json.dumps(purpose).encode())
        return _HEAD.pack(_MAGIC, digest)


def _pack(one: Arrival) -> bytes:
    entry: dict[str, Any] = {
        "record": one.key,
        "content": one.content_hash,
        "rejects": [reject.to_dict() for reject in one.rejects],
    }
    blobs: list[bytes] = []
    for name, modality in _ROWS:
        entry[name] = []
        for row in one.rows_of(modality):
            new, thumbnail = row.new, row.new.thumbnail
            vector = np.ascontiguousarray(row.vector_D, dtype="<f4").tobytes()
            blobs += [vector, thumbnail or b""]
            entry[name].append({
                "item": asdict(new.item),
                "values": new.values,
                "texts": new.texts,
                "picture": None if new.picture is None else _facts(new.picture),
                "vector": len(vector),
                "thumbnail": None if thumbnail is None else len(thumbnail),
            })  # fmt: skip
    text, blob = json.dumps(entry).encode(), b"".join(blobs)
    checksum = xxhash.xxh3_64_intdigest(text + blob)
    return _ENTRY.pack(len(text), len(blob), checksum) + text + blob


def _unpack(entry: dict[str, Any], blob: memoryview, arrival: Arrival) -> None:
    at = 0

    def take(size: int) -> memoryview:
        nonlocal at
        at += size
        return blob[at - size : at]

    for name, _ in _ROWS:
        for one in entry[name]:
            vector_D = np.frombuffer(take(one["vector"]), dtype="<f4")
            size, facts = one["thumbnail"], one["picture"]
            new = NewRow(
                record=entry["record"],
                item=Item(**one["item"]),
                thumbnail=None if size is None else bytes(take(size)),
                values=tuple(tuple(v) if isinstance(v, list) else v for v in one["values"]),
                texts=None if one["texts"] is None else tuple(one["texts"]),
                picture=None if facts is None else _picture(*facts),
            )
            arrival.rows.append(ItemRow(new, vector_D=vector_D))
    arrival.rejects += [Reject(**reject) for reject in entry["rejects"]]
    arrival.step, arrival.record = "restore", None


def _picture(width: int, height: int, size: int, pixels: str) -> Picture:
    return Picture(width, height, size, bytes.fromhex(pixels))


def _facts(picture: Picture) -> tuple[int, int, int, str]:
    return picture.width, picture.height, picture.size, picture.pixels.hex()
