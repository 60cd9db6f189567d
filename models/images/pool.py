"""Decoding in processes of its own: a picture that crashes, hangs or swells costs only itself.

Decoders are C code that reads bytes of strangers. Each worker (`models.images.worker`) knows
nothing but Pillow, may touch nothing, decodes one picture at a time, is killed when it takes too
long, and is replaced when it ends. The pixels are exactly those of
`models.images.decode.decode_image`.

Whole pictures (`decode`) travel through a socket: one of 0.05 megapixels takes 1.3 ms instead of
0.7, one of 12 half as long again as in this process. What a builder wants of a picture (`make`) is
made in the worker, and is small. `Decoders` is the decoding stage of a build. Knows nothing of
HTTP, metrics or models beyond their geometry.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import subprocess
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final, Self

import numpy as np
from PIL import Image

from models.encoder import Encoder, PreparedImage
from models.environment import worker_environment
from models.errors import DeadlineError, ImageError, ModelError
from models.images.decode import ImageLimits, check_bytes, decode_reduced
from models.images.geometry import SplitPreparation
from models.images.pictures import Seen, Wanted, see
from models.images.worker import ANSWER, HELLO, MADE, PIXELS, REQUEST, SEEN

_LOG = logging.getLogger("diptych.models")

MEMORY_BYTES: Final = 2 << 30
"""Of address space; pictures of 50 megapixels have been seen to need more than 1 GiB."""
_KILLS = 2
_REMEMBERED = 1024
_START_S = 20.0
_END_S = 2.0
_STARTS = 3
BUILD_TIMEOUT_S: Final = 30.0
"""For one picture. The largest that is allowed takes two seconds; a busy machine ten times that."""
FEW: Final = 64
"""A build that expects no more records than this decodes in threads: starting processes would take
as long as the work."""
_MOST: Final = 8


class _WorkerEnded(Exception):  # noqa: N818  # not an error of a caller's
    """The worker died, or was killed; `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DecodePool:
    """`workers` processes; safe to call from any number of threads. `close` it.

    Args:
        workers: pictures decoded at once, and held in memory decoded.
        limits: see `models.images.decode`.
        timeout_s: wall seconds for one picture; then its worker is killed.
        recycle: pictures after which a worker is replaced, whatever it may have accumulated.
        memory_bytes: address space of a worker; 0 for no limit of ours.
        on_restart: told why a worker was replaced: `crash`, `timeout` or `recycled`.
        entry: module whose `main(descriptor, memory_bytes)` a worker runs; for tests.
    """

    def __init__(
        self,
        workers: int = 2,
        *,
        limits: ImageLimits = ImageLimits(),  # noqa: B008  # frozen
        timeout_s: float = 5.0,
        recycle: int = 500,
        memory_bytes: int = MEMORY_BYTES,
        on_restart: Callable[[str], object] = lambda _: None,
        entry: str = "models.images.worker",
    ) -> None:
        assert workers >= 1
        self.limits = limits
        self._timeout_s = timeout_s
        self._recycle = recycle
        self._memory_bytes = memory_bytes
        self._on_restart = on_restart
        self._entry = entry
        self._changed = threading.Condition()
        self._closed = False
        self._kills: OrderedDict[bytes, int] = OrderedDict()
        self._all: set[_Worker] = set()
        self._idle: deque[_Worker] = deque()
        self._idle.extend(self._start() for _ in range(workers))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        with self._changed:
            return [worker.process.pid for worker in self._all]

    def decode(self, data: bytes, *, wait_s: float | None = None) -> Image.Image:
        """As `decode_image`, in a worker.

        Args:
            data: the encoded file.
            wait_s: how long to wait for a free worker; None for ever.

        Raises:
            ImageError: as `decode_image`; also `decode-timeout`, and `image-undecodable` for a
                picture that ended its worker, at once for one that has done so twice.
            DeadlineError: no worker became free in time, or the pool is closed.
            ModelError: workers end before they have started.
        """
        answer = self._ask(data, None, wait_s)
        assert isinstance(answer, Image.Image)
        return answer

    def make(self, data: bytes, wanted: Wanted, *, wait_s: float | None = None) -> Seen:
        """Decode and `models.images.pictures.see` in a worker; arguments and errors as `decode`."""
        answer = self._ask(data, wanted, wait_s)
        assert isinstance(answer, Seen)
        return answer

    def _ask(self, data: bytes, wanted: Wanted | None, wait_s: float | None) -> Image.Image | Seen:
        check_bytes(data, self.limits)
        digest = hashlib.sha256(data).digest() if self._kills else b""
        if digest and self._kills.get(digest, 0) >= _KILLS:
            raise ImageError("the picture has ended its decoder before")
        worker = self._take(wait_s)
        for _ in range(_STARTS):
            if worker.ready():
                break
            worker = self._replace(worker, "crash")  # while idle: no fault of this picture
        else:
            self._give(worker)
            raise ModelError("decoding processes cannot be started")
        try:
            answer = worker.ask(data, self.limits, self._timeout_s, wanted)
        except _WorkerEnded as ended:
            self._remember(hashlib.sha256(data).digest())
            self._give(self._replace(worker, ended.reason))
            if ended.reason == "timeout":
                message = f"the picture took longer than {self._timeout_s:g} s to decode"
                raise ImageError(message, code="decode-timeout") from None
            raise ImageError("the picture ended its decoder") from None
        except ImageError:
            self._give(worker)
            raise
        except BaseException:
            # interrupted in the middle of an answer: what follows on this line would be misread
            self._give(self._replace(worker, "crash"))
            raise
        if worker.decoded >= self._recycle:
            worker = self._replace(worker, "recycled")
        self._give(worker)
        return answer

    def close(self) -> None:
        """End all workers, those at work too. Further pictures are refused."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            workers = list(self._all)
            self._all.clear()
            self._idle.clear()
        for worker in workers:
            worker.end()

    def _take(self, wait_s: float | None) -> _Worker:
        with self._changed:
            if not self._changed.wait_for(lambda: self._closed or self._idle, wait_s):
                raise DeadlineError("no decoder became free in time")
            if self._closed:
                raise DeadlineError("the decoders have been stopped")
            return self._idle.pop()  # the warmest

    def _give(self, worker: _Worker) -> None:
        with self._changed:
            if self._closed:
                self._all.discard(worker)
            else:
                self._idle.append(worker)
                self._changed.notify()
                return
        worker.end()

    def _replace(self, worker: _Worker, reason: str) -> _Worker:
        worker.end()
        with self._changed:
            self._all.discard(worker)
            if self._closed:
                raise DeadlineError("the decoders have been stopped")
        _LOG.log(
            logging.INFO if reason == "recycled" else logging.WARNING,
            "decoding process %d replaced: %s", worker.process.pid, reason,
        )  # fmt: skip
        self._on_restart(reason)
        return self._start()

    def _start(self) -> _Worker:
        worker = _Worker(self._entry, self._memory_bytes)
        with self._changed:
            self._all.add(worker)
        return worker

    def _remember(self, digest: bytes) -> None:
        with self._changed:
            self._kills[digest] = self._kills.pop(digest, 0) + 1
            if len(self._kills) > _REMEMBERED:
                self._kills.popitem(last=False)


class _Worker:
    """One process and our end of its socket."""

    _told = False

    def __init__(self, entry: str, memory_bytes: int) -> None:
        self.decoded = 0
        self._greeted = False
        self._line, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parents[1])
        code = (
            "import importlib, sys; "
            "sys.path[:0] = sys.argv[3:]; "
            f"importlib.import_module({entry!r}).main(int(sys.argv[1]), int(sys.argv[2]))"
        )
        paths = [root, *(path for path in sys.path if path and path != root)]
        with theirs:
            # a fresh interpreter, not a fork: this process has threads, torch and secrets
            self.process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                [sys.executable, "-I", "-c", code, str(theirs.fileno()), str(memory_bytes), *paths],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=worker_environment(),
            )

    def ready(self) -> bool:
        """Whether it has started and lives; waits for it to start."""
        if not self._greeted:
            try:
                self._line.settimeout(_START_S)
                limited, landlocked, filtered = HELLO.unpack(self._exactly(HELLO.size))
            except (_WorkerEnded, OSError):
                return False
            self._greeted = True
            if not _Worker._told and not (limited and (landlocked or filtered)):
                _Worker._told = True
                _LOG.warning(
                    "decoding processes run with less confinement than possible: "
                    "resource limits %s, Landlock %s, seccomp %s",
                    bool(limited), bool(landlocked), bool(filtered),
                )  # fmt: skip
        return self.process.poll() is None

    def ask(
        self, data: bytes, limits: ImageLimits, timeout_s: float, wanted: Wanted | None
    ) -> Image.Image | Seen:
        """Raises ImageError as the worker does, and _WorkerEnded."""
        until = monotonic() + timeout_s
        self.decoded += 1
        caps = limits.max_bytes, limits.max_pixels, limits.max_side
        head = REQUEST.pack(len(data), *caps, 2 * timeout_s, wanted is not None)
        try:
            self._line.settimeout(timeout_s)
            self._line.sendall(head)
            self._line.sendall(data)
            if wanted is not None:
                self._line.sendall(wanted.encode())
            kind, first, second = ANSWER.unpack(self._exactly(ANSWER.size, until))
            if kind == PIXELS:
                pixels = self._exactly(first * second * 3, until)
                return Image.frombytes("RGB", (first, second), pixels)
            if kind == MADE:
                return self._seen(first, second, until)
            code = self._exactly(first, until).decode()
            message = self._exactly(second, until).decode()
        except TimeoutError:
            raise _WorkerEnded("timeout") from None
        except OSError:
            raise _WorkerEnded("crash") from None
        raise ImageError(message, code=code)

    def _seen(self, columns: int, rows: int, until: float) -> Seen:
        parts = SEEN.unpack(self._exactly(SEEN.size, until))
        width, height, digest, length, has_thumbnail = parts
        flat = np.frombuffer(self._exactly(rows * columns * 3, until), dtype=np.uint8)
        small = bytes(self._exactly(length, until)) if has_thumbnail else None
        return Seen(width, height, digest, flat.reshape(rows, columns, 3), small)

    def end(self) -> None:
        """Kill it, wherever it is; there is nothing it could leave half done."""
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_S)
        self._line.close()

    def _exactly(self, size: int, until: float | None = None) -> bytearray:
        received = bytearray(size)
        view, filled = memoryview(received), 0
        while filled < size:
            if until is not None:
                self._line.settimeout(max(until - monotonic(), 0.001))
            count = self._line.recv_into(view[filled:])
            if not count:
                raise _WorkerEnded("crash")
            filled += count
        return received


class Decoders:
    """Decodes pictures for an encoder; safe from any thread. `close` it.

    The decoding stage of a build. Processes cost a fraction of a second to start and are started by
    the first picture; what a picture does to its decoder costs that picture only. Where they cannot
    be started, threads decode.

    Attributes:
        processes: how many there are to be; 0 decodes in the calling threads.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        processes: int,
        thumbnail_side: int | None,
        draft: bool = False,
        timeout_s: float = BUILD_TIMEOUT_S,
        entry: str = "models.images.worker",
    ) -> None:
        self.processes = processes
        self._encoder = encoder
        self._split = encoder if isinstance(encoder, SplitPreparation) else None
        geometry = self._split.geometry if self._split else None
        self._wanted = Wanted(geometry, thumbnail_side, draft)
        self._timeout_s = timeout_s
        self._entry = entry
        self._pool: DecodePool | None = None
        self._lock = threading.Lock()
        self._closed = False

    def decode(self, data: bytes) -> tuple[PreparedImage, Seen]:
        """A picture as the model takes it, and what else the index keeps of it.

        Raises:
            ImageError: it was refused, ended its process or took too long.
            DeadlineError: closed meanwhile.
        """
        pool = self._running()
        if pool is not None:
            try:
                seen = pool.make(data, self._wanted)
            except ModelError as error:
                self._give_up(error)
            else:
                if self._split is not None:
                    return self._split.finish_image(seen.pixels), seen
                return self._encoder.prepare_image(Image.fromarray(seen.pixels)), seen
        image, size = decode_reduced(data, least=self._wanted.least)
        seen = see(image, size, self._wanted)
        if self._split is not None:
            return self._split.finish_image(seen.pixels), seen
        return self._encoder.prepare_image(image), seen

    def close(self) -> None:
        """End the processes, those at work too."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _running(self) -> DecodePool | None:
        if not self.processes:
            return None
        with self._lock:
            if self._closed:
                raise DeadlineError("the decoders have been stopped")
            if self._pool is None and self.processes:
                try:
                    self._pool = DecodePool(
                        self.processes, timeout_s=self._timeout_s, entry=self._entry
                    )
                except OSError as error:
                    self._no_processes(error)
            return self._pool

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            if self.processes:
                self._no_processes(error)
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _no_processes(self, error: Exception) -> None:
        self.processes = 0
        _LOG.warning("decoding in threads, for processes cannot be started: %s", error)


def how_many(wanted: int | None, expected: int | None) -> tuple[int, int]:
    """(processes, threads that wait for them or decode themselves).

    Args:
        wanted: processes the user asked for; None leaves it to us.
        expected: pictures that may come; None where nobody knows.
    """
    cores = os.cpu_count() or 1
    if wanted is None:
        wanted = 0 if expected is not None and expected <= FEW else min(cores, _MOST)
    return wanted, wanted or min(4, cores)
