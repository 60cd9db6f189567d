"""Answers kept for repetitions: bounded by time, number and bytes."""

from __future__ import annotations

from clocks import Clock

from service.http.middleware.idempotency import Answers
from service.http.middleware.problems import Problem


def test_the_first_answer_is_repeated_for_a_day() -> None:
    clock = Clock(0.0)
    answers = Answers(now=clock)
    assert answers.begin(b"k", b"request") is None
    busy = answers.begin(b"k", b"request")
    assert isinstance(busy, Problem)
    assert (busy.code, busy.status) == ("idempotency-key-in-use", 409)
    answers.end(b"k", 201, [(b"X-Request-Id", b"1"), (b"index-version", b"7")], b"body")
    clock.now = 24 * 3600 - 1
    kept = answers.begin(b"k", b"request")
    assert kept is not None
    assert not isinstance(kept, Problem)
    assert (kept.status, kept.body) == (201, b"body")
    assert kept.headers == [(b"index-version", b"7")]
    reused = answers.begin(b"k", b"another")
    assert isinstance(reused, Problem)
    assert (reused.code, reused.status) == ("idempotency-key-reused", 422)
    clock.now += 2
    assert answers.begin(b"k", b"another") is None
    answers.end(b"k", 0, [], b"")
    assert (len(answers), answers.bytes) == (0, 0)


def test_another_request_is_refused_while_the_first_runs() -> None:
    answers = Answers()
    assert answers.begin(b"k", b"one") is None
    reused = answers.begin(b"k", b"two")
    assert isinstance(reused, Problem)
    assert reused.code == "idempotency-key-reused"


def test_what_was_not_done_may_be_tried_again() -> None:
    answers = Answers()
    for status in (0, 408, 409, 429, 500, 503, 504, 507):
        assert answers.begin(b"k", b"request") is None
        answers.end(b"k", status, [], b"")
        assert len(answers) == 0
    for number, status in enumerate((200, 201, 204, 404, 422)):
        key = bytes([number])
        assert answers.begin(key, b"request") is None
        answers.end(key, status, [], b"")
        assert len(answers) == number + 1


def test_the_oldest_go_when_there_are_too_many_or_too_large() -> None:
    answers = Answers(entries=3, size=10_000)
    for number in range(5):
        answers.begin(bytes([number]), b"r")
        answers.end(bytes([number]), 200, [], b"")
    assert len(answers) == 3
    assert answers.begin(b"\x00", b"r") is None, "forgotten"
    assert not isinstance(answers.begin(b"\x04", b"r"), Problem | None)
    for number in range(5, 9):
        answers.begin(bytes([number]), b"r")
        answers.end(bytes([number]), 200, [(b"a", b"b")], b"x" * 4000)
    assert answers.bytes <= 10_000
    assert len(answers) == 2
