"""Makes and checks the headers of an index's array files, `.npy` 1.0 that any numpy reads.

The header of an array of known type and shape is known to the byte, so reading compares instead of
parsing. Besides being strict, that avoids numpy's parser, which goes through `ast.literal_eval`:
on Python 3.11 that fails at random ("AST constructor recursion depth mismatch", SystemError) when
several threads open segments at once.
"""

from __future__ import annotations

import struct
from typing import Literal

from indexer.format.manifest import HINT
from models.errors import IndexCorruptError

Descr = Literal["<f2", "<f4", "<i8", "|u1"]


def npy_header(descr: Descr, shape: tuple[int, int]) -> bytes:
    """The bytes before the data of a C-ordered array, padded to 64 as the format asks."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    padding = -(10 + len(text) + 1) % 64
    body = text.encode() + b" " * padding + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


def check_npy(name: str, start: bytes, size: int, descr: Descr, shape: tuple[int, int]) -> int:
    """Check the first bytes and the size of a file that should hold such an array.

    Returns:
        Where the data begins.

    Raises:
        IndexCorruptError: it holds something else.
    """
    header = npy_header(descr, shape)
    if not start.startswith(header):
        raise IndexCorruptError(name, f"it is not an npy array {descr} {list(shape)}", hint=HINT)
    if size != len(header) + shape[0] * shape[1] * int(descr[-1]):
        raise IndexCorruptError(name, "its length does not fit its shape", hint=HINT)
    return len(header)
