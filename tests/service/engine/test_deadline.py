"""Deadlines: on the monotonic clock, carried into threads, cancelled once."""

from __future__ import annotations

import contextvars
import threading
from time import monotonic

import pytest

from models.errors import DeadlineError
from service.engine import deadline
from service.engine.deadline import Deadline


def test_outside_a_request_nothing_expires() -> None:
    assert deadline.left() is None
    assert not deadline.current().expired
    deadline.check()


def test_time_runs_out() -> None:
    with deadline.until(monotonic() + 60) as long:
        assert 59 < (deadline.left() or 0) <= 60
        deadline.check()
        with deadline.until(monotonic() - 1) as past:
            assert deadline.left() == 0.0
            assert past.expired
            with pytest.raises(DeadlineError):
                deadline.check()
        assert deadline.current() is long


def test_it_travels_into_a_thread_with_the_context_and_cancelling_reaches_it() -> None:
    seen: list[Deadline] = []
    woken = threading.Event()

    def work() -> None:
        deadline.current().on_cancel(woken.set)
        seen.append(deadline.current())

    def request() -> None:
        own = deadline.set(monotonic() + 60)
        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        thread.start()
        thread.join()
        own.cancel()
        own.cancel()
        assert seen == [own]

    contextvars.copy_context().run(request)
    assert woken.is_set()
    assert seen[0].expired
    assert seen[0].left() == 0.0
    with pytest.raises(DeadlineError, match="nobody"):
        seen[0].check()
    assert deadline.left() is None, "the other context's deadline stays there"


def test_a_callback_runs_once_late_ones_at_once_removed_ones_never() -> None:
    calls: list[str] = []
    own = Deadline()
    own.on_cancel(lambda: calls.append("kept"))
    forget = own.on_cancel(lambda: calls.append("removed"))
    forget()
    forget()
    own.cancel()
    own.cancel()
    own.on_cancel(lambda: calls.append("late"))
    assert calls == ["kept", "late"]
