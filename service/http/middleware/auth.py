"""Who may call what: API keys, denied by default, decided on the route that matched.

Every route needs a key unless its endpoint is marked `public`: the two health checks and the files
of the web page, which hold nothing of an index. Reading (`GET`, and endpoints marked `reads`) needs
the scope `read`, everything else `write`, so that a route nobody thought about is closed. What no
route takes needs a key as well: without one, not even the addresses can be explored.

The decision falls twice: in the ASGI layer, before a byte of the body is read, and once more as a
dependency of the route that FastAPI chose, so that the two can never part ways unnoticed.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, Literal, TypeVar

from fastapi import Request
from fastapi.routing import iter_route_contexts
from starlette.types import ASGIApp, Receive, Scope, Send

from models.errors import KeyFileError
from service.http.middleware.keys import MAX_KEY_CHARS, KeyFile, KeyScope, LiveKeys, StoredKey
from service.http.middleware.problems import Problem, ProblemError
from service.http.middleware.throttle import Throttle
from service.operations import metrics

_LOG = logging.getLogger("diptych.service")
_MARK: Final = "_diptych_access"
_READING = frozenset({"GET", "HEAD"})
_BEARER = re.compile(rb"(?i:bearer) +([\x21-\x7e]+) *")
E = TypeVar("E", bound=Callable[..., Any])

Access = KeyScope | Literal["public"]
_Route = tuple[re.Pattern[str], frozenset[str], object]


def public(endpoint: E) -> E:
    """Mark an endpoint that answers without a key."""
    setattr(endpoint, _MARK, "public")
    return endpoint


def reads(endpoint: E) -> E:
    """Mark an endpoint that changes nothing although its method is POST."""
    setattr(endpoint, _MARK, "read")
    return endpoint


def access_of(endpoint: object, method: str) -> Access:
    """What calling an endpoint needs; one that is not marked is judged by its method."""
    marked: Access | None = getattr(endpoint, _MARK, None)
    return marked or ("read" if method in _READING else "write")


def missing_key() -> Problem:
    """No key, two, a wrong one, an expired one: the same words for all."""
    return Problem(
        "unauthorized",
        "This needs an API key: Authorization: Bearer KEY, or api-key: KEY.",
        headers={"WWW-Authenticate": 'Bearer realm="diptych"'},
    )


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
        """The key of a request, if it may do what it wants."""
        presented = _presented(scope)
        if isinstance(presented, Problem):
            return presented
        # also without a key: the same work whatever was sent
        key = self.keys.ring().find(presented)
        if key is None:
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

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard
        self._routes: list[_Route] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._routes is None:
            self._routes = list(_routes(scope["app"]))
        wanted = _wanted(scope, self._routes)
        state = scope.setdefault("state", {})
        if wanted != "public":
            found = self._guard.admit(scope, wanted)
            if isinstance(found, Problem):
                await found.response(str(state.get("request_id", "unknown")))(scope, receive, send)
                return
            state["key"] = found
        state["access"] = wanted
        await self._app(scope, receive, send)


def _wanted(scope: Scope, routes: Sequence[_Route]) -> Access:
    """What the first route that takes the request needs, by the router's own patterns."""
    method = scope["method"]
    if not scope.get("root_path"):  # with one, paths mean something else: nothing is public
        for pattern, methods, endpoint in routes:
            if method in methods and pattern.match(scope["path"]):
                return access_of(endpoint, method)
    return "read"


def _routes(app: Any) -> Iterator[_Route]:
    for route in iter_route_contexts(app.router.routes):
        pattern, methods = getattr(route, "path_regex", None), getattr(route, "methods", None)
        if pattern is not None and methods:
            yield pattern, frozenset(methods), getattr(route, "endpoint", None)


async def confirm(request: Request) -> None:
    """A dependency of every route: what the layer granted is what the chosen route needs."""
    granted = request.scope.get("state", {}).get("access")
    needed = access_of(request.scope.get("endpoint"), request.method)
    if needed != "public" and granted != needed:
        raise ProblemError(missing_key())
