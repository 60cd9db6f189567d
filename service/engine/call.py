"""One caller's place in a `BatchQueue`: the answer to come, for a thread to wait for.

Waiting ends with the answer, the error, or the caller's deadline (`service.engine.deadline`),
whichever is first. Event loops wait through `service.engine.steps`. Knows nothing of batches.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Generic, TypeAlias, TypeVar

from models.errors import DeadlineError, DiptychError
from service.engine import deadline
from service.engine.deadline import Deadline

R = TypeVar("R")


class Call(Generic[R]):
    """One caller's place in a queue.

    Attributes:
        future: the answer, or the error.
        waited: seconds from the submission to the start of the batch, once it has started.
        ran: seconds the batch took, once it has ended.
        must_end: the caller may not leave while the call runs, because it lends it something.
    """

    __slots__ = (
        "cost", "deadline", "future", "items", "key",
        "must_end", "payload", "ran", "since", "waited",
    )  # fmt: skip

    def __init__(
        self,
        payload: Any = None,
        *,
        cost: int = 1,
        items: int = 1,
        key: Hashable = None,
        must_end: bool = False,
    ) -> None:
        self.payload = payload
        self.cost = cost
        self.items = items
        self.key = key
        self.must_end = must_end
        self.deadline = deadline.current()
        self.future: Future[R] = Future()
        self.since = monotonic()
        self.waited = 0.0
        self.ran = 0.0

    @classmethod
    def at_once(cls, run: Callable[[], R]) -> Call[R]:
        """A call that this thread makes, now; for places without a queue."""
        call: Call[R] = cls()
        call.future.set_running_or_notify_cancel()
        try:
            call.future.set_result(run())
        except Exception as error:
            call.future.set_exception(error)
        call.ran = monotonic() - call.since
        return call

    def result(self) -> R:
        """The answer; waits in this thread.

        Raises:
            DeadlineError: the time has passed, or the caller has gone; and what the call raised.
        """
        forget = self.deadline.on_cancel(self.future.cancel)
        try:
            with suppress(TimeoutError):  # whether the wait's or the call's own is asked below
                self.future.exception(self.deadline.left())
            if not self.future.done() and not self.future.cancel() and self.must_end:
                self.future.exception()
            if self.future.done():
                return self.future.result()
        except CancelledError:
            pass
        finally:
            forget()
        raise too_late(self.deadline)


def too_late(passed: Deadline) -> DiptychError:
    """Why a call of this deadline is not worth running any more."""
    try:
        passed.check()
    except DiptychError as error:
        return error
    return DeadlineError("the time allowed has passed, or the caller has gone")


_Told: TypeAlias = dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]]
_TELLING = threading.local()
# answers written in one go: between them the loop looks at its sockets, so that a request that will
# be refused does not wait for all answers of a large batch
_AT_ONCE = 4


def tell(loop: asyncio.AbstractEventLoop, arrived: asyncio.Future[None]) -> None:
    """Set a future of an event loop from another thread."""
    told: _Told | None = getattr(_TELLING, "told", None)
    if told is None:
        loop.call_soon_threadsafe(_arrive, loop, [arrived])
    else:
        told.setdefault(loop, []).append(arrived)


@contextmanager
def told_together() -> Iterator[None]:
    """Wake an event loop once for all answers of a batch.

    Each waking writes to a socket, which lets go of Python's lock, and the thread that embeds would
    stand in line for it once an answer.
    """
    told: _Told = {}
    _TELLING.told = told
    try:
        yield
    finally:
        _TELLING.told = None
        for loop, arrived in told.items():
            with suppress(RuntimeError):  # the loop was closed, with everybody who waited
                loop.call_soon_threadsafe(_arrive, loop, arrived)


def _arrive(loop: asyncio.AbstractEventLoop, all_arrived: Sequence[asyncio.Future[None]]) -> None:
    for arrived in all_arrived[:_AT_ONCE]:
        if not arrived.done():
            arrived.set_result(None)
    if len(all_arrived) > _AT_ONCE:
        loop.call_soon(_arrive, loop, all_arrived[_AT_ONCE:])
