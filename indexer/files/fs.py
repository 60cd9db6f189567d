"""File operations that survive a crash: every write to an index goes through `Fs`, which fsyncs.

The public operations of `Fs` are those a crash-safe commit needs; each is made of the underscored
primitives, one system call apiece, which a test replaces to fail, count or record them. It knows
nothing of segments, manifests or what the bytes mean.

A failed fsync is final: the kernel may have dropped the dirty pages and report success next time
(the lesson PostgreSQL learnt in 2018), so the `Fs` refuses every later operation.

Bytes are summed while they are written, twice, for two questions. sha256 holds the chain of trust
from `CURRENT` down, whoever changed a byte. XXH3-64 (Collet) of every 4 MiB is no proof against
intent, but it is found at the speed of memory and tells where the damage is.

`require_space` asks for room before hours of work; an estimate errs and others write too, so a full
disk may come all the same.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import xxhash

from models.errors import NoSpaceError, StorageError, StoreError

T = TypeVar("T")
BLOCK_BYTES: Final = 4 << 20
"""Files larger than this carry a checksum of every block of this many bytes."""
_CHUNK: Final = 1 << 20
_MARGIN: Final = 1.2
_TOO_MANY: Final = frozenset({errno.EMFILE, errno.ENFILE})
FEWER_FILES: Final = (
    "too many files are open: raise the limit (ulimit -n), or let `diptych index optimize` merge "
    "the index's segments, which it opens in turn"
)
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def storage_error(error: OSError, action: str, path: Path) -> StoreError:
    """The domain error for a failed system call; names the path and the errno."""
    name = errno.errorcode.get(error.errno or 0, "unknown")
    detail = f"{action} {path}: {error.strerror or error} ({name})"
    if error.errno in _NO_SPACE:
        return NoSpaceError(
            f"no space left: {detail}",
            hint="the previous version is intact; free some space and run the same command again",
        )
    if error.errno in _TOO_MANY:
        return StorageError(f"cannot {detail}", hint=FEWER_FILES)
    return StorageError(f"cannot {detail}")


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What a manifest records of a file: `size` in bytes, `sha256` in hex, and `blocks`.

    `blocks` is XXH3-64 of every block, 16 hex digits each, concatenated; None for a file of one.
    """

    size: int
    sha256: str
    blocks: str | None = None

    def fields(self) -> dict[str, Any]:
        """The arguments of a `FileEntry`, or of one of its kind."""
        return {"size": self.size, "sha256": self.sha256, "blocks": self.blocks}


