"""The path a proxy serves this under, taken off requests and put before links: a layer of `app`.

The operator names it (`serve --root-path /photos`), or a proxy that is believed does, with
`X-Forwarded-Prefix`. A proxy may pass the path on as it came or without the prefix; inside of this
layer no path has one, so that routes, keys and figures do not depend on where the service stands.
Pages need none of this: their links are relative.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_PREFIX: Final = re.compile(r"(?:/(?!\.\.?(?:/|$))[A-Za-z0-9._~-]+)+")
_MAX_CHARS: Final = 256
_STATE: Final = "forwarded_prefix"
_current: ContextVar[str] = ContextVar("prefix", default="")


def check_prefix(text: str) -> str:
    """A prefix as it is used, without a slash at its end; "" for none.

    Raises:
        ValueError: not a plain path.
    """
    text = text.strip().rstrip("/")
    if text and (len(text) > _MAX_CHARS or _PREFIX.fullmatch(text) is None):
        raise ValueError("not a path such as /photos")
    return text


def outside(path: str) -> str:
    """A path of ours as the caller of the current request reaches it."""
    return _current.get() + path


class BelievedProxies(ProxyHeadersMiddleware):
    """What uvicorn makes of `X-Forwarded-For` and `-Proto`, and the prefix from the same proxies.

    The outermost of all, because it decides by the address of the connection, which it replaces.
    """

    def __init__(self, app: ASGIApp, proxies: str) -> None:
        super().__init__(app, proxies)  # type: ignore[arg-type]  # the same, by Starlette's names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]  # the same, by Starlette's names
        client = scope.get("client")
        if scope["type"] == "http" and client and client[0] in self.trusted_hosts:
            told = [value for name, value in scope["headers"] if name == b"x-forwarded-prefix"]
            if len(told) == 1:
                scope.setdefault("state", {})[_STATE] = told[0].decode("latin-1")
        await super().__call__(scope, receive, send)  # type: ignore[arg-type]


class Prefix:
    """ASGI middleware.

    Args:
        root: the prefix where no proxy says another.
        paths: the routes' own; a prefix that begins like one of them is never taken off, because a
            proxy that has done so already could not be told from one that has not.
    """

    def __init__(self, app: ASGIApp, root: str, paths: Iterable[str]) -> None:
        self._app = app
        self._root = check_prefix(root)
        self._own = {path.split("/")[1] for path in paths}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        prefix = self._of(scope)
        token = _current.set(prefix)
        try:
            if not prefix or prefix.split("/")[1] in self._own:
                await self._app(scope, receive, send)
            elif scope["path"] == prefix and scope["method"] == "GET":
                # relative links need the slash
                headers = [(b"location", f"{prefix}/".encode()), (b"content-length", b"0")]
                await send({"type": "http.response.start", "status": 308, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
            else:
                _take_off(scope, prefix)
                await self._app(scope, receive, send)
        finally:
            _current.reset(token)

    def _of(self, scope: Scope) -> str:
        try:
            return check_prefix(scope.get("state", {}).get(_STATE, "")) or self._root
        except ValueError:
            return self._root


def _take_off(scope: Scope, prefix: str) -> None:
    if scope["path"].startswith(prefix + "/"):
        scope["path"] = scope["path"][len(prefix) :]
        raw: bytes = scope.get("raw_path") or b""
        if raw.startswith(prefix.encode() + b"/"):
            scope["raw_path"] = raw[len(prefix) :]
