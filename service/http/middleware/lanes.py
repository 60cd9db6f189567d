"""How much work waits, how long it takes, who may still join: `admission`'s arithmetic, no HTTP.

Requests that cost alike share a lane, so that an hour-long pile of pictures to classify does not
make a text search look hopeless. A lane knows the cost of all it has accepted and not finished, and
the moving average of seconds a unit of cost takes to drain; their product is the estimated wait.
The average is of the lane's throughput, not of latencies: it holds whether the encoder pair works
one at a time or in batches.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Final, Literal

from models.errors import DeadlineError
from service.engine.deadline import Deadline
from service.operations import metrics

# the rest of the time allowed is for the work itself, and for estimates that were too low
WAITING_SHARE = 0.5
# a fast machine corrects it within a few requests; a slow one is not flooded meanwhile
_FIRST_GUESS_S = 0.02
# as so many answers: the first answer of a batch comes after the time of all of it, and taken for
# the price of one it would refuse the next callers of a service that has just started
_FIRST_WORTH = 8.0
# what is remembered of the past: a change of speed is believed after about so many busy seconds
_MEMORY_S = 2.0
_MAX_RETRY_S = 60
_COST_BYTES = 32 << 10
_MAX_COST = 64
# of a request that was read: a tenth of what a lane may hold, however much it asks for
_MAX_PRICE = 100
_TEXTS_A_UNIT = 16  # they are embedded together
_UNITS_A_PICTURE = 4
_ANSWER_UNIT_BYTES = 64 << 10
LARGE_ANSWER_BYTES: Final = 256 << 10
"""An estimated answer above this waits in the lane `large`."""

LaneName = Literal["search", "pictures", "long", "write", "light", "large"]


@dataclass(frozen=True, slots=True)
class LaneRule:
    """What a lane may hold.

    Attributes:
        timeout_s: time allowed to requests that ask for no other.
        slots: requests worked on at once; the others wait for one, in order.
        capacity: cost accepted and not finished.
    """

    name: LaneName
    timeout_s: float
    slots: int
    capacity: int


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What the service takes on.

    Attributes:
        timeout_s: time allowed to a search that asks for no other.
        long_timeout_s: the same for classification, explanations, batches and writes.
        most_s: the most that `X-Request-Timeout` can ask for.
        body_bytes: of all request bodies in memory together.
        caller_body_bytes: the same of one caller's, by key or address.
        capacity: cost that a lane may have accepted and not answered.
    """

    timeout_s: float = 2.0
    long_timeout_s: float = 30.0
    most_s: float = 120.0
    body_bytes: int = 256 << 20
    caller_body_bytes: int = 64 << 20
    capacity: int = 1000


def lane_rules(limits: AdmissionLimits) -> Mapping[LaneName, LaneRule]:
    """Requests by what they cost: texts, pictures, long work, changes, lookups, large answers."""
    short, long, room = (
        limits.timeout_s,
        max(limits.timeout_s, limits.long_timeout_s),
        limits.capacity,
    )
    rules = (
        LaneRule("search", short, slots=48, capacity=room),
        LaneRule("pictures", short, slots=32, capacity=room),
        LaneRule("long", long, slots=16, capacity=room),
        LaneRule("write", long, slots=4, capacity=room),
        LaneRule("light", short, slots=32, capacity=room),
        # megabytes of JSON: two at a time leave Python's lock to those who ask for little
        LaneRule("large", long, slots=2, capacity=room),
    )
    return {rule.name: rule for rule in rules}


def threads(limits: AdmissionLimits) -> int:
    """Handlers that may run at once, so that none waits for a thread once it has its turn."""
    return sum(rule.slots for rule in lane_rules(limits).values())


