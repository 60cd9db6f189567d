"""Replaces a small file whole, for all of `models/` that saves weights, reports or progress; and
keeps a second run out of a directory.

A reader sees the old file or the new one, never half of one. What an index writes has a file system
of its own that can be made to fail: `indexer.files.fs`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from models.errors import TrainingError

_NO_LOCKS: Final = frozenset(
    {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
)


def replace_file(path: Path, data: bytes) -> None:
    """Write beside `path`, flush to disk, rename over it.

    The name beside it is nobody else's: not another run's, nor a file that was there.

    Raises:
        OSError: it cannot be written; what was at `path` is as it was.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with scratch.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Let one run at a time write into a directory, which is made if it is missing.

    A `flock` on the directory itself: no file is left behind, and the kernel drops it with its
    holder. Where a file system locks no directories (some network ones) nothing is kept out.

    Raises:
        TrainingError: `run-busy`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                f"another run is writing into {directory}",
                code="run-busy",
                hint="wait until it has ended, or name another --out",
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)
