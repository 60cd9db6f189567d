"""Opens files of an index after checking that each has the size and sums its manifest says.

    fast    the XXH3-64 of every block where the manifest has them (files over 4 MiB, from format 2
            on), sha256 otherwise: any accident is found, at the speed of memory
    full    sha256 of everything: any change is found, whoever made it

Whoever uses a file takes it from here, through the descriptor whose bytes were summed, so that a
path swapped afterwards changes nothing. Bytes are read into small buffers, never mapped: checking
fills no resident memory. It knows entries and files, not what is in them.

`fast` does not read again what this process has read: a file whose sums were right, and which its
inode's times say nobody has written to since, is taken as it is (`VERIFIED`). A put would otherwise
read the whole index. `full` reads everything, every time.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, Literal, Self, TypeAlias, TypeVar

import xxhash

from indexer.files.fs import BLOCK_BYTES, open_regular
from indexer.format.entries import FileEntry
from indexer.format.manifest import HINT, unreadable
from models.errors import IndexCorruptError

K = TypeVar("K")
V = TypeVar("V")
Verify: TypeAlias = Literal["fast", "full"]
OnBytes: TypeAlias = Callable[[int], None]

# hashing and reading release the interpreter lock; more threads than this only fight over one disk
THREADS: Final = 4
_CHUNK: Final = 512 << 10  # small enough to be summed from the cache it was read into
_BLOCKS_AT_ONCE: Final = 8
_ALONE: Final = 1 << 20
"""So few bytes are summed before a thread would have started."""
_SECOND: Final = 10**9

Identity: TypeAlias = tuple[int, int, int, int, int]
"""Device, inode, size, and the times of the last write and of the last change of the inode, ns."""


def identity(status: os.stat_result) -> Identity:
    """What tells a file from any other, and from itself before it was written to."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def is_settled(file: Identity, now: int) -> bool:
    """Whether a write at `now` (ns) or later would show in a file's times, which have a grain.

    A kernel stamps by its tick, ten milliseconds at most; some file systems by two seconds.
    """
    *_, written, changed = file
    coarse = written % _SECOND == 0 and changed % _SECOND == 0
    return now - max(written, changed) > (2 * _SECOND if coarse else _SECOND // 20)


class Recent(Generic[K, V]):
    """What was found out in this process; bounded: what was not asked for longest is forgotten."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._known: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        with self._lock:
            if key not in self._known:
                return None
            self._known.move_to_end(key)
            return self._known[key]

    def add(self, key: K, value: V) -> None:
        with self._lock:
            self._known[key] = value
            while len(self._known) > self._most:
                self._known.popitem(last=False)

    def clear(self) -> None:
        """Forget everything; for tests and measurements."""
        with self._lock:
            self._known.clear()


VERIFIED: Final = Recent[tuple[Identity, str], bool](65_536)
"""(identity of a file, sha256 of its entry): its bytes were summed and were right."""


@dataclass(slots=True)
class Checked:
    """Open files whose bytes were checked, and what was wrong with the others, by name."""

    files: dict[str, io.FileIO] = field(default_factory=dict)
    damage: dict[str, IndexCorruptError] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, name: str) -> io.FileIO | None:
        """Hand a file over to the caller, who closes it; None where it is damaged."""
        return self.files.pop(name, None)

    def close(self) -> None:
        """Close the files that nobody took."""
        for file in self.files.values():
            file.close()
        self.files.clear()


def open_checked(
    root: Path,
    entries: Mapping[str, FileEntry],
    *,
    verify: Verify,
    tolerate: Collection[str] = (),
    threads: int = THREADS,
    on_bytes: OnBytes | None = None,
) -> Checked:
    """Open and check files of an index by their paths relative to it.

    Args:
        verify: see the module.
        tolerate: names whose damage is told in the answer, not raised.
        threads: how many sum at once.
        on_bytes: called with how many bytes were summed since the last call; never twice at once.

    Raises:
        IndexCorruptError: a file that is not tolerated is missing, not a regular file, or
            different from its entry; the first one, in the order of `entries`.
        StoreError: the operating system refused to open or read.
    """
    work = _Inspection(verify, frozenset(tolerate), on_bytes)
    try:
        for name, entry in entries.items():
            work.open(root, name, entry)
        work.run(threads)
        work.raise_first()
    except BaseException:
        work.checked.close()
        raise
    return work.checked


def verify_file(root: Path, name: str, entry: FileEntry, *, verify: Verify = "full") -> io.FileIO:
    """Open one file of the index after checking it.

    Returns:
        The open file whose bytes were checked; the caller closes it.

    Raises:
        IndexCorruptError, StoreError: as `open_checked`.
    """
    return open_checked(root, {name: entry}, verify=verify).files[name]


@dataclass(frozen=True, slots=True)
class _Unit:
    """A share of the work: all of a file by sha256, or these of its blocks."""

    name: str
    entry: FileEntry
    file: io.FileIO
    blocks: range | None

    @property
    def bytes(self) -> int:
        if self.blocks is None:
            return self.entry.size
        return (
            min(self.entry.size, self.blocks.stop * BLOCK_BYTES) - self.blocks.start * BLOCK_BYTES
        )


class _Inspection:
    """Files being checked by several threads."""

    def __init__(self, verify: Verify, tolerate: frozenset[str], on_bytes: OnBytes | None) -> None:
        self.checked = Checked()
        self._verify = verify
        self._tolerate = tolerate
        self._on_bytes = on_bytes
        self._telling = threading.Lock()
        self._stop = threading.Event()
        self._order: list[str] = []
        self._read: dict[str, tuple[Identity, str]] = {}  # before it was summed; its sha256
        self._units: list[_Unit] = []
        self._wrong: dict[str, list[tuple[int, str]]] = {}  # (offset, why)

    def open(self, root: Path, name: str, entry: FileEntry) -> None:
        self._order.append(name)
        try:
            fd = open_regular(root / name)
        except OSError as error:
            self._refuse(name, error)
            return
        file = io.FileIO(fd, "rb")
        self.checked.files[name] = file
        seen = identity(os.fstat(fd))
        size = seen[2]
        if size != entry.size:  # cheap, and a clearer message than a wrong hash
            self._found(name, f"it has {size} bytes, the manifest says {entry.size}")
            return
        if self._verify == "fast" and VERIFIED.get((seen, entry.sha256)):
            return
        if is_settled(seen, time.time_ns()):
            self._read[name] = seen, entry.sha256
        if self._verify == "fast" and entry.blocks is not None:
            count = len(entry.blocks) // 16
            starts = range(0, count, _BLOCKS_AT_ONCE)
            parts: Iterable[range | None] = (
                range(start, min(start + _BLOCKS_AT_ONCE, count)) for start in starts
            )
            self._units += [_Unit(name, entry, file, part) for part in parts]
        else:
            self._units.append(_Unit(name, entry, file, None))

    def run(self, threads: int) -> None:
        # a large file is summed by one thread from end to end: it must not be the last to start
        units = sorted(self._units, key=lambda unit: -unit.bytes)
        if threads == 1 or len(units) < 2 or sum(unit.bytes for unit in units) <= _ALONE:
            for unit in units:
                self._check(unit)
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
            for _ in pool.map(self._check, units):
                pass

    def raise_first(self) -> None:
        """Settle what was found: damaged files are closed, the first untolerated one raises."""
        for name, fact in self._read.items():
            sound = name not in self._wrong and not self._stop.is_set()
            if sound and identity(os.fstat(self.checked.files[name].fileno())) == fact[0]:
                VERIFIED.add(fact, value=True)
        for name, found in self._wrong.items():
            _, why = min(found)
            if len(found) > 1:
                why += f"; {len(found)} blocks differ"
            self.checked.damage[name] = IndexCorruptError(name, why, hint=HINT)
        for name in self._order:
            if name in self.checked.damage:
                if name not in self._tolerate:
                    raise self.checked.damage[name]
                if file := self.checked.take(name):
                    file.close()

    def _check(self, unit: _Unit) -> None:
        if self._stop.is_set():
            return
        try:
            if unit.blocks is None:
                self._whole(unit)
            else:
                self._blocks(unit, unit.blocks)
        except OSError as error:
            try:
                self._refuse(unit.name, error)
            except BaseException:
                self._stop.set()
                raise

    def _whole(self, unit: _Unit) -> None:
        digest = hashlib.sha256()
        self._feed(unit, 0, unit.entry.size, digest.update)
        found, stored = digest.hexdigest(), unit.entry.sha256
        if found == stored or self._stop.is_set():
            return
        if unit.entry.blocks is not None:  # the blocks tell where
            known = len(self._wrong.get(unit.name, ()))
            self._blocks(unit, range(len(unit.entry.blocks) // 16))
            if len(self._wrong.get(unit.name, ())) > known:
                return
        self._found(unit.name, f"sha256 is {found[:12]}.., the manifest says {stored[:12]}..")

    def _blocks(self, unit: _Unit, blocks: range) -> None:
        stored = unit.entry.blocks
        assert stored is not None
        for block in blocks:
            start = block * BLOCK_BYTES
            end = min(unit.entry.size, start + BLOCK_BYTES)
            digest = xxhash.xxh3_64()
            self._feed(unit, start, end, digest.update)
            if self._stop.is_set():
                return
            found, expected = digest.hexdigest(), stored[16 * block : 16 * block + 16]
            if found != expected:
                why = f"block {block} (bytes {start} to {end - 1}): "
                why += f"xxh3 is {found}, the manifest says {expected}"
                self._found(unit.name, why, start)

    def _feed(
        self, unit: _Unit, start: int, end: int, update: Callable[[memoryview], None]
    ) -> None:
        """Read bytes `start` to `end` and sum them; stops short when all others do."""
        buffer = memoryview(bytearray(min(_CHUNK, end - start)))
        fd = unit.file.fileno()
        while start < end and not self._stop.is_set():
            count = os.preadv(fd, [buffer[: end - start]], start)
            if not count:
                break  # cut while we read: the sum tells
            update(buffer[:count])
            start += count
            if self._on_bytes is not None:
                with self._telling:
                    self._on_bytes(count)

    def _found(self, name: str, why: str, offset: int = 0) -> None:
        with self._telling:
            self._wrong.setdefault(name, []).append((offset, why))
        if name not in self._tolerate:
            self._stop.set()

    def _refuse(self, name: str, error: OSError) -> None:
        """Take note of damage; raise what is not damage but a refusal by the system."""
        told = unreadable(name, error)
        if not isinstance(told, IndexCorruptError):
            raise told from error
        self._found(name, told.why)
