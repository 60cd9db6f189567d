"""Lets one writer at a time change an index: an advisory `flock` on the file `LOCK`.

The kernel drops the lock when its holder dies, however it dies, so a lock is never stale; the
file's content only tells people who holds it. Readers take no lock. The descriptor closes on exec;
a writer that forks without exec (multiprocessing's fork) would share the lock with its children,
so worker processes must be spawned.

Why not `filelock`: where a file system has no `flock` (ENOSYS) it goes on with a soft lock, a file
that whoever crashes leaves behind for ever; here such a file system is refused. And it neither
hands out the descriptor nor reads who holds a lock, which is what a second writer is told. Beyond
those the lock is one system call.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from indexer.files.fs import storage_error
from models.errors import IndexLockedError, StorageError

_UNSUPPORTED: Final = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


_PAUSE: Final = 0.01
"""Seconds between two looks at a lock: flock's own waiting could not be ended."""


class WriterLock:
    """Holds the lock from construction until `release`."""

    def __init__(self, path: Path, *, patience: float = 0.0) -> None:
        """Take the lock.

        Args:
            patience: seconds to wait for whoever holds it.

        Raises:
            IndexLockedError: another process, or another writer of this one, holds it.
            StorageError: the file system has no locks, or refuses to open the file.
        """
        self._fd = -1
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o644)
        except OSError as error:
            raise storage_error(error, "open", path) from error
        try:
            _take(fd, time.monotonic() + patience)
            self._describe(fd)
        except BlockingIOError as error:
            holder = _holder(fd)
            os.close(fd)
            raise IndexLockedError(
                f"{path.parent} is being written by {holder}",
                hint="wait until it has finished; searching works meanwhile",
            ) from error
        except OSError as error:
            os.close(fd)
            if error.errno in _UNSUPPORTED:
                raise StorageError(
                    f"the file system of {path.parent} has no file locks ({error.strerror})",
                    hint="build on a local disk and copy the finished index",
                ) from error
            raise storage_error(error, "lock", path) from error
        self._fd = fd

    def release(self) -> None:
        """Give the lock back; harmless when already done."""
        if self._fd >= 0:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def _describe(self, fd: int) -> None:
        about = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(fd, 0)
        os.pwrite(fd, (json.dumps(about) + "\n").encode(), 0)


def holder_of(path: Path) -> str | None:
    """Who holds the lock at a path, for people; None where nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    return None


def _take(fd: int, until: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
        time.sleep(_PAUSE)


def _holder(fd: int) -> str:
    """Who holds the lock, as its file tells; for people, never for decisions."""
    try:
        about: Any = json.loads(os.pread(fd, 4096, 0))
        return f"process {about['pid']} on {about['host']} since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
