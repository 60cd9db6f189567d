"""The threads of a build: order, bounds, and what becomes of exceptions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from indexer.ingest.threads import Ahead, Following


@dataclass
class Item:
    number: int
    size: int = 1


def test_items_come_in_order_and_the_iterable_does_not_run_away() -> None:
    made: list[int] = []
    paused = threading.Event()

    def items() -> Iterator[Item]:
        for number in range(50):
            made.append(number)
            if number == 4:
                paused.set()
            yield Item(number)

    ahead = Ahead(items(), most=4, most_bytes=1000, name="test")
    assert paused.wait(10)
    assert len(made) <= 5  # four wait, the fifth is at the door
    assert [item.number for item in ahead] == list(range(50))


def test_bytes_bound_it_too_but_one_always_fits() -> None:
    started = threading.Semaphore(0)

    def items() -> Iterator[Item]:
        for number in range(6):
            started.release()
            yield Item(number, size=700)

    ahead = Ahead(items(), most=100, most_bytes=1000, name="test")
    assert started.acquire(timeout=10)
    assert started.acquire(timeout=10)
    assert not started.acquire(timeout=0.05)  # the second is at the door
    assert len(list(ahead)) == 6


def test_an_exception_comes_where_the_next_item_would() -> None:
    def items() -> Iterator[Item]:
        yield Item(0)
        raise ValueError("torn")

    ahead = Ahead(items(), most=4, most_bytes=1000, name="test")
    seen = []
    with pytest.raises(ValueError, match="torn"):
        seen += [item.number for item in ahead] or seen
    ahead.close()


def test_closing_stops_an_endless_iterable() -> None:
    def items() -> Iterator[Item]:
        while True:
            yield Item(0)

    ahead = Ahead(items(), most=2, most_bytes=1000, name="test")
    next(iter(ahead))
    ahead.close()
    assert not ahead._thread.is_alive()


def test_calls_follow_in_order_and_stop_after_the_first_failure() -> None:
    done: list[int] = []
    following = Following(most=2, name="test")
    for number in range(20):
        following.do(lambda number=number: done.append(number))  # type: ignore[misc]
    following.finish()
    assert done == list(range(20))

    following = Following(most=2, name="test")
    with pytest.raises(ZeroDivisionError):  # noqa: PT012  # whichever call notices
        for number in range(20):
            following.do(lambda number=number: done.append(1 // (number - 3)))  # type: ignore[misc]
        following.finish()
    assert len(done) == 23
    following.stop()
    following.stop()


def test_dropped_calls_are_not_executed() -> None:
    gate, done = threading.Event(), []
    following = Following(most=5, name="test")
    following.do(gate.wait)
    following.do(lambda: done.append(1))
    following.drop()
    gate.set()
    following.stop()
    assert done == []
