"""A use case written once, driven by a thread or by an event loop.

A use case that waits for batched calls is a generator: it yields each `Call` it waits for, is sent
the answer (or has the error thrown into it), and returns its own.

For an event loop the steps run where their calls end: the thread that has embedded a text goes on
to queue its search, the thread that has searched judges the hits, and the loop is woken once, with
the answer. Each waking more would be a write to a socket, a turn of the loop, and for both threads
a wait for Python's lock.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, TypeAlias, TypeVar

from service.engine import deadline
from service.engine.call import Call, tell, too_late

R = TypeVar("R")


Steps: TypeAlias = Generator[Call[Any], Any, R]


def finish(steps: Steps[R]) -> R:
    """Run a use case, waiting in this thread."""
    try:
        call = next(steps)
        while True:
            try:
                answer = call.result()
            except BaseException as error:
                call = steps.throw(error)
            else:
                call = steps.send(answer)
    except StopIteration as end:
        found: R = end.value
        return found


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
