"""A directory in memory where one is to be had, for tests that write thousands of small files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def in_memory() -> Iterator[Path]:
    memory = Path("/dev/shm")
    with_room = memory.is_dir() and shutil.disk_usage(memory).free > 64 << 20
    path = Path(tempfile.mkdtemp(prefix="diptych-", dir=memory if with_room else None))
    try:
        yield path
    finally:
        shutil.rmtree(path)
