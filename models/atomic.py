"""Replaces a small file whole, for all of `models/` that saves weights, reports or progress.

A reader sees the old file or the new one, never half of one. What an index writes has a file system
of its own that can be made to fail: `indexer.files.fs`.
"""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Write beside `path`, flush to disk, rename over it."""
    scratch = path.with_name(f".{path.name}.partial")
    with scratch.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
