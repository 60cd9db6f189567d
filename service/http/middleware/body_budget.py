"""The memory that request bodies may take, shared out fairly: `admission` keeps it. Knows no lanes.

One caller, by key or by address, gets a share of it. A body that has not grown for a while makes
room for others where room is needed, and a part of it is kept for small bodies: whoever sends a
few large ones and lets them lie takes nothing from those who ask in words.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Final

from starlette.types import Message, Receive

from service.engine.deadline import Deadline
from service.operations import metrics

# a body that takes longer than this to grow makes room, if somebody needs it
STALLED_S: Final = 2.0
# a text, its options, a vector: never more than a picture's beginning
SMALL_BYTES: Final = 64 << 10
# of all memory, for small bodies alone: an eighth
_KEPT: Final = 8
_MAX_RETRY_S: Final = 60


class Body:
    """One request's body on its way in; see `BodyBudget.open`."""

    def __init__(
        self, budget: BodyBudget, caller: str, declared: int, allowed: Deadline, now: float
    ) -> None:
        self._budget = budget
        self.caller = caller
        self.declared = declared
        self.allowed = allowed
        self.bytes = 0
        self.complete = False
        self._began = self._grew = now
        self._wait: asyncio.Timeout | None = None

    async def piece(self, receive: Receive) -> Message:
        """The next message of its request; TimeoutError: it had to give way to others."""
        async with asyncio.timeout(None) as self._wait:
            try:
                return await receive()
            finally:
                self._wait = None

    def grow(self, size: int) -> bool:
        """Take `size` more bytes; False if there is no room for them, even if others make some."""
        if not self._budget.make_room(self, size):
            return False
        self.bytes += size
        self._grew = self._budget.now()
        self._budget.count(self.caller, size)
        return True

    def close(self) -> None:
        """Its bytes are let go."""
        self._budget.forget(self)

    def stalled(self, now: float) -> bool:
        """Whether it is waited for, and has been for too long if somebody needs the room."""
        return self._wait is not None and self.bytes > 0 and now - self._grew >= STALLED_S

    def give_way(self) -> None:
        """Whoever waits for the rest of it is told that it will not be taken."""
        metrics.REJECTED.labels("body-stalled").inc()
        assert self._wait is not None, "only of what stalls"
        self._wait.reschedule(asyncio.get_running_loop().time())
        self.close()

    def left_s(self, now: float) -> float:
        """Seconds until it will be gone, at the pace it has come so far."""
        if self.complete:
            return self.allowed.left() or 0.0
        took = now - self._began
        if self.declared <= self.bytes:
            return took  # no more is known of it: as long again
        return took * (self.declared - self.bytes) / max(1, self.bytes)


class BodyBudget:
    """Bytes of request bodies in memory, of all requests together. Used from one event loop.

    Args:
        limit: bytes in all.
        caller_limit: bytes of one caller's; small bodies are not counted against it.
    """

    def __init__(
        self, limit: int, caller_limit: int, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self.limit = limit
        self.caller_limit = caller_limit
        self.now = clock
        self.held = 0
        self._by_caller: Counter[str] = Counter()
        self._open: set[Body] = set()

    def open(self, caller: str, declared: int, allowed: Deadline) -> Body:
        """A body of which nothing has come yet; `declared` is its length, 0 where not told."""
        body = Body(self, caller, declared, allowed, self.now())
        self._open.add(body)
        return body

    def fits(self, caller: str, size: int) -> bool:
        """Whether a body of this size could be taken now, if those that stall make room."""
        return self._giving_way(caller, size, large=size > SMALL_BYTES) is not None

    def make_room(self, body: Body, size: int) -> bool:
        """Whether a body may grow; those that stall and stand in its way are let go."""
        large = max(body.declared, body.bytes + size) > SMALL_BYTES
        gone = self._giving_way(body.caller, size, large=large, but=body)
        for each in gone or ():
            each.give_way()
        return gone is not None

    def count(self, caller: str, size: int) -> None:
        """Bytes that came; negative when they are let go."""
        self.held += size
        self._by_caller[caller] += size
        if self._by_caller[caller] <= 0:
            del self._by_caller[caller]
        metrics.BODY_BYTES.set(self.held)

    def forget(self, body: Body) -> None:
        if body in self._open:
            self._open.discard(body)
            self.count(body.caller, -body.bytes)

    def retry_after(self, caller: str, size: int) -> int:
        """Whole seconds after which there will be room, by the pace of what is in the way."""
        now = self.now()
        own, total = self._lacking(caller, size, large=size > SMALL_BYTES)
        wait = 0.0
        for body in sorted(self._open, key=lambda body: body.left_s(now)):
            if own <= 0 and total <= 0:
                break
            own -= body.bytes if body.caller == caller else 0
            total -= body.bytes
            wait = body.left_s(now)
        return min(_MAX_RETRY_S, max(1, math.ceil(wait)))

    def _lacking(self, caller: str, size: int, *, large: bool) -> tuple[int, int]:
        """Bytes that are missing of the caller's share, and of all; at most 0 for none."""
        if not large:
            return 0, self.held + size - self.limit
        room = self.limit - (self.limit // _KEPT if self.limit > SMALL_BYTES else 0)
        return self._by_caller[caller] + size - self.caller_limit, self.held + size - room

    def _giving_way(
        self, caller: str, size: int, *, large: bool, but: Body | None = None
    ) -> list[Body] | None:
        """The stalled bodies whose end makes room; None where there is none to be made.

        Of the caller's own where its share is what is lacking; otherwise of those who hold most.
        """
        own, total = self._lacking(caller, size, large=large)
        gone: list[Body] = []
        if own <= 0 and total <= 0:
            return gone
        for body in self._by_weight(caller, but):
            if own <= 0 and total <= 0:
                break
            mine = body.caller == caller
            if total > 0 or mine:
                gone.append(body)
                total -= body.bytes
                own -= body.bytes if mine else 0
        return gone if own <= 0 and total <= 0 else None

    def _by_weight(self, caller: str, but: Body | None) -> Iterable[Body]:
        now = self.now()
        stalled = [body for body in self._open if body is not but and body.stalled(now)]
        # the caller's own first: they count twice
        return sorted(
            stalled,
            key=lambda body: (body.caller == caller, self._by_caller[body.caller], body.bytes),
            reverse=True,
        )
