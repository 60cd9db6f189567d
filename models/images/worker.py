"""What runs in a decoding process: pictures in, pixels out, and nothing else it could do.

Started by `models.images.pool`. Imports Pillow, numpy, xxhash and `models.images.decode`,
then gives up what it will not need: memory beyond a limit, files, new programs, the network. The
other end of its one socket is the parent; when that closes, however the parent ended, it exits.

A request is `REQUEST`, the file's bytes and, if more than the whole picture is asked for, a
`Wanted`. An answer is `ANSWER` and RGB bytes row by row; or `ANSWER`, `SEEN`, pixels and thumbnail;
or `ANSWER` and the error's code and message.
"""

from __future__ import annotations

import ctypes
import importlib
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Final

from PIL import Image

from models.errors import ImageError
from models.images.decode import FORMATS, ImageLimits, decode_image, decode_reduced
from models.images.pictures import FORM, Wanted, see

REQUEST: Final = struct.Struct("<QQQQd?")
"""Bytes that follow, `ImageLimits` (bytes, pixels, side), seconds after which to give up, whether a
`Wanted` follows."""
ANSWER: Final = struct.Struct("<BQQ")
"""`PIXELS`: width, height. `REFUSED`: lengths of code and message. `MADE`: width and height of the
pixels in it; `SEEN` follows."""
PIXELS, REFUSED, MADE = 0, 1, 2
SEEN: Final = struct.Struct("<QQ16sQ?")
"""Width, height and digest of the picture; length of the thumbnail, and whether there is one."""
HELLO: Final = struct.Struct("<BBB")
"""Whether resource limits, Landlock and seccomp are in force."""

_NO_NEW_PRIVILEGES = 38
_OPEN_FILES = 16


def main(descriptor: int, memory_bytes: int) -> None:
    """Serve requests from an inherited socket until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    line = socket.socket(fileno=descriptor)
    _load_everything()
    line.sendall(HELLO.pack(*lock_down(memory_bytes)))
    with suppress(OSError):  # the parent has gone
        while (head := _receive(line, REQUEST.size)) is not None:
            size, most_bytes, most_pixels, most_side, seconds, more = REQUEST.unpack(head)
            data = _receive(line, size)
            form = _receive(line, FORM.size) if more else b""
            if data is None or form is None:
                return
            wanted = Wanted.decode(form) if more else None
            # the parent kills sooner; this is for a worker whose parent is no more
            signal.setitimer(signal.ITIMER_REAL, seconds)
            _answer(line, data, ImageLimits(most_bytes, most_pixels, most_side), wanted)
            signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(line: socket.socket, data: bytes, limits: ImageLimits, wanted: Wanted | None) -> None:
    try:
        parts = _whole(data, limits) if wanted is None else _made(data, limits, wanted)
    except ImageError as error:
        code, message = error.code.encode(), error.message.encode("utf-8", "replace")
        parts = [ANSWER.pack(REFUSED, len(code), len(message)) + code + message]
    except MemoryError:
        code, message = b"image-undecodable", b"the picture takes too much memory"
        parts = [ANSWER.pack(REFUSED, len(code), len(message)) + code + message]
    for part in parts:
        line.sendall(part)


def _whole(data: bytes, limits: ImageLimits) -> list[bytes]:
    picture = decode_image(data, limits=limits)
    return [ANSWER.pack(PIXELS, *picture.size), picture.tobytes()]


def _made(data: bytes, limits: ImageLimits, wanted: Wanted) -> list[bytes]:
    if wanted.least is None:
        picture = decode_image(data, limits=limits)
        size = picture.size
    else:
        picture, size = decode_reduced(data, limits=limits, least=wanted.least)
    seen = see(picture, size, wanted)
    height, width, _ = seen.pixels.shape
    small = seen.thumbnail or b""
    head = ANSWER.pack(MADE, width, height)
    head += SEEN.pack(seen.width, seen.height, seen.digest, len(small), seen.thumbnail is not None)
    return [head, seen.pixels.tobytes(), small]


def _receive(line: socket.socket, size: int) -> bytes | None:
    received = bytearray(size)
    view, filled = memoryview(received), 0
    while filled < size:
        count = line.recv_into(view[filled:])
        if not count:
            return None
        filled += count
    return bytes(received)


def _load_everything() -> None:
    """Decode one picture of each format, so that nothing has to be imported later."""
    for name in FORMATS:
        buffer = BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, format=name)
        see(decode_image(buffer.getvalue()), (8, 8), Wanted(thumbnail_side=8))
    with suppress(Exception):  # read now, while files can be
        importlib.import_module("pyseccomp")


def lock_down(memory_bytes: int) -> tuple[bool, bool, bool]:
    """Give up what decoding does not need -> whether limits, Landlock, seccomp are in force."""
    steps: tuple[Callable[[], None], ...] = (
        lambda: _limit_resources(memory_bytes),
        _seccomp,
        _landlock,
    )
    done = []
    for step in steps:
        try:
            step()
        except Exception:  # a kernel, a platform or a package without it; the parent is told
            done.append(False)
        else:
            done.append(True)
    limited, filtered, landlocked = done
    return limited, landlocked, filtered


def _limit_resources(memory_bytes: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _landlock() -> None:
    """Forbid the file system, and TCP where the kernel can: a ruleset that allows nothing.

    No wrapper is in the standard library; numbers and structures are Linux's, from
    include/uapi/linux/landlock.h, the same on every architecture.
    """
    if sys.platform != "linux":
        raise OSError("Linux only")
    create, restrict = 444, 446
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(create, None, ctypes.c_size_t(0), 1)
    if version < 1:
        raise OSError("no Landlock")
    files = (1 << {1: 13, 2: 14}.get(version, 15 if version < 5 else 16)) - 1
    network = 0b11 if version >= 4 else 0
    rules = struct.pack("<QQ", files, network) if version >= 4 else struct.pack("<Q", files)
    ruleset = libc.syscall(create, rules, ctypes.c_size_t(len(rules)), 0)
    if ruleset < 0 or libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        raise OSError("Landlock refused")
    if libc.syscall(restrict, ruleset, 0) != 0:
        raise OSError("Landlock refused")


def _seccomp() -> None:
    """Forbid new processes, programs, sockets and reaching into others, if pyseccomp is there."""
    seccomp = importlib.import_module("pyseccomp")
    rules = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
    refuse = seccomp.ERRNO(1)
    for name in (
        "execve", "execveat", "fork", "vfork", "socket", "socketpair", "connect", "bind", "listen",
        "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_open", "pidfd_getfd", "bpf",
        "io_uring_setup", "userfaultfd", "perf_event_open", "keyctl", "add_key", "mount", "unshare",
        "setns", "chroot", "init_module", "finit_module", "kexec_load", "kill", "tkill",
    ):  # fmt: skip
        with suppress(Exception):  # not a system call of this architecture
            rules.add_rule(refuse, name)
    rules.load()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
