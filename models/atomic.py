"""Replaces a small file whole, for all of `models/` that saves weights, reports or progress.

A reader sees the old file or the new one, never half of one. What an index writes has a file system
of its own that can be made to fail: `indexer.files.fs`.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


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
