"""One thread that runs calls in batches: whatever queued while the last batch ran.

There is no waiting for a batch to fill. An idle queue runs a lone call at once; a busy one finds
more calls each time it looks, so batches grow with the load and shrink with it.

What it promises every caller: an answer or an error, always. Calls whose caller has gone or whose
time has passed are dropped before they take a place in a batch. When a batch fails its calls run
again one by one, so a bad one fails alone, and no exception ends the thread.

Knows nothing of encoders, indexes or HTTP. Who may queue at all is
`service.http.middleware.admission`'s affair.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Generic, TypeVar

from models.errors import OverloadedError
from service.engine.calls import Call, told_together, too_late

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
        # C code that never waits: with a condition variable submitting threads and this one kept
        # waking each other only to wait for Python's lock
        self._inbox: SimpleQueue[Call[R] | None] = SimpleQueue()
        self._waiting: deque[Call[R]] = deque()  # of the thread alone
        self._cost = 0
        self._counting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = False
        # here, because the command line reads this file and counts nothing
        from service.operations import metrics

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
        with self._counting:
            if self._stopping:
                raise OverloadedError("the service is stopping")
            if self._cost and self._cost + cost > self._limits.waiting:
                raise OverloadedError("too much is waiting already")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
                self._thread.start()
            self._cost += cost
            self._inbox.put(call)
        self._depth.inc(items)
        return call

    def stop(self, timeout: float | None = None) -> bool:
        """Refuse new calls, finish those that wait, end the thread -> whether it ended in time."""
        with self._counting:
            if not self._stopping:
                self._stopping = True
                self._inbox.put(None)  # the last there is
            thread = self._thread
        if thread is None:
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _work(self) -> None:
        while self._gather():
            batch, late = self._take()
            with told_together():
                for call in late:
                    call.future.set_exception(too_late(call.deadline))
            if batch:
                self._answer(batch)
            del batch, late  # not kept alive until the next call comes

    def _gather(self) -> bool:
        """Move all that was submitted to `_waiting`, waiting for the first; False: stop."""
        open_ended = True
        with suppress(Empty):
            while True:
                call = self._inbox.get(block=not self._waiting)
                if call is None:
                    open_ended = False
                    self._inbox.put(None)  # still the last
                    break
                self._waiting.append(call)
        return open_ended or bool(self._waiting)

    def _take(self) -> tuple[list[Call[R]], list[Call[R]]]:
        """The next batch, and calls that are too late."""
        batch: list[Call[R]] = []
        late: list[Call[R]] = []
        others: list[Call[R]] = []
        cost = taken = left = skipped = 0
        while self._waiting and cost < self._limits.batch:
            call = self._waiting.popleft()
            if batch and (call.key != batch[0].key or cost + call.cost > self._limits.batch):
                # a smaller one may pass it now; it leads the next batch, so it never starves
                others.append(call)
                continue
            taken += call.cost
            left += call.items
            if not call.future.set_running_or_notify_cancel():
                skipped += call.items
            elif call.deadline.expired:
                skipped += call.items
                late.append(call)
            else:
                batch.append(call)
                cost += call.cost
        self._waiting.extendleft(reversed(others))
        with self._counting:
            self._cost -= taken
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
        with told_together():
            for position, call in enumerate(batch):
                call.ran = ran
                call.payload = None  # a caller may keep its call, but not what it sent
                answer = answers if isinstance(answers, BaseException) else answers[position]
                if isinstance(answer, BaseException):
                    call.future.set_exception(answer)
                else:
                    call.future.set_result(answer)

    def _alone(self, call: Call[R]) -> R | BaseException:
        if call.deadline.expired:
            return too_late(call.deadline)
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
