"""Waiting for batched answers: a `Call` in a queue, and use cases that wait for several in turn.

A `Call` is one caller's place in a `BatchQueue`: the answer to come. Waiting for it ends with the
answer, the error, or the caller's deadline (`service.engine.deadline`), whichever is first.

A use case that waits for calls is a generator, `Steps`: it yields each call it waits for, is sent
the answer (or has the error thrown into it), and returns its own. So it is written once, and driven
by a thread (`finish`), by a thread together with others (`finish_together`), or by an event loop
(`finish_async`).

For an event loop the steps run where their calls end: the thread that has embedded a text goes on
to queue its search, the thread that has searched judges the hits, and the loop is woken once, with
the answer. Each waking more would be a write to a socket, a turn of the loop, and for both threads
a wait for Python's lock. Knows nothing of batches.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Generic, TypeAlias, TypeVar

from models.errors import DeadlineError, DiptychError
from service.engine import deadline
from service.engine.deadline import Deadline

R = TypeVar("R")
E = TypeVar("E", bound=Exception)


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


# -- use cases driven by threads -------------------------------------------------------------------


Steps: TypeAlias = Generator[Call[Any], Any, R]


def finish(steps: Steps[R]) -> R:
    """Run a use case, waiting in this thread."""
    call: Call[Any] | None = None
    try:
        while True:
            call = _advance(steps, call)
    except StopIteration as end:
        found: R = end.value
        return found


def finish_together(all_steps: Sequence[Steps[R]], *refusals: type[E]) -> list[R | E]:
    """Run use cases side by side, waiting in this thread -> each one's answer or refusal.

    They advance in rounds: each is taken to its next call before the first of those is waited for.
    The texts of all thus queue while the first is embedded, and their searches likewise. An error
    that is none of `refusals` ends all of them.
    """
    answers: dict[int, R | E] = {}
    waiting: list[tuple[int, Call[Any] | None]] = [(at, None) for at in range(len(all_steps))]
    while waiting:
        going, waiting = waiting, []
        for position, call in going:
            try:
                waiting.append((position, _advance(all_steps[position], call)))
            except StopIteration as end:
                answers[position] = end.value
            except refusals as error:
                answers[position] = error
    return [answers[position] for position in range(len(all_steps))]


def _advance(steps: Steps[R], call: Call[Any] | None) -> Call[Any]:
    """To the next call; StopIteration at the end."""
    if call is None:
        return next(steps)
    try:
        answer = call.result()
    except BaseException as error:
        return steps.throw(error)
    return steps.send(answer)


# -- use cases driven by an event loop -------------------------------------------------------------


async def finish_async(steps: Steps[R]) -> R:
    """Run a use case; the event loop goes on meanwhile.

    Returns, or raises, only once no step runs and nothing that was lent is in use any more.

    Raises:
        DeadlineError: the time has passed, or the caller has gone; and what the use case raises.
    """
    errand = _Errand(steps)
    if not errand.done.done():
        await _arrival(errand)
    return errand.done.result()


class _Errand(Generic[R]):
    """A use case on its way.

    Attributes:
        done: what it returned or raised.
    """

    def __init__(self, steps: Steps[R]) -> None:
        self.done: Future[R] = Future()
        self.deadline = deadline.current()
        self._steps = steps
        self._changing = threading.Lock()
        self._call: Call[Any] | None = None  # what is waited for; None while a step runs
        self._left = False
        self._go(None)

    def leave(self) -> bool:
        """The caller waits no longer -> whether it may go at once, or must wait for `done`."""
        with self._changing:
            self._left = True
            call = self._call
        if call is None:
            return self.done.done()  # a step is running, and uses what the caller lent
        # what had not begun ends here and now
        return call.future.cancel() or not call.must_end or self.done.done()

    def _go(self, ended: Call[Any] | None) -> None:
        """Run steps until one has to wait; in whatever thread the call before has ended."""
        with self._changing:
            self._call = None
            left = self._left
        try:
            if left:
                self._steps.close()
                raise too_late(self.deadline)
            with deadline.under(self.deadline):
                call = next(self._steps) if ended is None else self._resume(ended)
                while call.future.done():
                    call = self._resume(call)
        except StopIteration as end:
            self.done.set_result(end.value)
            return
        except BaseException as error:  # the caller's, whatever it is
            self.done.set_exception(error)
            return
        with self._changing:
            self._call = call
            left = self._left
        if left:
            call.future.cancel()
        call.future.add_done_callback(lambda _: self._go(call))

    def _resume(self, ended: Call[Any]) -> Call[Any]:
        try:
            answer = ended.future.result()
        except CancelledError:
            return self._steps.throw(too_late(self.deadline))
        except BaseException as error:
            return self._steps.throw(error)
        return self._steps.send(answer)


async def _arrival(errand: _Errand[Any]) -> None:
    """Wait until an errand is done, or the caller may leave."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[None] = loop.create_future()
    errand.done.add_done_callback(lambda _: tell(loop, arrived))

    def given_up() -> None:  # in the loop's thread
        errand.leave()
        if not arrived.done():
            arrived.set_result(None)

    forget = errand.deadline.on_cancel(given_up)
    try:
        async with asyncio.timeout(errand.deadline.left()):
            await arrived
    except TimeoutError:
        await _leave(errand)
        raise too_late(errand.deadline) from None
    except asyncio.CancelledError:
        await _leave(errand)
        raise
    finally:
        forget()
    if not errand.done.done():
        await _leave(errand)
        raise too_late(errand.deadline)


async def _leave(errand: _Errand[Any]) -> None:
    if not errand.leave():
        await asyncio.to_thread(errand.done.exception)


# -- waking an event loop --------------------------------------------------------------------------

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