def cost_of(body_bytes: int) -> int:
    """A text is one unit; a picture, or a pile of texts, is more by its size."""
    return min(_MAX_COST, 1 + body_bytes // _COST_BYTES)


@dataclass(frozen=True, slots=True)
class Price:
    """What a request asks for, as far as reading it tells.

    Attributes:
        texts, pictures: to be embedded.
        answer_bytes: of JSON, estimated.
    """

    texts: int = 0
    pictures: int = 0
    answer_bytes: int = 0

    def __add__(self, other: Price) -> Price:
        return Price(
            self.texts + other.texts,
            self.pictures + other.pictures,
            self.answer_bytes + other.answer_bytes,
        )

    @property
    def cost(self) -> int:
        """In the units of `cost_of`."""
        units = self.texts // _TEXTS_A_UNIT + _UNITS_A_PICTURE * self.pictures
        return min(_MAX_PRICE, 1 + units + self.answer_bytes // _ANSWER_UNIT_BYTES)

    @property
    def large(self) -> bool:
        return self.answer_bytes > LARGE_ANSWER_BYTES


class Lane:
    """One lane, used from the event loop's thread alone."""

    def __init__(self, rule: LaneRule, clock: Callable[[], float] = monotonic) -> None:
        self.rule = rule
        self.cost = 0
        self.requests = 0
        self._clock = clock
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mark = 0.0
        # both decay alike; their quotient is the average
        self._busy_s, self._done = _FIRST_GUESS_S * _FIRST_WORTH, _FIRST_WORTH
        self._in_flight = metrics.IN_FLIGHT.labels(rule.name)
        self._queued_cost = metrics.QUEUED_COST.labels(rule.name)
        self._cost_seconds = metrics.COST_SECONDS.labels(rule.name)

    @property
    def cost_seconds(self) -> float:
        """Seconds a unit of cost takes to drain."""
        return self._busy_s / self._done

    def wait_s(self) -> float:
        """Estimated seconds until a request accepted now would be finished with those before it."""
        return self.cost * self.cost_seconds

    def refuses(self, cost: int, timeout_s: float) -> bool:
        """Whether a request should go elsewhere. An empty lane takes any.

        A longer time allowed does not reach deeper into the queue, or patient callers would fill it
        for all others; a shorter one counts.
        """
        if self.cost == 0:
            return False
        allowed = WAITING_SHARE * min(timeout_s, self.rule.timeout_s)
        return self.cost + cost > self.rule.capacity or self.wait_s() > allowed

    def retry_after(self) -> int:
        """Whole seconds after which trying again makes sense, spread so that all do not return."""
        spread = 1 + random.random() / 2  # noqa: S311  # not a secret
        return min(_MAX_RETRY_S, max(1, math.ceil(self.wait_s() * spread)))

    def enter(self, cost: int) -> None:
        """Count a request as accepted; `leave` is its counterpart."""
        if self.requests == 0:
            self._mark = self._clock()
        self.requests += 1
        self.cost += cost
        self._report()

    def reprice(self, before: int, after: int) -> None:
        """Count a request that has entered as another cost."""
        self.cost += after - before
        self._report()

    def leave(self, cost: int, *, served: bool) -> None:
        """Count a request as gone; `served`: its answer is what such an answer costs.

        Refusals and failures are quick; counted, a flood of them would promise speed there is not.
        """
        self.requests -= 1
        self.cost -= cost
        if served:
            now = self._clock()
            took, self._mark = now - self._mark, now
            keep = math.exp(-took / _MEMORY_S)
            self._busy_s = self._busy_s * keep + took
            self._done = self._done * keep + cost
        self._report()

    async def slot(self, deadline: Deadline) -> None:
        """Wait for a turn; `give` returns it.

        Raises:
            DeadlineError: the time allowed passed, or the caller went away, before the turn came.
        """
        deadline.check()
        if self._running < self.rule.slots:
            self._running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        # in the loop's thread, where requests are cancelled
        forget = deadline.on_cancel(lambda: turn.done() or turn.cancel())
        try:
            async with asyncio.timeout(deadline.left()):
                await turn
        except (TimeoutError, asyncio.CancelledError) as error:
            if turn.done() and not turn.cancelled():
                self.give()  # the turn came in the same instant
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError) or deadline.cancelled:
                deadline.check()
                raise DeadlineError("the time allowed has passed") from None
            raise
        finally:
            forget()

    def give(self) -> None:
        """Return a turn, to whoever has waited longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._running -= 1

    def _report(self) -> None:
        self._in_flight.set(self.requests)
        self._queued_cost.set(self.cost)
        self._cost_seconds.set(self.cost_seconds)
