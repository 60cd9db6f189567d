"""The files beside an index: what a build refused, what it had not committed, what it had read.

    photos.index.rejects.jsonl   `RejectsFile`: a report of every refusal, one JSON object a line
    photos.index.resume          `Journal`: embedded and not yet committed; gone once it is
    photos.index.stamps          `Stamps`: what files looked like, so that they are not read again

None is part of the index, which is right without them. A build writes them, purging scrubs them.
They lie beside the index itself, not beside a link to it. A file of such a name may be somebody
else's: `require_ours` looks before anything is replaced.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol, TextIO, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from indexer.files.fs import open_regular, storage_error
from indexer.format.entries import Modality
from indexer.format.erasures import Erasures
from indexer.format.items import Item, NewRow, Picture
from indexer.ingest.arrivals import Arrival, ItemRow
from models.atomic import replace_file
from models.errors import StoreError
from models.sources.records import Reject, Stamp

_Looks: TypeAlias = Callable[[bytes], bool]
_MAX_DETAIL: Final = 500
_REJECTS: Final = ".rejects.jsonl"
_STAMPS: Final = ".stamps"
_JOURNAL: Final = ".resume"


def rejects_path(root: Path) -> Path:
    """Where builds put the rejects of an index unless told otherwise: beside it."""
    return _beside(root, _REJECTS)


def _beside(root: Path, suffix: str) -> Path:
    return _named(root.resolve(), suffix)


def _named(root: Path, suffix: str) -> Path:
    return root.with_name(root.name + suffix)


def require_ours(root: Path, rejects: Path) -> None:
    """Refuse to build where a file beside the index is not one that a build made.

    Args:
        rejects: where the rejects are to go.

    Raises:
        StoreError: naming the file and what to do; nothing was touched.
    """
    first: tuple[Path, _Looks, str] = (rejects, _begins_as_rejects, "name another with --rejects")
    beside = [first]
    beside += [(path, looks, "name another index") for path, looks in _caches(root.resolve())]
    for path, looks, otherwise in beside:
        if os.path.lexists(path) and not _looks(path, looks):
            raise StoreError(
                f"{path} is in the way: no build of an index made it, and this one would replace "
                "it",
                code="not-ours",
                hint=f"move it away, or {otherwise}",
            )


def scrub_beside(root: Path, erasures: Erasures) -> int:
    """Take what was deleted out of the files beside an index; builds do without its caches.

    Earlier releases put them beside a link to the index: it is looked for there too.

    Returns:
        How many lines of rejects there were.

    Raises:
        NoSpaceError, StoreError: a rejects file cannot be read or replaced.
    """
    lines = 0
    for whole in dict.fromkeys((root.resolve(), root.absolute())):
        lines += _scrub_rejects(_named(whole, _REJECTS), erasures)
        for path, looks in _caches(whole):
            if _looks(path, looks):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
    return lines


def _caches(whole: Path) -> list[tuple[Path, _Looks]]:
    return [
        (_named(whole, _STAMPS), lambda start: _same_start(start, _STAMPS_MAGIC)),
        (_named(whole, _JOURNAL), lambda start: _same_start(start, _JOURNAL_MAGIC)),
    ]


def _same_start(start: bytes, magic: bytes) -> bool:
    """Whether a file is one with this magic, of any release, or was cut off before that."""
    return magic[:-1].startswith(start[: len(magic) - 1])


def _begins_as_rejects(start: bytes) -> bool:
    return not start or start.startswith(b'{"source": ')


def _looks(path: Path, looks: _Looks) -> bool:
    """Whether a path is a regular file whose beginning looks right."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            return looks(file.read(16))
    except OSError:
        return False


class Rejects(Protocol):
    """Where a build puts what was refused; `count` is how many there were."""

    count: int

    def add(self, reject: Reject) -> None: ...


class RejectsList:
    """Keeps rejects in memory, for callers that hand over few records."""

    def __init__(self) -> None:
        self.rejects: list[Reject] = []
        self.count = 0

    def add(self, reject: Reject) -> None:
        self.rejects.append(reject)
        self.count += 1


