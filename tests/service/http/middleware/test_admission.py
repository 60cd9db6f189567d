"""Admission as bare ASGI in front of an application of set speed: who gets in, who hears what."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from time import monotonic, sleep
from typing import Any

import pytest
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import DeadlineError
from service.engine import deadline
from service.http.middleware.admission import Admission, AdmissionControl, charge
from service.http.middleware.endpoints import EndpointTable
from service.http.middleware.lanes import AdmissionLimits, LaneName, Price
from service.http.middleware.problems import ProblemError, of_domain
from service.http.resources import health, item_writes, items, search

ROUTERS = [resource.router for resource in (search, health, items, item_writes)]
ENDPOINTS = EndpointTable([route for router in ROUTERS for route in router.routes])


class Slow:
    """One at a time, `took` seconds each, in threads; what has expired is not begun."""

    def __init__(self, took: float) -> None:
        self.took = took
        self.begun = 0
        self._device = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await Request(scope, receive).body()
            await run_in_threadpool(self._work)
        except ProblemError as error:
            await error.problem.response("r")(scope, receive, send)
            return
        except DeadlineError as error:
            await of_domain(error).response("r")(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(len(body)).encode()})

    def _work(self) -> None:
        with self._device:
            deadline.check()
            self.begun += 1
            sleep(self.took)


class Call:
    """One request; `pieces` of the body come one per `pace` seconds."""

    def __init__(
        self,
        *pieces: bytes,
        method: str = "POST",
        path: str = "/v1/search",
        headers: Sequence[tuple[bytes, bytes]] = (),
        pace: float = 0,
        hang_up_after: float | None = None,
    ) -> None:
        self.scope: dict[str, Any] = {
            "type": "http", "method": method, "path": path, "query_string": b"", "state": {},
            "headers": [(b"content-type", b"application/json"), *headers],
        }  # fmt: skip
        self.pieces = list(pieces or (b"{}",))
        self.pace = pace
        self.hang_up_after = hang_up_after
        self.read = 0
        self.sent: list[Message] = []
        self.took = 0.0

    async def run(self, app: ASGIApp) -> Call:
        began = monotonic()
        await app(self.scope, self.receive, self.send)
        self.took = monotonic() - began
        return self

    async def receive(self) -> Message:
        if self.read < len(self.pieces):
            await asyncio.sleep(self.pace)
            self.read += 1
            body = self.pieces[self.read - 1]
            return {"type": "http.request", "body": body, "more_body": self.read < len(self.pieces)}
        await asyncio.sleep(3600 if self.hang_up_after is None else self.hang_up_after)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode().lower(): v.decode() for k, v in self.sent[0]["headers"]}

    @property
    def code(self) -> str:
        return str(json.loads(self.sent[1]["body"])["code"])


def control(timeout_s: float = 2.0, **more: Any) -> AdmissionControl:
    return AdmissionControl(AdmissionLimits(timeout_s=timeout_s, **more))


def test_ten_times_too_many_are_refused_unread_and_the_others_are_answered_in_time() -> None:
    slow, shared = Slow(0.01), control(timeout_s=1.0)
    app = Admission(slow, shared, ENDPOINTS)

    async def run() -> list[Call]:
        tasks = []
        for _ in range(800):  # over 0.8 s
            tasks.append(asyncio.create_task(Call().run(app)))
            await asyncio.sleep(0.001)
        return await asyncio.gather(*tasks)

    began = monotonic()
    calls = asyncio.run(run())
    wall = monotonic() - began
    answered = [call for call in calls if call.status == 200]
    refused = [call for call in calls if call.status == 429]
    # let in on an estimate that a busy machine then broke: some are late, hardly any
    late = [call for call in calls if call.status == 504]
    assert len(answered) + len(refused) + len(late) == len(calls)
    assert len(late) <= len(calls) / 20
    assert {call.code for call in refused} == {"overloaded"}
    assert all(int(call.headers["retry-after"]) >= 1 for call in refused)
    assert sum(call.read for call in refused) < len(refused) / 10, "refused before the body"
    # the device was never idle: what it could do in that time, less what a busy machine took away
    assert len(answered) >= 0.5 * wall / 0.011
    assert slow.begun == len(answered), "no work was begun for nothing"
    assert shared.in_flight == 0
    assert shared.lanes["search"].cost == shared.bodies.held == 0


def test_a_deadline_is_504_and_work_for_it_is_not_begun() -> None:
    slow = Slow(0.2)
    app = Admission(slow, control(), ENDPOINTS)

    async def run() -> list[Call]:
        first = asyncio.create_task(Call().run(app))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(Call(headers=[(b"x-request-timeout", b"0.1")]).run(app))
        return await asyncio.gather(first, second)

    first, second = asyncio.run(run())
    assert (first.status, second.status, second.code) == (200, 504, "deadline-exceeded")
    assert slow.begun == 1


@pytest.mark.parametrize("value", [b"0", b"-1", b"1e3", b"soon", b"99999", b"1.2345", b""])
def test_a_timeout_that_is_none_is_refused(value: bytes) -> None:
    call = asyncio.run(
        Call(headers=[(b"x-request-timeout", value)]).run(Admission(Slow(0), control(), ENDPOINTS))
    )
    assert (call.status, call.code, call.read) == (422, "invalid-request", 0)


class Held(Slow):
    """Its first caller holds the device until it is released."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.release = threading.Event()

    def _work(self) -> None:
        with self._device:
            deadline.check()
            self.begun += 1
            assert self.release.wait(20)


