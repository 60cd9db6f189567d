"""Open-loop load: requests leave on a fixed schedule, whatever becomes of those before.

A closed loop of callers slows down with the service and hides how long a real caller would have
waited. Latency counts from the moment a request should have been sent (G. Tene's "coordinated
omission"). Raw keep-alive connections in one asyncio loop; knows HTTP/1.1 just enough.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request: when it was due (seconds from the start), its status (0: no answer), how late
    its answer was complete, its headers in lower case, and its body."""

    due_s: float
    status: int
    took_s: float
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: str = ""


class _Wire(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[tuple[int, dict[str, str], bytes]] | None = None
        self.closed = False
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(exc or ConnectionResetError("closed without an answer"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        length = int(headers.get("content-length", 0))
        if len(body) < length:
            return
        self._received = body[length:]
        if headers.get("connection") == "close":
            self.closed = True
            assert self.transport is not None
            self.transport.close()
        if self.answer is not None and not self.answer.done():
            self.answer.set_result((int(first.split()[1]), headers, body))


class Load:
    """Sends requests to one port and keeps what became of them."""

    def __init__(self, port: int, *, timeout_s: float = 60) -> None:
        self.port = port
        self.outcomes: list[Outcome] = []
        self._timeout_s = timeout_s
        self._idle: list[_Wire] = []

    async def run(self, rate: float, seconds: float, request: Callable[[int], bytes]) -> None:
        """`rate` requests a second; returns when every one has been answered or given up."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        tasks = []
        for number in range(round(rate * seconds)):
            due = start + number / rate
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(self._send(request(number), due, due - start)))
        await asyncio.gather(*tasks)

    async def loop(self, callers: int, seconds: float, request: Callable[[int], bytes]) -> None:
        """So many callers, each with one request under way: for the peak, not for latencies."""
        loop = asyncio.get_running_loop()
        start = loop.time()

        async def caller() -> None:
            while (now := loop.time()) < start + seconds:
                await self._send(request(0), now, now - start)

        await asyncio.gather(*(caller() for _ in range(callers)))

    async def _send(self, data: bytes, due: float, offset: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_s):
                wire = await self._connection()
                assert wire.transport is not None
                wire.answer = loop.create_future()
                wire.transport.write(data)
                status, headers, body = await wire.answer
        except (OSError, TimeoutError) as error:
            took = loop.time() - due
            self.outcomes.append(Outcome(offset, 0, took, error=type(error).__name__))
            return
        self.outcomes.append(Outcome(offset, status, loop.time() - due, headers, body))
        self._idle.append(wire)

    async def _connection(self) -> _Wire:
        while self._idle:
            wire = self._idle.pop()
            if not wire.closed:
                return wire
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(_Wire, "127.0.0.1", self.port)
        return wire

    def close(self) -> None:
        for wire in self._idle:
            if wire.transport is not None:
                with contextlib.suppress(OSError):
                    wire.transport.close()


def summary(outcomes: Iterable[Outcome], seconds: float) -> dict[str, Any]:
    """Counts by status, answers a second, and latencies in milliseconds."""
    outcomes = list(outcomes)
    good = [one.took_s * 1000 for one in outcomes if one.status == 200]
    refused = [one.took_s * 1000 for one in outcomes if one.status in (429, 503)]
    return {
        "sent": len(outcomes),
        "by_status": dict(sorted(Counter(str(one.status) for one in outcomes).items())),
        "errors": dict(Counter(one.error for one in outcomes if one.error)),
        "good_per_s": round(len(good) / seconds, 1),
        "good_ms": percentiles(good),
        "refused_ms": percentiles(refused),
    }


def percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {
        f"p{part:g}": round(float(np.percentile(values, part)), 2) for part in (50, 95, 99, 100)
    }