class Sums:
    """Both sums of a stream of bytes."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._block = xxhash.xxh3_64()
        self._room = BLOCK_BYTES
        self._done: list[str] = []
        self._size = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._sha256.update(view)
        self._size += len(view)
        while view:
            part, view = view[: self._room], view[self._room :]
            self._block.update(part)
            self._room -= len(part)
            if not self._room:
                self._done.append(self._block.hexdigest())
                self._block.reset()
                self._room = BLOCK_BYTES

    def digest(self) -> FileDigest:
        blocks = None
        if self._size > BLOCK_BYTES:
            last = [self._block.hexdigest()] if self._room < BLOCK_BYTES else []
            blocks = "".join([*self._done, *last])
        return FileDigest(self._size, self._sha256.hexdigest(), blocks)


class Fs:
    """Durable file operations. One instance belongs to one writer and is used by one thread.

    Raises:
        NoSpaceError: ENOSPC or EDQUOT from any operation.
        StoreError: any other failed system call, and everything after a failed fsync.
    """

    def __init__(self) -> None:
        self._stopped: str | None = None

    def write_file(self, path: Path, chunks: Iterable[bytes | memoryview]) -> FileDigest:
        """Create `path`, which must not exist, from `chunks`; hashed while written, then fsynced.

        A file that could not be written whole is removed again.
        """
        sums = Sums()
        fd = self._do("create", path, lambda: self._create(path))
        try:
            for chunk in chunks:
                view = memoryview(chunk).cast("B")
                sums.update(view)
                self._write_all(path, fd, view)
            self._sync(path, fd)
        except BaseException:
            with suppress(OSError):
                os.close(fd)
            with suppress(OSError):
                path.unlink()
            raise
        self._do("close", path, lambda: self._close(fd))
        return sums.digest()

    def seal_file(self, path: Path) -> FileDigest:
        """Hash and fsync a file that a library (SQLite) has written and closed."""
        sums = Sums()
        fd = self._do("open", path, lambda: os.open(path, os.O_RDWR | os.O_CLOEXEC))
        try:
            while block := self._do("read", path, lambda: os.read(fd, _CHUNK)):
                sums.update(block)
            self._sync(path, fd)
        finally:
            os.close(fd)
        return sums.digest()

    def spool(self, path: Path) -> Spool:
        """Create a scratch file, which must not exist, to append to and read back."""
        return Spool(self, path)

    def sync_dir(self, path: Path) -> None:
        """Make the names in a directory durable; a rename is not until this returns."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        fd = self._do("open", path, lambda: os.open(path, flags))
        try:
            self._sync(path, fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Move within the file system, replacing a file; atomic, durable after `sync_dir`."""
        self._do("rename", target, lambda: self._rename(source, target))

    def make_dir(self, path: Path, *, exist_ok: bool = False) -> None:
        """Create one directory; the parent exists."""

        def make() -> None:
            try:
                self._mkdir(path)
            except FileExistsError:
                if not (exist_ok and path.is_dir()):
                    raise

        self._do("create", path, make)

    def remove(self, path: Path) -> None:
        """Remove a file or a whole directory tree; a symbolic link is removed, not followed."""

        def remove() -> None:
            with suppress(FileNotFoundError):
                self._remove(path)

        self._do("remove", path, remove)

    def _do(self, action: str, path: Path, call: Callable[[], T]) -> T:
        if self._stopped is not None:
            raise StorageError(self._stopped)
        try:
            return call()
        except OSError as error:
            raise storage_error(error, action, path) from error

    def _write_all(self, path: Path, fd: int, view: memoryview) -> None:
        while view:
            # a write may be short: near a full disk, and beyond 2 GiB in one call
            written = self._do("write", path, partial(self._write, fd, view))
            view = view[written:]

    def _sync(self, path: Path, fd: int) -> None:
        try:
            self._do("fsync", path, lambda: self._fsync(fd))
        except StoreError as error:
            self._stopped = f"the writer stopped after a failed fsync ({error.message})"
            raise

    # primitives: one system call each, replaced by tests
    def _create(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def _write(self, fd: int, data: memoryview) -> int:
        return os.write(fd, data)

    def _fsync(self, fd: int) -> None:
        os.fsync(fd)

    def _close(self, fd: int) -> None:
        os.close(fd)

    def _rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def _mkdir(self, path: Path) -> None:
        path.mkdir(mode=0o755)

    def _remove(self, path: Path) -> None:
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()


class Spool:
    """A scratch file that grows and is read back; never fsynced, so nothing outlives a crash.

    Raises (every method):
        NoSpaceError, StoreError: as `Fs`.
    """

    def __init__(self, fs: Fs, path: Path) -> None:
        self._fs = fs
        self._path = path
        self._open = True
        self._fd = fs._do("create", path, lambda: fs._create(path))

    def write(self, data: bytes | memoryview) -> None:
        self._fs._write_all(self._path, self._fd, memoryview(data).cast("B"))

    def map(self) -> mmap.mmap:
        """Everything written so far, mapped read-only."""
        return self._reading(lambda fd: mmap.mmap(fd, 0, access=mmap.ACCESS_READ))

    def read(self) -> Iterator[bytes]:
        """Everything written so far, a chunk at a time."""
        offset = 0
        while block := self._reading(partial(_pread, offset=offset)):
            offset += len(block)
            yield block

    def close(self) -> None:
        """Stop using the file; it stays where it is. May be called again."""
        if self._open:
            self._open = False
            with suppress(OSError):
                os.close(self._fd)

    def remove(self) -> None:
        """Close and remove the file."""
        self.close()
        self._fs.remove(self._path)

    def _reading(self, use: Callable[[int], T]) -> T:
        def read() -> T:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return use(fd)
            finally:
                os.close(fd)

        return self._fs._do("read", self._path, read)


def _pread(fd: int, offset: int) -> bytes:
    return os.pread(fd, _CHUNK, offset)


def open_regular(path: Path) -> int:
    """Open a regular file for reading; never follows a final symbolic link, never blocks on a FIFO.

    Raises:
        OSError: as open(2); ELOOP for a link, EISDIR or EINVAL for anything but a regular file.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, "not a regular file", str(path))
    return fd


def require_space(directory: Path, estimate: int) -> None:
    """Refuse where less is free than a fifth more than the estimate, in bytes.

    Args:
        directory: on the file system in question; it need not exist yet, its parent must.

    Raises:
        NoSpaceError: naming both figures.
    """
    there = next((path for path in (directory, *directory.parents) if path.exists()), None)
    if there is None:
        return
    free = shutil.disk_usage(there).free
    needed = int(_MARGIN * estimate)
    if free < needed:
        raise NoSpaceError(
            f"no space left: about {needed:,} bytes are needed in {there}, {free:,} are free",
            hint="nothing was changed; free some space and run the same command again",
        )
