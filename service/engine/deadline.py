"""How long the request being answered may still take, on the monotonic clock.

A context variable carries it, and context travels into the threads that FastAPI runs handlers in,
so that a batcher can skip what nobody waits for any more without every function in between passing
it on. Knows neither HTTP nor asyncio. Outside a request there is none and nothing ever expires.

    with deadline.until(monotonic() + 2):     # or deadline.set(...), where a block will not do
        deadline.check()                      # DeadlineError once passed, or the caller hung up
        future.result(timeout=deadline.left())
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic

from models.errors import DeadlineError


class Deadline:
    """A moment, and whether the caller has gone before it. Safe to use from several threads."""

    def __init__(self, at: float = math.inf) -> None:
        self.at = at
        self._lock = threading.Lock()
        self._cancelled: str | None = None
        self._callbacks: list[Callable[[], object]] = []

    @property
    def cancelled(self) -> bool:
        return self._cancelled is not None

    @property
    def expired(self) -> bool:
        """Passed or cancelled: work for it must not begin."""
        return self.cancelled or monotonic() >= self.at

    def left(self) -> float | None:
        """Seconds left, at least 0; None without end. Fits `timeout=` of futures and queues."""
        if self.cancelled:
            return 0.0
        return None if math.isinf(self.at) else max(0.0, self.at - monotonic())

    def check(self) -> None:
        """Raises DeadlineError if `expired`."""
        if self._cancelled is not None:
            raise DeadlineError("nobody waits for this any more", code=self._cancelled)
        if self.expired:
            raise DeadlineError("the time allowed has passed")

    def cancel(self, code: str = DeadlineError.code) -> None:
        """Nobody waits any more: the caller has gone, or the service stops (`shutting-down`).

        Runs what `on_cancel` was given, once, in this thread.
        """
        with self._lock:
            if self._cancelled is not None:
                return
            self._cancelled = code
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_cancel(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Have `callback` run on `cancel` (at once if that has happened); returns its removal.

        It must be quick and must not raise: it runs in the event loop's thread.
        """
        with self._lock:
            if self._cancelled is None:
                self._callbacks.append(callback)
                return lambda: self._forget(callback)
        callback()
        return lambda: None

    def _forget(self, callback: Callable[[], object]) -> None:
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)


_NONE = Deadline()  # never cancelled: nobody is given it to cancel
_CURRENT: ContextVar[Deadline] = ContextVar("deadline", default=_NONE)


def current() -> Deadline:
    """The deadline of this context; one that never expires outside a request."""
    return _CURRENT.get()


def set(at: float) -> Deadline:
    """Make `at` (of `time.monotonic`) this context's deadline."""
    deadline = Deadline(at)
    _CURRENT.set(deadline)
    return deadline


@contextmanager
def until(at: float) -> Iterator[Deadline]:
    """`set` for the length of a block."""
    with under(Deadline(at)) as deadline:
        yield deadline


@contextmanager
def under(deadline: Deadline) -> Iterator[Deadline]:
    """Make somebody's deadline the current one for the length of a block, in whatever thread."""
    token = _CURRENT.set(deadline)
    try:
        yield deadline
    finally:
        _CURRENT.reset(token)


def left() -> float | None:
    """Seconds left in this context, at least 0; None without end."""
    return _CURRENT.get().left()


def check() -> None:
    """Raises DeadlineError once this context's time has passed or its caller has gone."""
    _CURRENT.get().check()
