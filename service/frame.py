"""What surrounds every request: an id, security headers, one log line, and the last catch.

Pure ASGI, the outermost layer of the application, so that refusals of the layers inside and
defects of ours leave with the same headers. Logs the route's template, never the path or the query:
both may hold what somebody searched for.
"""

from __future__ import annotations

import logging
import traceback
import uuid
from time import perf_counter

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import problems

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
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": API_POLICY,
    "Cache-Control": "no-store",
}


class RequestFrame:
    """ASGI middleware; a response keeps a header it set itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        began = perf_counter()
        status = 0

        async def framed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, framed)
        except Exception as error:
            # the frames without the message: an exception's text may quote what was asked
            frames = "".join(traceback.format_tb(error.__traceback__))
            _LOG.error("request=%s unhandled %s\n%s", request_id, type(error).__name__, frames)
            if not status:
                await problems.internal().response(request_id)(scope, receive, framed)
        route = getattr(scope.get("route"), "path", "-")
        took_ms = (perf_counter() - began) * 1000
        _LOG.info(
            "request=%s %s %s %d %.1f ms", request_id, scope["method"], route, status, took_ms
        )
