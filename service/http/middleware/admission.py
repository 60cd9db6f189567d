"""Who may join the queue, and how long each may take: a layer of `app`. Pure ASGI.

A request is judged at its head, before a byte of its body is read: one that could not be answered
in time is refused there. It joins its lane when its body is complete, so that a caller who drips a
body holds no place, is judged once more, and waits for a turn. What it asks for shows only when it
has been read: then its resource calls `charge`, and who asks for a large answer goes on to a lane
of such. Its deadline, `service.engine.deadline`'s current one, runs from the joining on; when the
caller hangs up, that is cancelled. A place is held until the answer begins, so that a caller who
does not read holds none either.
"""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import dataclass, field, replace
from time import monotonic, perf_counter
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import DeadlineError
from service.engine import deadline
from service.engine.deadline import Deadline
from service.http.middleware.auth import caller_of
from service.http.middleware.body_budget import SMALL_BYTES, Body, BodyBudget
from service.http.middleware.endpoints import EndpointTable
from service.http.middleware.lanes import (
    AdmissionLimits,
    Lane,
    LaneName,
    Price,
    cost_of,
    lane_rules,
)
from service.http.middleware.problems import ProblemError, of_domain, refuse
from service.operations import metrics

_VISIT: Final = "admission_visit"
_TIMEOUT = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,3})?")


@dataclass(slots=True)
class AdmissionControl:
    """What all requests share: the lanes, the bytes, and whether the service still takes any.

    One per application, used from its event loop alone.
    """

    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    lanes: dict[LaneName, Lane] = field(init=False)
    bodies: BodyBudget = field(init=False)
    closing: bool = False
    _open: set[Deadline] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.lanes = {name: Lane(rule) for name, rule in lane_rules(self.limits).items()}
        self.bodies = BodyBudget(self.limits.body_bytes, self.limits.caller_body_bytes)

    @property
    def in_flight(self) -> int:
        """Requests accepted and not answered."""
        return len(self._open)

    def give_up(self) -> None:
        """The time to finish is over: 503 for all that wait, and for those that run as they end."""
        self.closing = True
        for each in list(self._open):
            each.cancel("shutting-down")

    def open(self, allowed: Deadline) -> None:
        self._open.add(allowed)

    def close(self, allowed: Deadline) -> None:
        self._open.discard(allowed)

    def judge(self, lane: Lane, cost: int, timeout_s: float) -> None:
        """Raises ProblemError if a request should not be taken on."""
        if self.closing:
            metrics.REJECTED.labels("shutting-down").inc()
            raise ProblemError(of_domain(DeadlineError("", code="shutting-down")))
        if lane.refuses(cost, timeout_s):
            raise overloaded("queue", lane.retry_after())


def overloaded(reason: str, retry_after_s: int, *, close: bool = False) -> ProblemError:
    """429, counted; `close` where more of the body is still to come."""
    metrics.REJECTED.labels(reason).inc()
    headers = {"Retry-After": str(retry_after_s)} | ({"Connection": "close"} if close else {})
    return refuse("overloaded", f"Ask again in {retry_after_s} s.", headers=headers)


class Admission:
    """ASGI middleware; inside `Limits`, which has bounded what a body may be."""

    def __init__(self, app: ASGIApp, control: AdmissionControl, endpoints: EndpointTable) -> None:
        self._app = app
        self._control = control
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint = self._endpoints.of(scope)
        if endpoint.lane is None:
            await self._app(scope, receive, send)
            return
        lane = self._control.lanes[endpoint.lane]
        declared = _header(scope, b"content-length")
        size = int(declared) if declared.isdigit() else 0
        visit: _Visit | None = None
        try:
            asked_s = _asked_s(scope, self._control.limits.most_s)
            timeout_s = lane.rule.timeout_s if asked_s is None else asked_s
            self._control.judge(lane, cost_of(size), timeout_s)
            caller, bodies = caller_of(scope), self._control.bodies
            if not bodies.fits(caller, size):
                raise overloaded("body-bytes", bodies.retry_after(caller, size))
            with deadline.until(math.inf) as allowed:
                body = bodies.open(caller, size, allowed)
                visit = _Visit(self._control, lane, body, asked_s, receive, send)
                scope.setdefault("state", {})[_VISIT] = visit
                if endpoint.cost == "one":  # has no body to wait for
                    await visit.join(1)
                await self._app(scope, visit.receive, visit.send)
        except ProblemError as error:
            problem = error.problem
            # what is no larger is read and dropped, which keeps the connection usable
            if size > SMALL_BYTES or _header(scope, b"transfer-encoding"):
                problem = replace(problem, headers={**problem.headers, "Connection": "close"})
            await problem.send(scope, receive, send)
        finally:
            if visit is not None:
                visit.end()


