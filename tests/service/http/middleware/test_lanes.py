"""Lanes: the estimate of a wait against simulated service, and turns in order."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest
from clocks import Clock

from models.errors import DeadlineError
from service.engine.deadline import Deadline
from service.http.middleware.lanes import (
    WAITING_SHARE,
    AdmissionLimits,
    Lane,
    LaneRule,
    cost_of,
    lane_rules,
    threads,
)


def lane(slots: int = 2, capacity: int = 1000, timeout_s: float = 2.0) -> tuple[Lane, Clock]:
    clock = Clock()
    return Lane(LaneRule("search", timeout_s, slots, capacity), clock), clock


@pytest.mark.parametrize(("batch", "took"), [(1, 0.005), (1, 0.3), (8, 0.08), (32, 0.16)])
def test_the_average_is_of_throughput_however_the_work_is_batched(batch: int, took: float) -> None:
    one, clock = lane()
    for _ in range(2 * batch):
        one.enter(1)
    for _ in range(round(10 / took)):  # ten busy seconds, the queue never empty
        clock.now += took
        for _ in range(batch):
            one.leave(1, served=True)
            one.enter(1)
    assert one.cost_seconds == pytest.approx(took / batch, rel=0.1)
    assert one.wait_s() == pytest.approx(2 * batch * one.cost_seconds)


def test_idle_time_is_not_work() -> None:
    one, clock = lane()
    for _ in range(500):
        clock.now += 3600
        one.enter(1)
        clock.now += 0.01
        one.leave(1, served=True)
    assert one.cost_seconds == pytest.approx(0.01, rel=0.1)


def test_a_flood_of_refusals_promises_no_speed() -> None:
    one, clock = lane()
    one.enter(1)
    for _ in range(10_000):
        one.enter(1)
        clock.now += 0.0001
        one.leave(1, served=False)
    clock.now += 1
    one.leave(1, served=True)
    assert one.cost_seconds > 0.5


def test_a_lane_that_slowed_down_and_recovers_is_believed_within_seconds() -> None:
    one, clock = lane()
    one.enter(1)
    for took, busy_s in ((0.01, 10), (0.1, 10), (0.01, 10)):
        for _ in range(round(busy_s / took)):
            one.enter(1)
            clock.now += took
            one.leave(1, served=True)
        assert one.cost_seconds == pytest.approx(took, rel=0.1)


def test_an_empty_lane_takes_any_request_and_a_full_one_none() -> None:
    one, _ = lane(capacity=4)
    assert not one.refuses(64, 0.001)
    one.enter(3)
    assert not one.refuses(1, 2)
    assert one.refuses(2, 2)


def test_patience_reaches_no_deeper_into_the_queue_but_haste_counts() -> None:
    one, _ = lane()
    while not one.refuses(1, 2):
        one.enter(1)
    assert one.wait_s() == pytest.approx(2 * WAITING_SHARE, abs=2 * one.cost_seconds)
    assert one.refuses(1, 3600)
    for _ in range(10):
        one.leave(1, served=False)
    assert not one.refuses(1, 2)
    assert one.refuses(1, 0.5)


def test_retry_after_is_about_the_wait_in_whole_seconds_and_spread() -> None:
    one, _ = lane()
    assert one.retry_after() == 1
    one.enter(500)  # ten seconds at the first guess
    drawn = {one.retry_after() for _ in range(200)}
    assert all(isinstance(seconds, int) for seconds in drawn)
    assert min(drawn) >= 10
    assert max(drawn) <= 15
    assert len(drawn) > 2
    one.enter(500_000)
    assert one.retry_after() == 60


# -- turns ----------------------------------------------------------------------------------------


def test_turns_come_in_order_and_are_never_lost() -> None:
    async def run() -> None:
        one, _ = lane(slots=1)
        order: list[int] = []

        async def visit(number: int, allowed: Deadline) -> None:
            await one.slot(allowed)
            order.append(number)
            await asyncio.sleep(0)
            one.give()

        impatient, leaver = Deadline(monotonic() + 0.01), Deadline()
        await one.slot(Deadline())
        late = asyncio.create_task(visit(1, impatient))
        gone = asyncio.create_task(visit(2, leaver))
        rest = [asyncio.create_task(visit(number, Deadline())) for number in (3, 4, 5)]
        await asyncio.sleep(0)
        leaver.cancel("shutting-down")
        one.give()  # the turn of a request that leaves in the same instant goes to the next
        with pytest.raises(DeadlineError) as error:
            await gone
        assert error.value.code == "shutting-down"
        await asyncio.gather(*rest, return_exceptions=True)
        await asyncio.gather(late, return_exceptions=True)
        assert [number for number in order if number > 2] == [3, 4, 5]
        await asyncio.wait_for(one.slot(Deadline()), 1)  # the only turn is free again

    asyncio.run(run())


def test_what_has_expired_gets_no_turn() -> None:
    async def run() -> None:
        one, _ = lane(slots=1)
        with pytest.raises(DeadlineError):
            await one.slot(Deadline(monotonic() - 1))
        await one.slot(Deadline())
        with pytest.raises(DeadlineError):
            await one.slot(Deadline(monotonic() + 0.01))
        task = asyncio.create_task(one.slot(Deadline()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        one.give()
        await asyncio.wait_for(one.slot(Deadline()), 1)

    asyncio.run(run())


# -- rules ----------------------------------------------------------------------------------------


def test_costs_grow_with_the_body_and_end() -> None:
    assert cost_of(0) == cost_of(1000) == 1
    assert cost_of(200_000) > cost_of(100_000) > 1
    assert cost_of(1 << 40) == 64
    assert threads(AdmissionLimits()) == sum(
        rule.slots for rule in lane_rules(AdmissionLimits()).values()
    )
