"""What surrounds every request: an id, security headers, one log line, the last catch.

Pure ASGI, the outermost layer of the application, so that refusals of the layers inside and
defects of ours leave with the same headers and are counted alike. Logs, counts and traces the
route's template, never the path or the query: both may hold what somebody searched for. A caller's
address is logged of what was refused alone. HEAD is answered here as GET without the body.
"""

from __future__ import annotations

import asyncio
import logging
import random
import traceback
from collections.abc import Callable, Iterable
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import DeadlineError
from service.http.middleware import problems
from service.http.middleware.endpoints import EndpointTable
from service.operations import metrics, timing
from service.operations.tracing import Trace, Tracer

_LOG = logging.getLogger("diptych.service")

API_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; sandbox"
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
# the page writes text, never markup; browsers that can will refuse anything else
STRICT_PAGE_POLICY = PAGE_POLICY + "; require-trusted-types-for 'script'; trusted-types 'none'"
# Swagger UI sets inline styles on its own elements; scripts stay files
DOCS_POLICY = PAGE_POLICY + "; style-src 'self' 'unsafe-inline'"
# others would be labels of a caller's choice
_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
_IDS = random.Random()  # noqa: S311  # names a log line, guards nothing; seeded by the system
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": API_POLICY,
    "Cache-Control": "no-store",
}
_RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
_HTTPS_HEADERS = [(b"strict-transport-security", b"max-age=31536000")]
_TIMING_HEADER = timing.HEADER.lower().encode()


class RequestFrame:
    """ASGI middleware; a response keeps a header it set itself.

    Args:
        closing: whether connections should end with the answer they are waiting for.
        endpoints: says which route was asked for where none was reached.
    """

    def __init__(
        self,
        app: ASGIApp,
        closing: Callable[[], bool] = lambda: False,
        endpoints: EndpointTable | None = None,
    ) -> None:
        self._app = app
        self._endpoints = endpoints
        self._closing = closing
        self._tracer = Tracer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # uuid4 asks the system each time, which gives Python's lock away
        request_id = f"{_IDS.getrandbits(128):032x}"
        scope.setdefault("state", {})["request_id"] = request_id
        with self._tracer.request(scope, request_id) as trace:
            await self._answer(scope, receive, send, request_id, trace)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, request_id: str, trace: Trace
    ) -> None:
        began = perf_counter()
        status = 0
        method = scope["method"]
        if method == "HEAD":
            scope["method"] = "GET"

        async def framed(message: Message) -> None:
            nonlocal status
            if method == "HEAD" and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = _Headers(message["headers"])
                headers.set(b"x-request-id", request_id)
                if trace.traceparent is not None:
                    headers.set(b"traceparent", trace.traceparent)
                if self._closing():
                    headers.set(b"connection", "close")
                headers.add(_RAW_HEADERS)
                if scope.get("scheme") == "https":  # as a believed proxy says
                    headers.add(_HTTPS_HEADERS)
                told = timing.header(scope, began if scope["path"].startswith("/v1/") else None)
                if told:
                    headers.set(_TIMING_HEADER, told)
                message["headers"] = headers.pairs
            await send(message)

        try:
            await self._app(scope, receive, framed)
        except asyncio.CancelledError:
            # the server's last resort, when the time to stop is over
            if not self._closing() or status:
                raise
            late = problems.of_domain(DeadlineError("stopping", code="shutting-down"))
            await late.send(scope, receive, framed)
        except Exception as error:
            # the frames without the message: an exception's text may quote what was asked
            frames = "".join(traceback.format_tb(error.__traceback__))
            kind = type(error).__name__
            fields = {
                "event": "unhandled",
                "request_id": request_id,
                "exception": kind,
                "frames": frames,
            }
            _LOG.error(
                "request=%s unhandled %s\n%s", request_id, kind, frames, extra={"fields": fields}
            )
            if not status:
                await problems.internal().send(scope, receive, framed)
        _report(scope, method, self._route(scope), status, perf_counter() - began, trace)

    def _route(self, scope: Scope) -> str:
        """The template of the route that answered, or that a refused request was for."""
        reached = getattr(scope.get("route"), "path", None)
        if reached is None and self._endpoints is not None:
            reached = self._endpoints.path_of(scope)
        return reached or "-"


class _Headers:
    """The headers of an answer, by their names once and not once for each that is set."""

    __slots__ = ("own", "pairs")

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self.pairs = [(name.lower(), value) for name, value in pairs]
        self.own = dict(self.pairs)

    def set(self, name: bytes, value: str) -> None:
        if name in self.own:
            self.pairs = [pair for pair in self.pairs if pair[0] != name]
        self.pairs.append((name, value.encode("latin-1")))

    def add(self, more: Iterable[tuple[bytes, bytes]]) -> None:
        """Those that the answer does not bring itself."""
        self.pairs += [pair for pair in more if pair[0] not in self.own]


def _report(scope: Scope, method: str, route: str, status: int, took: float, trace: Trace) -> None:
    """Count, trace and log one answered request, in our own words."""
    state = scope["state"]
    request_id = state["request_id"]
    stages = timing.stages_of(scope)
    method = method if method in _METHODS else "other"
    metrics.REQUESTS.labels(route, method, str(status)).inc()
    metrics.REQUEST_SECONDS.labels(route).observe(took)
    trace.finish(route, method, status, stages)
    if not _LOG.isEnabledFor(logging.INFO):
        return
    fields: dict[str, object] = {
        "event": "request",
        "request_id": request_id,
        "method": method,
        "route": route,
        "status": status,
        "took_ms": round(took * 1000, 3),
    }
    optional = {
        "stages_ms": stages or None,
        "key": getattr(state.get("key"), "id", None),
        "trace_id": trace.trace_id,
    }
    refused = {
        "code": state.get("problem"),
        "client": (scope.get("client") or (None,))[0],
        "key": getattr(state.get("key"), "id", None),
        "claimed_key": state.get("claimed_key"),
    }
    told = {name: value for name, value in refused.items() if value is not None}
    fields |= {name: value for name, value in optional.items() if value is not None}
    fields |= told if status >= 400 else {}
    _LOG.info(
        "request=%s %s %s %d %.1f ms%s",
        request_id,
        method,
        route,
        status,
        took * 1000,
        "".join(f" {name}={value}" for name, value in told.items()) if status >= 400 else "",
        extra={"fields": fields},
    )