async def charge(scope: Scope, price: Price) -> None:
    """Count a request by what it asks for; one for a large answer waits for a turn among its like.

    For resources, once they have read the body and before they work, not from a thread. Without an
    `Admission` around them nothing is counted.

    Raises:
        ProblemError: there is no room, or the turn did not come in time.
    """
    visit: _Visit | None = scope.get("state", {}).get(_VISIT)
    if visit is not None:
        await visit.charge(price)


def _asked_s(scope: Scope, most_s: float) -> float | None:
    """The time allowed that a request asks for; None for its lane's own."""
    given = [value for name, value in scope["headers"] if name == b"x-request-timeout"]
    if not given:
        return None
    text = given[0].decode("latin-1").strip()
    if len(given) > 1 or not _TIMEOUT.fullmatch(text) or float(text) == 0:
        raise refuse("invalid-request", "X-Request-Timeout is a positive number of seconds.")
    return min(float(text), most_s)


def _header(scope: Scope, wanted: bytes) -> str:
    for name, value in scope["headers"]:
        if name == wanted:
            return str(value, "latin-1")
    return ""


class _Visit:
    """One request from its head to its answer: its bytes, its place in the lane, its turn."""

    def __init__(
        self,
        control: AdmissionControl,
        lane: Lane,
        body: Body,
        asked_s: float | None,
        receive: Receive,
        send: Send,
    ) -> None:
        self._control = control
        self._lane = lane
        self._body = body
        self._allowed = body.allowed
        self._asked_s = asked_s
        self._receive = receive
        self._send = send
        self._gone = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._cost = 0
        self._turn = False
        control.open(body.allowed)

    async def receive(self) -> Message:
        """The application's `receive`: the last piece of a body comes when it is its turn."""
        if self._watcher is not None:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        try:
            message = await self._body.piece(self._receive)
        except TimeoutError:
            self._allowed.cancel()
            raise refuse(
                "body-timeout",
                "It stalled while others needed the room; send it again.",
                headers={"Connection": "close"},
            ) from None
        if message["type"] != "http.request":
            self._allowed.cancel()
            return message
        size = len(message.get("body", b""))
        if not self._body.grow(size):
            wait = self._control.bodies.retry_after(self._body.caller, size)
            raise overloaded("body-bytes", wait, close=True)
        if not message.get("more_body", False) and self._cost == 0:
            self._body.complete = True
            self._watcher = asyncio.create_task(self._watch())
            await self.join(cost_of(self._body.bytes))
        return message

    async def _watch(self) -> None:
        """After the body nothing can come but the caller hanging up."""
        while (await self._receive())["type"] == "http.request":
            pass
        self._allowed.cancel()
        self._gone.set()

    async def charge(self, price: Price) -> None:
        """See `charge`. What the body's size has counted for already is not counted again."""
        if not self._cost:
            return  # its answer has begun, or it is on its way out
        cost = max(self._cost, price.cost)
        if price.large:
            self._leave(served=False)
            self._lane = self._control.lanes["large"]
            await self.join(cost)
        elif cost > self._cost:
            if self._lane.requests > 1:  # as an empty lane takes any
                self._control.judge(self._lane, cost - self._cost, self._timeout_s)
            self._lane.reprice(self._cost, cost)
            self._cost = cost

    @property
    def _timeout_s(self) -> float:
        return self._lane.rule.timeout_s if self._asked_s is None else self._asked_s

    async def join(self, cost: int) -> None:
        """Take a place in the lane and wait for a turn.

        Raises:
            ProblemError: there is no room, or the turn did not come in time.
        """
        self._control.judge(self._lane, cost, self._timeout_s)
        self._lane.enter(cost)
        self._cost = cost
        # from here on: what a slow line takes to bring a body is the body's own limit
        self._allowed.at = monotonic() + self._timeout_s
        began = perf_counter()
        try:
            await self._lane.slot(self._allowed)
        except DeadlineError as error:
            metrics.REJECTED.labels(error.code).inc()
            raise ProblemError(of_domain(error)) from None
        self._turn = True
        metrics.stage_seconds("wait").observe(perf_counter() - began)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._leave(served=200 <= message["status"] < 300)
        await self._send(message)

    def _leave(self, *, served: bool) -> None:
        if self._cost:
            self._lane.leave(self._cost, served=served)
            self._cost = 0
        if self._turn:
            self._lane.give()
            self._turn = False

    def end(self) -> None:
        """The request is over, however it went."""
        self._leave(served=False)
        self._control.close(self._allowed)
        self._body.close()
        if self._watcher is not None:
            self._watcher.cancel()
