"""Who gets how much of the memory for bodies, with the clock in hand."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from service.engine.deadline import Deadline
from service.http.middleware.body_budget import SMALL_BYTES, STALLED_S, Body, BodyBudget

MB = 1 << 20


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def budget(clock: Clock, limit: int = 80 * MB, caller: int = 20 * MB) -> BodyBudget:
    return BodyBudget(limit, caller, clock=clock)


async def _never() -> Message:
    await asyncio.sleep(3600)
    raise AssertionError


def held(shared: BodyBudget, caller: str, size: int, declared: int = 0) -> Body:
    body = shared.open(caller, declared or size + 1, Deadline())
    assert body.grow(size)
    return body


def test_one_caller_gets_its_share_and_small_bodies_beside_it() -> None:
    shared = budget(Clock())
    held(shared, "a", 19 * MB)
    assert not shared.fits("a", 2 * MB)
    assert shared.fits("b", 2 * MB)
    assert shared.fits("a", SMALL_BYTES)
    assert not shared.open("a", 0, Deadline()).grow(2 * MB)


def test_an_eighth_is_for_small_bodies() -> None:
    shared = budget(Clock())
    for caller in "abcd":
        held(shared, caller, 17 * MB)
    assert not shared.fits("e", 3 * MB)
    assert shared.fits("e", SMALL_BYTES)
    body = shared.open("e", 0, Deadline())  # grows beyond small as it comes
    assert body.grow(SMALL_BYTES)
    assert not body.grow(3 * MB)


def test_what_stalls_makes_room_those_who_hold_most_first() -> None:
    clock = Clock()
    shared = budget(clock)

    async def run() -> list[str]:
        sizes = [("a", 10), ("a", 9), ("b", 18), ("c", 17), ("d", 14)]
        bodies = {f"{who}{size}": held(shared, who, size * MB) for who, size in sizes}
        waits = {name: asyncio.create_task(body.piece(_never)) for name, body in bodies.items()}
        await asyncio.sleep(0)
        assert not shared.fits("e", 10 * MB), "they may still be coming"
        clock.now = STALLED_S
        assert bodies["d14"].grow(1)
        assert shared.fits("e", 10 * MB)
        assert held(shared, "e", 10 * MB).bytes
        done, open_ones = await asyncio.wait(waits.values(), timeout=0.05)
        assert shared.held == (19 - 10 + 18 + 17 + 14 + 10) * MB + 1
        for task in open_ones:
            task.cancel()
        for task in done:
            assert isinstance(task.exception(), TimeoutError)
        return [name for name, task in waits.items() if task in done]

    assert asyncio.run(run()) == ["a10"]


def test_where_stalled_ones_would_not_do_none_of_them_is_let_go() -> None:
    clock = Clock()
    shared = budget(clock)

    async def run() -> None:
        small = held(shared, "a", 1 * MB)
        for caller in "bcde":
            held(shared, caller, 17 * MB - (1 if caller == "b" else 0))
        wait = asyncio.create_task(small.piece(_never))
        await asyncio.sleep(0)
        clock.now = STALLED_S
        assert not shared.open("f", 0, Deadline()).grow(8 * MB)
        assert not wait.done()
        wait.cancel()

    asyncio.run(run())


@pytest.mark.parametrize(("came", "declared", "seconds"), [(10, 20, 4), (15, 20, 2), (5, 20, 12)])
def test_the_time_to_ask_again_is_that_of_what_is_in_the_way(
    came: int, declared: int, seconds: int
) -> None:
    clock = Clock()
    shared = budget(clock, caller=came * MB)
    held(shared, "a", came * MB, declared * MB)
    clock.now = 4.0
    assert shared.retry_after("a", MB) == seconds
    assert shared.retry_after("b", MB) == 1


def test_what_is_complete_is_held_until_its_time_is_over() -> None:
    clock = Clock()
    shared = budget(clock, caller=MB)
    body = held(shared, "a", MB)
    body.complete = True
    body.allowed.cancel()
    assert shared.retry_after("a", MB) == 1
    body.close()
    body.close()
    assert shared.held == 0
    assert shared.fits("a", MB)
