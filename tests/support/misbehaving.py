"""A decoding worker that does as its picture says: crashes, hangs, swells, or tells of itself.

Runs in the worker's process in place of `models.images.worker`; everything else is the real
one.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import models.images.worker
from models.errors import ImageError
from models.images.decode import decode_image


def segfault() -> None:
    ctypes.string_at(0)


def hang() -> None:
    while True:
        time.sleep(3600)


def swell() -> None:
    bytearray(64 << 30)


def refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except OSError:
        return True
    return False


def runs(program: str) -> bool:
    try:
        return os.spawnv(os.P_WAIT, program, [program]) == 0
    except OSError:
        return False


def tell() -> None:
    """What this process could still do, as the message of a refusal."""
    told = {
        "torch": "torch" in sys.modules,
        "modules": len(sys.modules),
        "resident_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "secret": os.environ.get("DIPTYCH_TEST_SECRET"),
        "reads_files": not refused(lambda: Path("/etc/hostname").read_bytes()),
        "writes_files": not refused(lambda: Path("/tmp/diptych-escape").write_bytes(b"x")),
        "opens_sockets": not refused(lambda: socket.socket().close()),
        "runs_programs": runs("/bin/true"),
    }
    raise ImageError(json.dumps(told), code="told")


ACTS = {b"SEGV": segfault, b"HANG": hang, b"SWELL": swell, b"TELL": tell}


def decode(data: bytes, **options: object):  # type: ignore[no-untyped-def]
    for name, act in ACTS.items():
        if data.startswith(name):
            act()
    return decode_image(data, **options)  # type: ignore[arg-type]


def main(descriptor: int, memory_bytes: int) -> None:
    models.images.worker.decode_image = decode  # type: ignore[assignment]
    models.images.worker.main(descriptor, memory_bytes)
