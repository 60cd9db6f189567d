"""Calls from web pages of other origins, closed unless the operator lists them: a layer of `app`.

Wraps Starlette's middleware, which does the headers. Origins that are not listed never reach it:
it would answer their preflights in plain text, where every refusal of ours is a problem document.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from models.errors import InputError

_ORIGIN = re.compile(
    r"https?://[a-z0-9.-]{1,253}(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?"
)
_METHODS = ("GET", "POST", "PUT", "DELETE")
_SHOWN = (
    "X-Request-Id",
    "Index-Version",
    "Idempotency-Replayed",
    "Server-Timing",
    "Retry-After",
    "ETag",
)
_TAKEN = (
    "Authorization",
    "api-key",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "X-Request-Timeout",
)


def check_origin(origin: str) -> str:
    """An origin as browsers send it. Raises InputError: a path, a wildcard, capitals."""
    if not _ORIGIN.fullmatch(origin):
        raise InputError("an origin is written as https://photos.example, without a path or *")
    return origin


class CrossOrigin:
    """ASGI middleware. No cookies are involved anywhere, so credentials stay forbidden."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._origins = frozenset(check_origin(origin) for origin in origins)
        self._open = CORSMiddleware(
            app,
            allow_origins=sorted(self._origins),
            allow_methods=_METHODS,
            allow_headers=_TAKEN,
            expose_headers=_SHOWN,
            max_age=600,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origins = [value for name, value in scope.get("headers", ()) if name == b"origin"]
        listed = len(origins) == 1 and origins[0].decode("latin-1") in self._origins
        await (self._open if listed else self._app)(scope, receive, send)
