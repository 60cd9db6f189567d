"""What a request may cost before anyone parses it: a layer of `app`. Pure ASGI; knows no route.

URI and header sizes, the Host, encoded bodies, and the size and pace of the body: refused as early
as it can be known, from `Content-Length` before the first byte, or while the body streams in.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.middleware.problems import Problem, ProblemError, refuse

_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.%a-z]{2,64}\])(?::[0-9]{1,5})?")
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


def host_name(host: str) -> str | None:
    """The name in a Host header, in lower case and without its port; None where it is none."""
    match = _HOST.fullmatch(host)
    return match["name"].lower() if match else None


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bytes and seconds.

    Attributes:
        body_bytes: room for a 20 MiB picture in base64.
        body_seconds: without a byte until a body counts as given up; each `body_pace` bytes earn
            one of them back, so that a caller who drips has no more than that either.
        body_most_s: for all of a body, however steadily it comes.
        hosts: Host names answered; None for any. A service on the loopback interface answers only
            to loopback names, or any web page could reach it by DNS rebinding.
    """

    body_bytes: int = 32 << 20
    body_seconds: float = 15.0
    body_pace: int = 10_000
    body_most_s: float = 300.0
    uri_bytes: int = 8 << 10
    header_bytes: int = 32 << 10
    header_count: int = 100
    hosts: frozenset[str] | None = None


class Limits:
    """ASGI middleware enforcing `RequestLimits`."""

    def __init__(self, app: ASGIApp, limits: RequestLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        problem = self._refusal(scope)
        if problem is not None:
            await problem.send(scope, receive, send)
            return
        await self._app(scope, self._bounded(receive), send)

    def _refusal(self, scope: Scope) -> Problem | None:
        limits = self._limits
        if scope["method"] in ("CONNECT", "TRACE"):  # on any path: a proxy's and a debugger's
            detail = "This service takes no such method."
            return Problem(
                "method-not-allowed", detail, headers={"Allow": "GET, HEAD, POST, PUT, DELETE"}
            )
        uri = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        if uri > limits.uri_bytes:
            return Problem("uri-too-long", f"The limit is {limits.uri_bytes} bytes.")
        headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        size = sum(len(name) + len(value) for name, value in headers)
        if size > limits.header_bytes or len(headers) > limits.header_count:
            return Problem(
                "headers-too-large",
                f"At most {limits.header_count} headers, {limits.header_bytes} bytes in all.",
            )
        if not self._host_is_ours(scope):
            return Problem(
                "bad-host",
                "Use the address the service was started with.",
                hint="Behind a proxy that keeps the Host, start it with --allowed-host NAME.",
            )
        for name, value in headers:
            if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                return Problem(
                    "content-encoding-refused", "Send the body as it is, not compressed."
                )
            if name == b"content-length" and not value.isdigit():
                return Problem("bad-request", "Content-Length is not a number.")
            # the length of the digits first: int() of thousands of them is refused by Python
            if name == b"content-length" and (len(value) > 15 or int(value) > limits.body_bytes):
                return self._too_large()
        return None

    def _host_is_ours(self, scope: Scope) -> bool:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if not hosts:
            return True  # HTTP/1.0; h11 refuses HTTP/1.1 without one
        name = host_name(hosts[0].decode("latin-1"))
        if len(hosts) > 1 or name is None:
            return False
        if self._limits.hosts is None or name in self._limits.hosts:
            return True
        # the address that was connected to, as orchestrators' probes say it: no name, no rebinding
        try:
            return ip_address(name.strip("[]")) == ip_address((scope.get("server") or ("",))[0])
        except ValueError:
            return False

    def _too_large(self) -> Problem:
        return Problem(
            "body-too-large",
            f"The limit is {self._limits.body_bytes} bytes.",
            headers={"Connection": "close"},
        )

    def _bounded(self, receive: Receive) -> Callable[[], Coroutine[Any, Any, Message]]:
        limits = self._limits
        received = 0
        finished = False
        given_up_at = ends_at = 0.0

        async def bounded() -> Message:
            nonlocal received, finished, given_up_at, ends_at
            if finished:
                return await receive()  # only a disconnect can follow; it may take for ever
            now = asyncio.get_running_loop().time()
            if not ends_at:
                given_up_at, ends_at = now + limits.body_seconds, now + limits.body_most_s
            left = min(given_up_at, ends_at) - now
            try:
                # not `wait_for`, which makes a task of every piece
                async with asyncio.timeout(max(left, 0.001)):
                    message = await receive()
            except TimeoutError:
                raise refuse(
                    "body-timeout", "Send the body faster.", headers={"Connection": "close"}
                ) from None
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                received += size
                # never further ahead than at the start: what came quickly buys no long silence
                latest = asyncio.get_running_loop().time() + limits.body_seconds
                given_up_at = min(given_up_at + size / limits.body_pace, latest)
                if received > limits.body_bytes:
                    raise ProblemError(self._too_large())
                finished = not message.get("more_body", False)
            else:
                finished = True
            return message

        return bounded
