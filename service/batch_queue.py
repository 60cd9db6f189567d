"""One thread that runs calls in batches: whatever queued while the last batch ran.

There is no waiting for a batch to fill. An idle queue runs a lone call at once; a busy one finds
more calls each time it looks, so batches grow with the load and shrink with it.

What it promises every caller: an answer or an error, always. Calls whose caller has gone or whose
time has passed are dropped before they take a place in a batch. When a batch fails its calls run
again one by one, so a bad one fails alone, and no exception ends the thread.

Knows nothing of encoders, indexes or HTTP. Who may queue at all is `service.admission`'s affair.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, TypeVar

from models.errors import DeadlineError, DiptychError, OverloadedError
from service import deadline, metrics
from service.deadline import Deadline

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds in the unit of the calls' costs.

    Attributes:
        batch: what runs together; a call that alone costs more runs alone.
        waiting: what may wait; a call beyond it is refused. Admission refuses earlier and
            politely; this bound holds whatever happens before it.
    """

    batch: int
    waiting: int


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
        raise _too_late(self.deadline)

    async def result_async(self) -> R:
        """As `result`; the event loop goes on meanwhile."""
        if self.future.done():
            return self.future.result()
        forget = self.deadline.on_cancel(self.future.cancel)
        arrival = asyncio.wrap_future(self.future)
        try:
            async with asyncio.timeout(self.deadline.left()):
                return await arrival
        except TimeoutError:
            if arrival.done() and not arrival.cancelled():
                raise  # the call's own
            await self._leave()
            raise _too_late(self.deadline) from None
        except asyncio.CancelledError:
            gone = self.deadline.cancelled
            await self._leave()
            if gone:
                raise _too_late(self.deadline) from None
            raise
        finally:
            forget()

    async def _leave(self) -> None:
        if not self.future.cancel() and self.must_end:
            await asyncio.to_thread(self.future.exception)


def _too_late(passed: Deadline) -> DiptychError:
    """Why a call of this deadline is not worth running any more."""
    try:
        passed.check()
    except DiptychError as error:
        return error
    return DeadlineError("the time allowed has passed, or the caller has gone")


class BatchQueue(Generic[T, R]):
    """See the module. The thread starts with the first call.

    Args:
        name: of the thread and in the metrics.
        run: payloads -> answers in the same order; an exception in place of an answer is that
            call's alone. Called from the queue's thread only.
        limits: in the unit of `cost`.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[T]], Sequence[R | Exception]],
        limits: QueueLimits,
    ) -> None:
        self.name = name
        self.turn = threading.Lock()
        """Held while a batch runs; whoever else uses what `run` uses takes it."""
        self._run = run
        self._limits = limits
        self._queue: deque[Call[R]] = deque()
        self._cost = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._depth = metrics.QUEUE_DEPTH.labels(name)
        self._sizes = metrics.BATCH_SIZE.labels(name)
        self._skipped = metrics.SKIPPED.labels(name)

    def submit(
        self,
        payload: T,
        *,
        cost: int = 1,
        items: int = 1,
        key: Hashable = None,
        must_end: bool = False,
    ) -> Call[R]:
        """Queue a call; only calls of equal `key` share a batch. `items` are counted in metrics.

        Raises:
            OverloadedError: too much is waiting, or the queue has stopped.
            DeadlineError: it is too late already.
        """
        call: Call[R] = Call(payload, cost=cost, items=items, key=key, must_end=must_end)
        call.deadline.check()
        with self._changed:
            if self._stopping:
                raise OverloadedError("the service is stopping")
            if self._queue and self._cost + cost > self._limits.waiting:
                raise OverloadedError("too much is waiting already")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
                self._thread.start()
            self._queue.append(call)
            self._cost += cost
            self._changed.notify()
            self._depth.inc(items)
        return call

    def stop(self, timeout: float | None = None) -> bool:
        """Refuse new calls, finish those that wait, end the thread -> whether it ended in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
            thread = self._thread
        if thread is None:
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            batch, late = taken
            for call in late:
                call.future.set_exception(_too_late(call.deadline))
            if batch:
                self._answer(batch)
                # not kept alive by this frame until the next call comes
                del batch
            del taken, late

    def _take(self) -> tuple[list[Call[R]], list[Call[R]]] | None:
        """The next batch, and calls that are too late; None once stopped and empty."""
        batch: list[Call[R]] = []
        late: list[Call[R]] = []
        others: list[Call[R]] = []
        cost = left = skipped = 0
        with self._changed:
            while not self._queue:
                if self._stopping:
                    return None
                self._changed.wait()
            while self._queue and cost < self._limits.batch:
                call = self._queue.popleft()
                if batch and (call.key != batch[0].key or cost + call.cost > self._limits.batch):
                    # a smaller one may pass it now; it leads the next batch, so it never starves
                    others.append(call)
                    continue
                self._cost -= call.cost
                left += call.items
                if not call.future.set_running_or_notify_cancel():
                    skipped += call.items
                elif call.deadline.expired:
                    skipped += call.items
                    late.append(call)
                else:
                    batch.append(call)
                    cost += call.cost
            self._queue.extendleft(reversed(others))
            self._depth.dec(left)
        if skipped:
            self._skipped.inc(skipped)
        return batch, late

    def _answer(self, batch: list[Call[R]]) -> None:
        began = monotonic()
        self._sizes.observe(sum(call.items for call in batch))
        for call in batch:
            call.waited = began - call.since
        answers: Sequence[R | BaseException] | BaseException = self._try(batch)
        if isinstance(answers, BaseException) and len(batch) > 1:
            # one of them is to blame: alone, only that one fails
            answers = [self._alone(call) for call in batch]
        ran = monotonic() - began
        for position, call in enumerate(batch):
            call.ran = ran
            call.payload = None  # a caller may keep its call; what it sent is not needed any more
            answer = answers if isinstance(answers, BaseException) else answers[position]
            if isinstance(answer, BaseException):
                call.future.set_exception(answer)
            else:
                call.future.set_result(answer)

    def _alone(self, call: Call[R]) -> R | BaseException:
        if call.deadline.expired:
            return _too_late(call.deadline)
        answers = self._try([call])
        return answers if isinstance(answers, BaseException) else answers[0]

    def _try(self, calls: Sequence[Call[R]]) -> Sequence[R | Exception] | BaseException:
        try:
            with self.turn:
                answers = self._run([call.payload for call in calls])
            if len(answers) != len(calls):
                raise RuntimeError(f"{len(answers)} answers to {len(calls)} calls")
            return answers
        except BaseException as error:  # whatever it is, callers wait and the thread must go on
            return error
