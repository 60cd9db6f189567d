"""Who may call what: API keys, asked for by the route that takes the request. A layer of `app`.

Every route needs a key with the scope it declares, unless it declares itself `public`: the two
health checks and the files of the web page, which hold nothing of an index. The decision falls
twice: in the ASGI layer, before a byte of the body is read, and once more as a dependency of the
route that FastAPI chose, so that the two can never part ways unnoticed.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from models.errors import KeyFileError
from service.http.middleware.endpoints import EndpointTable, declared
from service.http.middleware.keys import (
    MAX_KEY_CHARS,
    KeyFile,
    KeyScope,
    LiveKeys,
    StoredKey,
    claimed_id,
)
from service.http.middleware.problems import Problem, ProblemError
from service.operations import metrics

_LOG = logging.getLogger("diptych.service")
_BEARER = re.compile(rb"(?i:bearer) +([\x21-\x7e]+) *")


def missing_key() -> Problem:
    """No key, two, a wrong one, an expired one: the same words for all."""
    return Problem(
        "unauthorized",
        "This needs an API key: Authorization: Bearer KEY, or api-key: KEY.",
        headers={"WWW-Authenticate": 'Bearer realm="diptych"'},
    )


class Throttle:
    """How often one address may fail: `burst` at once, then `rate` a second (IPv6: per /64).

    A token bucket each, in bounded memory. Addresses are those of connections: what a header claims
    about them counts only where the operator named the proxies that may claim it, and then the
    server has already replaced the address. The library `limits` has moving windows instead, holds
    every address until its window ends however many come, and starts a timer thread to forget them.
    """

    def __init__(
        self,
        *,
        rate: float = 1.0,
        burst: float = 20.0,
        capacity: int = 4096,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        assert rate > 0, "a bucket fills"
        assert burst >= 1, "a bucket holds a token"
        self._rate, self._burst, self._capacity, self._clock = rate, burst, capacity, clock
        # network -> (tokens, when), the one touched longest ago first
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def spend(self, address: str) -> float:
        """Count one failure: 0 if it was allowed, else the seconds until one will be."""
        now = self._clock()
        bucket = _network(address)
        tokens, when = self._buckets.pop(bucket, (self._burst, now))
        tokens = min(self._burst, tokens + (now - when) * self._rate)
        wait = 0.0 if tokens >= 1.0 else (1.0 - tokens) / self._rate
        # what is refused is not charged, or a steady flood would never be let up
        self._buckets[bucket] = (tokens if wait else tokens - 1.0, now)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return wait


def _network(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv6Address):
        # whoever has one IPv6 address has its whole /64
        return str(found.ipv4_mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))
    return str(found)


def caller_of(scope: Scope) -> str:
    """Who a request counts for where there is only so much for each: its key, or its network."""
    key = scope.get("state", {}).get("key")
    if key is not None:
        return f"key {key.id}"
    return _network((scope.get("client") or ("", 0))[0])


@dataclass(frozen=True, slots=True)
class Guard:
    """The keys that are let in, and the bound on failures. Shared by one application's requests."""

    keys: LiveKeys
    throttle: Throttle = field(default_factory=Throttle)

    @classmethod
    def of(cls, file: KeyFile) -> Guard:
        """Raises KeyFileError: the file cannot be read now; later that is logged instead."""

        def failed(error: KeyFileError) -> None:
            _LOG.error("no key is accepted: %s", error.message)

        return cls(LiveKeys(file, monotonic=monotonic, failed=failed))

    def admit(self, scope: Scope, wanted: KeyScope) -> StoredKey | Problem:
        """The key of a request, if it may do what it wants; `state` has whose it is or claims to
        be, for the log."""
        state = scope.setdefault("state", {})
        presented = _presented(scope)
        if isinstance(presented, Problem):
            return presented
        # also without a key: the same work whatever was sent
        key = self.keys.ring().find(presented)
        if key is None:
            state["claimed_key"] = claimed_id(presented)
            # after the look-up: a right key passes however often others failed beside it
            metrics.REJECTED.labels("no-key").inc()
            wait = self.throttle.spend((scope.get("client") or ("", 0))[0])
            if wait:
                return Problem(
                    "too-many-attempts",
                    "Too many requests without a valid key came from this address.",
                    headers={"Retry-After": str(math.ceil(wait))},
                )
            return missing_key()
        state["key"] = key
        if wanted not in key.scopes:
            return Problem("scope-missing", f"This needs a key with the scope {wanted}.")
        return key


def _presented(scope: Scope) -> str | Problem:
    """What was sent as the key, "" for nothing usable. Never looked for in the URL."""
    found: list[bytes] = []
    for name, value in scope["headers"]:
        if name == b"authorization":
            if len(value) > MAX_KEY_CHARS:
                return Problem("bad-request", "The Authorization header is too long for a key.")
            match = _BEARER.fullmatch(value)
            found.append(match[1] if match else b"")
        elif name == b"api-key":
            if len(value) > MAX_KEY_CHARS:
                return Problem("bad-request", "The api-key header is too long for a key.")
            found.append(value)
    # two could mean two people: a proxy may have checked the other one
    return found[0].decode("latin-1") if len(found) == 1 else ""


class Authentication:
    """ASGI middleware: refuses before anything is read, and remembers whose the key was."""

    def __init__(self, app: ASGIApp, guard: Guard, endpoints: EndpointTable) -> None:
        self._app = app
        self._guard = guard
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wanted = self._endpoints.of(scope).access
        state = scope.setdefault("state", {})
        if wanted != "public":
            found = self._guard.admit(scope, wanted)
            if isinstance(found, Problem):
                await found.send(scope, receive, send)
                return
        state["access"] = wanted
        await self._app(scope, receive, send)


async def confirm(request: Request) -> None:
    """A dependency of every route: what the layer granted is what the chosen route needs."""
    granted = request.scope.get("state", {}).get("access")
    endpoint = declared(request.scope.get("endpoint"))
    if endpoint is None or endpoint.access not in ("public", granted):
        raise ProblemError(missing_key())
