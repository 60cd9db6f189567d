"""What a manifest records of a file's bytes: its size, its sha256, and a checksum of every block.

Two sums for two questions. sha256 holds the chain of trust from `CURRENT` down, whoever changed a
byte. XXH3-64 (Collet) of every 4 MiB is no proof against intent, but it is found at the speed of
memory and tells where the damage is. Pure computation: it knows no files and no manifests.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import xxhash

BLOCK_BYTES: Final = 4 << 20
"""Files larger than this carry a checksum of every block of this many bytes."""


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
