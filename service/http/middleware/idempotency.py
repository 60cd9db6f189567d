"""`Idempotency-Key`: a write that is sent again is answered again, and done once. A layer of `app`.

As draft-ietf-httpapi-idempotency-key-header. The first answer to a key is kept for a day and
repeated to the same request, byte for byte, with `Idempotency-Replayed: true`; another request
under the same key is refused (422), and so is a second one while the first runs (409). A key
belongs to the API key that used it. Answers that tell to try again (408, 409, 429, 5xx) are not
kept, for nothing was done.

Kept in memory, bounded by number and bytes, the oldest going first; a restart forgets them. Then
a repetition is done again, which for these writes changes nothing: an item put twice is
`unchanged`, one deleted twice is as gone.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.middleware.endpoints import EndpointTable
from service.http.middleware.problems import Problem

HEADER: Final = b"idempotency-key"
# RFC 9110's visible characters, with or without the quotes of a structured field
_FORM: Final = re.compile(rb"[\x21-\x7e]{1,255}")
_AGAIN: Final = frozenset({408, 409, 429})
# of one exchange, not of its answer
_OWN: Final = frozenset({b"x-request-id", b"traceparent", b"connection", b"date"})


@dataclass(slots=True)
class _Kept:
    """What is known of a key: the request, and its answer once there is one."""

    request: bytes
    until: float
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    @property
    def size(self) -> int:
        return 512 + len(self.body) + sum(len(name) + len(value) for name, value in self.headers)


class Answers:
    """The answers kept, by key. Used from one event loop."""

    def __init__(
        self,
        *,
        entries: int = 10_000,
        size: int = 32 << 20,
        seconds: float = 24 * 3600.0,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._entries = entries
        self._size = size
        self._seconds = seconds
        self._now = now
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._running: dict[bytes, bytes] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def begin(self, key: bytes, request: bytes) -> _Kept | Problem | None:
        """The answer to repeat, a refusal, or None: do it, then `end`."""
        self._forget()
        kept = self._kept.get(key)
        known = kept.request if kept is not None else self._running.get(key)
        if known is not None and known != request:
            return Problem(
                "idempotency-key-reused", "This Idempotency-Key was used for another request."
            )
        if kept is not None:
            return kept
        if known is not None:
            return Problem(
                "idempotency-key-in-use",
                "The first request with this Idempotency-Key is not answered yet.",
                headers={"Retry-After": "1"},
            )
        self._running[key] = request
        return None

    def end(self, key: bytes, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """The request that began is over; `status` 0 where it got no answer."""
        request = self._running.pop(key)
        if status == 0 or status >= 500 or status in _AGAIN:
            return
        own = [(name, value) for name, value in headers if name.lower() not in _OWN]
        kept = _Kept(request, self._now() + self._seconds, status, own, body)
        self._kept[key] = kept
        self.bytes += kept.size
        self._forget()

    def _forget(self) -> None:
        now = self._now()
        while self._kept:
            oldest = next(iter(self._kept.values()))
            full = len(self._kept) > self._entries or self.bytes > self._size
            if not full and oldest.until > now:
                return
            self.bytes -= self._kept.popitem(last=False)[1].size


class Idempotency:
    """ASGI middleware; inside of what bounds bodies and knows whose the key is."""

    def __init__(self, app: ASGIApp, answers: Answers, endpoints: EndpointTable) -> None:
        self._app = app
        self._answers = answers
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = [value for name, value in scope.get("headers", ()) if name == HEADER]
        if not given or scope["type"] != "http" or not self._endpoints.of(scope).idempotency_key:
            await self._app(scope, receive, send)
            return
        if len(given) > 1 or not _FORM.fullmatch(given[0]):
            problem = Problem(
                "invalid-request", "Idempotency-Key is 1 to 255 visible ASCII characters."
            )
            await problem.send(scope, receive, send)
            return
        body, gone = await _body(receive)
        if gone:
            return  # nobody is there to answer, and the request is not whole
        key, request = _names(scope, given[0], body)
        found = self._answers.begin(key, request)
        if isinstance(found, Problem):
            await found.send(scope, receive, send)
        elif found is not None:
            again = [*found.headers, (b"idempotency-replayed", b"true")]
            await send({"type": "http.response.start", "status": found.status, "headers": again})
            await send({"type": "http.response.body", "body": found.body})
        else:
            await self._first(key, body, scope, receive, send)

    async def _first(
        self, key: bytes, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        status, headers, parts, whole, read = 0, [], [], False, False

        async def replayed() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def noted(message: Message) -> None:
            nonlocal status, headers, whole
            if message["type"] == "http.response.start":
                status, headers = message["status"], list(message["headers"])
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))
                whole = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, replayed, noted)
        finally:
            # also when sending failed: what was done is done, and the caller will ask again
            self._answers.end(key, status if whole else 0, headers, b"".join(parts))


async def _body(receive: Receive) -> tuple[bytes, bool]:
    """A request's whole body, and whether the caller went away before its end."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"", True
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts), False


def _names(scope: Scope, given: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Digests: of whose key it is, and of all that makes the request what it is."""
    owner = getattr(scope.get("state", {}).get("key"), "id", "")
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    what = (
        scope["method"].encode(),
        scope.get("raw_path") or scope["path"].encode(),
        scope.get("query_string") or b"",
        kind,
        hashlib.sha256(body).digest(),
    )
    return _digest(owner.encode(), given), _digest(*what)


def _digest(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