class RejectsFile:
    """Appends rejects to a file that is made on the first one; a file of an earlier run is removed.

    A line is `{source, key, code, detail}`; written as the run goes, not fsynced. Builds that run
    at once append to one file.

    Raises (every method):
        NoSpaceError, StoreError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file: TextIO | None = None
        try:
            if not _is_in_use(path):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, "replace", path) from error

    def add(self, reject: Reject) -> None:
        # a hostile source must not be able to fill the disk through its error messages
        entry = {key: value[:_MAX_DETAIL] for key, value in reject.to_dict().items()}
        try:
            if self._file is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                fd = os.open(self.path, flags, 0o666)
                with suppress(OSError):  # without locks there are no two builds
                    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                self._file = open(fd, "w", encoding="utf-8", buffering=1)  # noqa: PTH123, SIM115
            # ASCII: keys may hold what no encoding can print
            self._file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise storage_error(error, "write", self.path) from error
        self.count += 1

    def close(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
        except OSError as error:
            raise storage_error(error, "write", self.path) from error


def _is_in_use(path: Path) -> bool:
    """Whether a build that runs writes rejects there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _scrub_rejects(path: Path, erasures: Erasures) -> int:
    """Take the lines that name erased items, or texts of theirs, out of a rejects file.

    Returns:
        How many there were. A file that is not there, or not ours, is left alone.

    Raises:
        NoSpaceError, StoreError: the file cannot be read or replaced.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines(keepends=True)
        kept = [line for line in lines if not _names_erased(line, erasures)]
        if len(kept) < len(lines):
            replace_file(path, "".join(kept).encode("ascii"))
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError):
        return 0
    except OSError as error:
        raise storage_error(error, "replace", path) from error
    return len(lines) - len(kept)


def _names_erased(line: str, erasures: Erasures) -> bool:
    key = json.loads(line)["key"]
    return key in erasures or key.rpartition("#")[0] in erasures


_JOURNAL_MAGIC: Final = b"diptych resume 1"
_JOURNAL_HEAD: Final = struct.Struct("<16s16s")
"""Magic, and a digest of what the entries are made for."""
_JOURNAL_ENTRY: Final = struct.Struct("<IIQ")
"""Bytes of JSON, bytes of vectors and thumbnails behind it, XXH3 of both."""
_MOST_BYTES: Final = 256 << 20
"""Bytes of one entry; more is damage."""
_ROWS: Final[tuple[tuple[str, Modality], ...]] = (("images", "image"), ("texts", "text"))


def journal_path(root: Path) -> Path:
    return _beside(root, _JOURNAL)


class Journal:
    """What a build has embedded and not yet committed; safe from any thread.

    Every embedded batch is appended, unsynced: a killed process loses nothing of it, a power cut
    what the system had not written. Each entry has a checksum, and reading stops at the first that
    is damaged. Entries count only for the index, its erasure list, the model and the options that
    they were made for: a deletion in between makes the journal worthless. One that cannot be read
    or written, or is used by another build, is none: the build goes on without.
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
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # it is another build's
                os.close(self._fd)
                self._fd = None
                return
            if os.pread(self._fd, _JOURNAL_HEAD.size, 0) == self._head(*purpose):
                self._read()
            else:
                self.begin(*purpose)

    def __len__(self) -> int:
        """Records that an earlier build left."""
        return len(self._places)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to go on with."""
        return self._end <= _JOURNAL_HEAD.size

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
        if self._fd is None:
            return
        if remove:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = None

    def _read(self) -> None:
        assert self._fd is not None
        at = _JOURNAL_HEAD.size
        while len(head := os.pread(self._fd, _JOURNAL_ENTRY.size, at)) == _JOURNAL_ENTRY.size:
            text, blob, checksum = _JOURNAL_ENTRY.unpack(head)
            start = at + _JOURNAL_ENTRY.size
            if text + blob > _MOST_BYTES:
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
        return _JOURNAL_HEAD.pack(_JOURNAL_MAGIC, digest)


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
    return _JOURNAL_ENTRY.pack(len(text), len(blob), checksum) + text + blob


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
                origin=arrival.origin,
            )
            arrival.rows.append(ItemRow(new, vector_D=vector_D))
    arrival.rejects += [Reject(**reject) for reject in entry["rejects"]]
    arrival.step, arrival.record = "restore", None


def _picture(width: int, height: int, size: int, pixels: str) -> Picture:
    return Picture(width, height, size, bytes.fromhex(pixels))


def _facts(picture: Picture) -> tuple[int, int, int, str]:
    return picture.width, picture.height, picture.size, picture.pixels.hex()


MARGIN_NS: Final = 2_000_000_000
"""A file younger than this when the build began is read again by the next one. FAT counts in steps
of two seconds; every other file system in finer ones."""
CONTENT_BYTES: Final = 16
_STAMPS_MAGIC: Final = b"diptych stamps 1"
_STAMPS_HEAD: Final = struct.Struct("<16s16s16sQ")
"""Magic, index, options, entries; then the entries, sorted by key, and a checksum of it all."""
Entries: TypeAlias = npt.NDArray[np.void]
_STAMP: Final = np.dtype([("key", "<u8"), ("stamp", "V16"), ("content", f"V{CONTENT_BYTES}")])


def stamps_path(root: Path) -> Path:
    return _beside(root, _STAMPS)


class Stamps:
    """What the files of an index looked like: a cache, for one thread.

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
        self._head = _STAMPS_MAGIC, bytes.fromhex(index), _hash(options.encode(), 16)
        self._old = np.zeros(0, dtype=_STAMP) if rehash else self._read()
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
        start = at * _STAMP.itemsize + 8
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
        fresh = np.zeros(len(self._new), dtype=_STAMP)
        fresh["key"] = list(self._new)
        fresh["stamp"] = [np.void(stamp) for stamp, _ in self._new.values()]
        fresh["content"] = [np.void(content) for _, content in self._new.values()]
        replaced = np.isin(self._old["key"], fresh["key"])
        entries = np.concatenate([self._old[~replaced], fresh])
        entries = entries[np.argsort(entries["key"], kind="stable")]
        data = _STAMPS_HEAD.pack(*self._head, len(entries)) + entries.tobytes()
        with suppress(OSError):
            replace_file(self._path, data + xxhash.xxh3_128_digest(data))

    def _read(self) -> Entries:
        try:
            data = self._path.read_bytes()
        except OSError:
            return np.zeros(0, dtype=_STAMP)
        body, digest = data[:-16], data[-16:]
        if len(body) < _STAMPS_HEAD.size or xxhash.xxh3_128_digest(body) != digest:
            return np.zeros(0, dtype=_STAMP)
        *head, count = _STAMPS_HEAD.unpack(body[: _STAMPS_HEAD.size])
        if tuple(head) != self._head or len(body) != _STAMPS_HEAD.size + count * _STAMP.itemsize:
            return np.zeros(0, dtype=_STAMP)
        return np.frombuffer(body, dtype=_STAMP, offset=_STAMPS_HEAD.size)


def _number(key: str) -> int:
    return int.from_bytes(_hash(key.encode("utf-8", "surrogatepass"), 8), "little")


def _hash(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()
