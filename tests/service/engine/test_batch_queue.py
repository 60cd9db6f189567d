"""The queue against a runner that the test holds and lets go: no sleeps, only events."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import DeadlineError, OverloadedError
from service.engine import deadline
from service.engine.batch_queue import BatchQueue, QueueLimits
from service.engine.calls import Call, Steps, finish, finish_async
from service.operations import metrics

WAIT = 20.0


class Held:
    """A runner that stops in every batch until the test lets it go on."""

    def __init__(self, answer: Callable[[int], object] = lambda value: value * 10) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self._go = threading.Semaphore(0)
        self._answer = answer

    def __call__(self, values: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(values))
        self.entered.release()
        assert self._go.acquire(timeout=WAIT)
        return [self._answer(value) for value in values]  # type: ignore[misc]

    def started(self) -> None:
        assert self.entered.acquire(timeout=WAIT)

    def let_go(self, batches: int = 1) -> None:
        for _ in range(batches):
            self._go.release()


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def queue(held: Held) -> Iterator[BatchQueue[int, int]]:
    queue = made(held)
    yield queue
    held.let_go(1000)
    assert queue.stop(WAIT)


def made(run: Callable[[Sequence[int]], Sequence[int | Exception]], batch: int = 8, waiting: int = 64) -> BatchQueue[int, int]:  # noqa: E501  # fmt: skip
    return BatchQueue("test", run, QueueLimits(batch, waiting))


def only(call: Call[int]) -> Steps[int]:
    answer: int = yield call
    return answer


def results(calls: Sequence[Call[int]]) -> list[int]:
    return [call.future.result(WAIT) for call in calls]


def test_a_lone_call_runs_at_once_and_what_queued_meanwhile_runs_together(
    queue: BatchQueue[int, int], held: Held
) -> None:
    first = queue.submit(0)
    held.started()
    later = [queue.submit(value) for value in range(1, 6)]
    held.let_go(2)
    assert results([first, *later]) == [0, 10, 20, 30, 40, 50]
    assert held.batches == [[0], [1, 2, 3, 4, 5]]


def test_batches_are_bounded_by_cost_and_keep_their_order(
    queue: BatchQueue[int, int], held: Held
) -> None:
    blocker = queue.submit(0)
    held.started()
    # 3 + 3 leaves no room for 4; 30 is more than a whole batch, and runs alone
    calls = [queue.submit(value, cost=value) for value in (3, 3, 4, 30, 1, 1)]
    held.let_go(10)
    assert results([blocker, *calls]) == [0, 30, 30, 40, 300, 10, 10]
    assert held.batches == [[0], [3, 3, 1, 1], [4], [30]]


def test_only_equal_keys_share_a_batch_and_the_first_in_line_goes_first(
    queue: BatchQueue[int, int], held: Held
) -> None:
    blocker = queue.submit(0)
    held.started()
    calls = [queue.submit(value, key=value % 2) for value in (1, 2, 3, 4, 5)]
    held.let_go(3)
    assert results([blocker, *calls]) == [0, 10, 20, 30, 40, 50]
    assert held.batches == [[0], [1, 3, 5], [2, 4]]


def test_one_bad_item_of_32_fails_alone() -> None:
    def run(values: Sequence[int]) -> Sequence[int]:
        if 13 in values:
            raise ValueError("thirteen")
        return [value * 10 for value in values]

    queue = made(run, batch=32)
    with queue.turn:  # no batch runs until all have queued
        calls = [queue.submit(value) for value in range(32)]
    for value, call in enumerate(calls):
        if value == 13:
            with pytest.raises(ValueError, match="thirteen"):
                call.future.result(WAIT)
        else:
            assert call.future.result(WAIT) == value * 10
    assert queue.stop(WAIT)


def test_an_exception_in_place_of_an_answer_is_that_calls_alone() -> None:
    queue = made(lambda values: [ValueError(str(v)) if v == 2 else v for v in values])
    with queue.turn:
        calls = [queue.submit(value) for value in (1, 2, 3)]
    assert results([calls[0], calls[2]]) == [1, 3]
    with pytest.raises(ValueError, match="2"):
        calls[1].future.result(WAIT)
    assert queue.stop(WAIT)


@pytest.mark.parametrize("error", [ValueError, MemoryError, SystemExit, KeyboardInterrupt])
def test_every_caller_gets_the_error_and_the_thread_survives_it(error: type[BaseException]) -> None:
    broken = True

    def run(values: Sequence[int]) -> Sequence[int]:
        if broken:
            raise error
        return list(values)

    queue = made(run)
    with queue.turn:
        calls = [queue.submit(value) for value in range(5)]
    for call in calls:
        assert isinstance(call.future.exception(WAIT), error)
    broken = False
    assert queue.submit(7).future.result(WAIT) == 7
    assert queue.stop(WAIT)


def test_too_few_answers_are_an_error_and_not_another_callers_answer() -> None:
    queue = made(lambda values: values[:-1])
    with queue.turn:
        calls = [queue.submit(value) for value in range(3)]
    for call in calls:
        assert isinstance(call.future.exception(WAIT), RuntimeError)
    assert queue.stop(WAIT)


def test_a_cancelled_or_expired_call_costs_no_place(
    queue: BatchQueue[int, int], held: Held
) -> None:
    skipped = metrics.SKIPPED.labels("test")._value.get()
    blocker = queue.submit(0)
    held.started()
    with deadline.until(monotonic() + 3600) as gone:
        left = [queue.submit(value, cost=4) for value in (1, 2)]
    gone.cancel()
    left[1].future.cancel()
    with deadline.until(monotonic() + 3600) as passed:
        late = queue.submit(3, cost=4)
    passed.at = monotonic()
    kept = [queue.submit(value, cost=4) for value in (4, 5)]
    held.let_go(2)
    assert results([blocker, *kept]) == [0, 40, 50]
    assert held.batches == [[0], [4, 5]]  # a whole batch of 8, with nothing lost to the others
    for call in (left[0], late):
        assert isinstance(call.future.exception(WAIT), DeadlineError)
    assert left[1].future.cancelled()
    assert metrics.SKIPPED.labels("test")._value.get() == skipped + 3


def test_what_is_too_late_already_is_not_queued(queue: BatchQueue[int, int], held: Held) -> None:
    with deadline.until(monotonic()), pytest.raises(DeadlineError):
        queue.submit(1)
    assert held.batches == []


def test_a_full_queue_refuses_and_takes_again_once_there_is_room(
    queue: BatchQueue[int, int], held: Held
) -> None:
    blocker = queue.submit(0)
    held.started()
    calls = [queue.submit(1, cost=8) for _ in range(8)]
    with pytest.raises(OverloadedError):
        queue.submit(2)
    held.let_go(2)
    held.started()
    held.started()
    calls.append(queue.submit(3, cost=8))
    held.let_go(100)
    assert results([blocker, *calls]) == [0, *[10] * 8, 30]


def test_waiting_callers_see_their_deadline_pass_while_a_batch_runs(
    queue: BatchQueue[int, int], held: Held
) -> None:
    queue.submit(0)
    held.started()
    with deadline.until(monotonic() + 0.01):
        call = queue.submit(1)
        with pytest.raises(DeadlineError):
            call.result()
    assert call.future.cancelled()
    with deadline.until(monotonic() + 0.01):
        again = queue.submit(2)
        with pytest.raises(DeadlineError):
            asyncio.run(finish_async(only(again)))
    assert again.future.cancelled()


def test_a_caller_who_hangs_up_leaves_while_the_call_waits(
    queue: BatchQueue[int, int], held: Held
) -> None:
    queue.submit(0)
    held.started()

    async def hang_up() -> None:
        with deadline.until(monotonic() + 3600) as mine:
            call = queue.submit(1)
            asyncio.get_running_loop().call_soon(mine.cancel)
            with pytest.raises(DeadlineError):
                await finish_async(only(call))
        assert call.future.cancelled()

    asyncio.run(hang_up())
    with deadline.until(monotonic() + 3600) as mine:
        call = queue.submit(2)
        mine.cancel()
        with pytest.raises(DeadlineError):
            call.result()


def test_who_lent_something_stays_until_the_run_has_ended(
    queue: BatchQueue[int, int], held: Held
) -> None:
    """A search reads a snapshot that its caller will close."""
    with ThreadPoolExecutor(1) as pool:
        with deadline.until(monotonic() + 3600) as mine:
            call = queue.submit(1, must_end=True)
        held.started()
        mine.at = monotonic()
        waiting = pool.submit(call.result)
        assert not waiting.done()
        held.let_go()
        assert waiting.result(WAIT) == 10  # ended after all: the answer is there, late or not

    async def cancelled() -> bool:
        call = queue.submit(2, must_end=True)
        task = asyncio.ensure_future(finish_async(only(call)))
        await asyncio.to_thread(held.started)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        held.let_go()
        with pytest.raises(asyncio.CancelledError):
            await task
        return call.future.done()

    assert asyncio.run(cancelled())


def test_a_call_may_raise_a_timeout_of_its_own(queue: BatchQueue[int, int]) -> None:
    own = made(lambda _: [TimeoutError("its own")])
    with pytest.raises(TimeoutError, match="its own"):
        own.submit(1).result()
    with pytest.raises(TimeoutError, match="its own"):
        asyncio.run(finish_async(only(own.submit(1))))
    assert own.stop(WAIT)


def test_stopping_finishes_what_waits_and_refuses_what_comes(held: Held) -> None:
    queue = made(held)
    calls = [queue.submit(0)]
    held.started()
    calls += [queue.submit(value) for value in (1, 2)]
    assert not queue.stop(0.001)  # it is still held
    with pytest.raises(OverloadedError):
        queue.submit(3)
    held.let_go(2)
    assert queue.stop(WAIT)
    assert results(calls) == [0, 10, 20]
    assert made(held).stop()  # never started


def test_steps_run_alike_in_a_thread_and_on_a_loop() -> None:
    queue = made(lambda values: [ValueError("no") if v < 0 else v + 1 for v in values])

    def twice(value: int) -> Steps[int]:
        first = yield queue.submit(value)
        try:
            yield queue.submit(-1)
        except ValueError:
            first += 100
        return (yield queue.submit(first))  # type: ignore[no-any-return]

    def failing() -> Steps[int]:
        return (yield queue.submit(-5))  # type: ignore[no-any-return]

    assert finish(twice(1)) == asyncio.run(finish_async(twice(1))) == 103
    for drive in (finish, lambda steps: asyncio.run(finish_async(steps))):
        with pytest.raises(ValueError, match="no"):
            drive(failing())
    assert queue.stop(WAIT)


def test_steps_go_on_in_the_thread_that_ended_their_call() -> None:
    queue = made(lambda values: [-value for value in values])
    seen = []

    def twice() -> Steps[int]:
        first: int = yield queue.submit(1)
        seen.append((threading.current_thread().name, deadline.current()))
        second: int = yield queue.submit(2)
        return first + second

    async def ask() -> int:
        with deadline.until(monotonic() + WAIT) as mine:
            answer = await finish_async(twice())
            assert seen == [("test", mine)]
            return answer

    assert asyncio.run(ask()) == -3
    assert queue.stop(WAIT)


def test_nobody_leaves_while_a_step_uses_what_they_lent() -> None:
    queue = made(lambda values: list(values))
    inside, go_on = threading.Event(), threading.Event()

    def use() -> Steps[int]:
        first: int = yield queue.submit(1)
        inside.set()
        assert go_on.wait(WAIT)
        return first

    async def hang_up() -> None:
        with deadline.until(monotonic() + 3600) as mine:
            task = asyncio.ensure_future(finish_async(use()))
            assert await asyncio.to_thread(inside.wait, WAIT)
            mine.cancel()
            for _ in range(3):
                await asyncio.sleep(0)
            assert not task.done()
            go_on.set()
            with pytest.raises(DeadlineError):
                await task

    asyncio.run(hang_up())
    assert queue.stop(WAIT)


@pytest.mark.parametrize("first_lent", [False, True])
def test_what_was_left_takes_no_further_step(
    queue: BatchQueue[int, int], held: Held, first_lent: bool
) -> None:
    closed, went_on = threading.Event(), []

    def twice() -> Steps[int]:
        try:
            first: int = yield queue.submit(1, must_end=first_lent)
            went_on.append(first)
            return first
        finally:
            closed.set()

    async def hang_up() -> None:
        with deadline.until(monotonic() + 3600) as mine:
            task = asyncio.ensure_future(finish_async(twice()))
            await asyncio.to_thread(held.started)
            mine.cancel()
            if first_lent:
                await asyncio.sleep(0)
                assert not task.done()
                held.let_go()
            with pytest.raises(DeadlineError):
                await task
            held.let_go()
            assert await asyncio.to_thread(closed.wait, WAIT)

    asyncio.run(hang_up())
    assert went_on == []


def test_at_once_keeps_the_answer_or_the_error() -> None:
    assert Call.at_once(lambda: 3).result() == 3
    with pytest.raises(ZeroDivisionError):
        Call.at_once(lambda: 1 // 0).result()
    assert asyncio.run(finish_async(only(Call.at_once(lambda: 3)))) == 3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), callers=st.integers(1, 8), batch=st.integers(1, 9))
def test_no_caller_ever_hangs_or_gets_anothers_answer(seed: int, callers: int, batch: int) -> None:
    """Threads submit, cancel, expire and fail at random; every call ends, each with its own."""
    chance = random.Random(seed)
    plans = [[chance.random() for _ in range(12)] for _ in range(callers)]

    def run(values: Sequence[int]) -> Sequence[int | Exception]:
        if any(value % 11 == 3 for value in values):
            raise ValueError
        return [ArithmeticError() if value % 7 == 5 else -value for value in values]

    queue = made(run, batch=batch, waiting=10)

    def caller(number: int) -> None:
        for step, roll in enumerate(plans[number]):
            value = number * 100 + step
            try:
                with deadline.until(monotonic() + (0.0 if roll < 0.1 else WAIT)) as mine:
                    call = queue.submit(value, cost=1 + value % 3, key=value % 2)
                    if roll < 0.3:
                        mine.cancel()
                    assert call.result() == -value
                    assert value % 11 != 3
            except ValueError:
                assert value % 11 == 3
            except ArithmeticError:
                assert value % 7 == 5
            except DeadlineError:
                assert roll < 0.3
            except OverloadedError:
                continue  # calls given up count until their turn would have come

    with ThreadPoolExecutor(callers) as pool:
        for done in [pool.submit(caller, number) for number in range(callers)]:
            done.result(WAIT * 2)
    assert queue.stop(WAIT)