def test_a_caller_who_hangs_up_while_waiting_is_not_worked_for() -> None:
    held = Held()
    shared = AdmissionControl()
    app = Admission(held, shared, ENDPOINTS)

    async def run() -> Call:
        first = Call()
        working = asyncio.create_task(first.run(app))
        while held.begun < 1:
            await asyncio.sleep(0.001)
        waiting = [asyncio.create_task(Call(hang_up_after=0.01).run(app)) for _ in range(5)]
        # timers of one loop fire in their order, however slow the machine: they have hung up then
        await asyncio.sleep(0.3)
        for _ in range(100):
            await asyncio.sleep(0)
        held.release.set()
        await asyncio.gather(working, *waiting)
        return first

    first = asyncio.run(run())
    assert first.status == 200
    assert held.begun == 1
    assert shared.in_flight == 0


def test_a_dripped_body_holds_no_place_and_does_not_use_up_its_time() -> None:
    shared = control(timeout_s=0.1, capacity=3)
    app = Admission(Slow(0.001), shared, ENDPOINTS)

    async def run() -> tuple[list[Call], list[Call]]:
        drips = [asyncio.create_task(Call(*[b"x"] * 5, pace=0.05).run(app)) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert shared.lanes["search"].cost == 0
        assert shared.bodies.held > 0
        honest = [await Call().run(app) for _ in range(20)]
        return honest, await asyncio.gather(*drips)

    honest, drips = asyncio.run(run())
    assert {call.status for call in honest} == {200}
    assert drips[0].status == 200
    assert shared.bodies.held == 0


def test_bytes_in_flight_are_bounded() -> None:
    shared = AdmissionControl(AdmissionLimits(body_bytes=1000))
    app = Admission(Slow(0.001), shared, ENDPOINTS)

    async def run() -> list[Call]:
        declared = Call(b"x" * 1001, headers=[(b"content-length", b"1001")])
        lying = Call(b"x" * 600, b"x" * 600)
        held = asyncio.create_task(Call(b"x" * 900, b"y", pace=0.05).run(app))
        await asyncio.sleep(0.07)
        beside = await Call(b"x" * 200).run(app)
        return [await declared.run(app), await lying.run(app), beside, await held]

    declared, lying, beside, held = asyncio.run(run())
    assert (declared.status, declared.code, declared.read) == (429, "overloaded", 0)
    assert (lying.status, lying.headers["connection"]) == (429, "close")
    assert beside.status == 429
    assert held.status == 200
    assert shared.bodies.held == 0


def test_a_large_body_refused_unread_ends_the_connection() -> None:
    shared = AdmissionControl(AdmissionLimits(body_bytes=1 << 20))
    big = Call(headers=[(b"content-length", b"2000000")])
    asyncio.run(big.run(Admission(Slow(0), shared, ENDPOINTS)))
    assert (big.status, big.headers["connection"]) == (429, "close")


def test_giving_up_ends_what_waits_with_503_and_refuses_what_comes() -> None:
    slow, shared = Slow(0.2), AdmissionControl(AdmissionLimits())
    app = Admission(slow, shared, ENDPOINTS)

    async def run() -> list[Call]:
        tasks = [asyncio.create_task(Call().run(app)) for _ in range(5)]
        await asyncio.sleep(0.05)
        shared.give_up()
        done = await asyncio.gather(*tasks)
        return [*done, await Call().run(app), await Call(path="/healthz", method="GET").run(app)]

    *done, late, health = asyncio.run(run())
    # the device had one of them, whichever thread was first
    assert sorted(call.status for call in done) == [200, 503, 503, 503, 503]
    assert (late.status, late.code, late.read) == (503, "shutting-down", 0)
    assert late.headers["retry-after"].isdigit()
    assert health.status == 200
    assert slow.begun == 2, "the first, and health, which is never refused"


@pytest.mark.parametrize(("method", "lane"), [("DELETE", "write"), ("GET", "light")])
def test_what_has_no_body_takes_its_place_at_its_head(method: str, lane: LaneName) -> None:
    shared = AdmissionControl()
    seen: list[int] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(shared.lanes[lane].cost)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app = Admission(application, shared, ENDPOINTS)
    call = asyncio.run(Call(method=method, path="/v1/items/a").run(app))
    assert (call.status, call.read, seen) == (204, 0, [1])
    assert shared.lanes[lane].cost == shared.in_flight == 0


class Greedy(Slow):
    """A text takes 2 ms; what asks for a large answer takes 150 ms, and says so first."""

    def __init__(self) -> None:
        super().__init__(0.002)
        self.running = self.most = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            large = b"large" in await Request(scope, receive).body()
            await charge(scope, Price(texts=1, answer_bytes=9 << 20 if large else 4000))
            await run_in_threadpool(self._large if large else self._work)
        except ProblemError as error:
            await error.problem.response("r")(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    def _large(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        sleep(0.15)
        self.running -= 1


def test_who_asks_for_much_waits_among_their_like_and_refuses_nobody_else() -> None:
    greedy, shared = Greedy(), control(timeout_s=0.5)
    app = Admission(greedy, shared, ENDPOINTS)

    async def run() -> tuple[list[Call], list[Call]]:
        large, small = [], []

        async def ask_for_much() -> None:  # and again as soon as it is there
            for _ in range(3):
                large.append(await Call(b"large").run(app))

        async def ask_for_little() -> None:
            for _ in range(60):
                small.append(asyncio.create_task(Call(b"small").run(app)))
                await asyncio.sleep(0.01)

        await asyncio.gather(*(ask_for_much() for _ in range(8)), ask_for_little())
        return large, [await one for one in small]

    large, small = asyncio.run(run())
    assert [call.status for call in small] == [200] * 60
    assert {call.status for call in large} <= {200, 429}
    assert sum(call.status == 200 for call in large) >= 8
    assert greedy.most <= 2
    assert all(int(one.headers["retry-after"]) >= 1 for one in large if one.status == 429)
    assert [(lane.cost, lane.requests) for lane in shared.lanes.values()] == [(0, 0)] * 6


def test_what_is_charged_counts_until_the_answer_begins() -> None:
    shared, costs = control(), []

    async def charged(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        lane = shared.lanes["search"]
        for price in (Price(texts=1), Price(texts=64), Price(pictures=1), Price(texts=10**6)):
            await charge(scope, price)
            costs.append(lane.cost)
        await charge(scope, Price(answer_bytes=1 << 20))
        costs.append(lane.cost)
        costs.append(shared.lanes["large"].cost)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        costs.append(shared.lanes["large"].cost)
        await charge(scope, Price(answer_bytes=1 << 20))

    asyncio.run(Call().run(Admission(charged, shared, ENDPOINTS)))
    # a charge is never taken back, and a million texts are capped
    assert costs == [1, 5, 5, 100, 0, 100, 0]
