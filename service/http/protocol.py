"""HTTP/1.1 on the wire: uvicorn's h11 protocol, and what a server on a network needs beside it.

A connection has a deadline until its first complete head, and again for each later one; a caller
who does not read its answer is cut off; connections have a bound, at which the one that has waited
longest without a request makes room; and whatever is refused gets a problem document and then time
to read it, instead of a reset. What h11 cannot parse never reaches the application, so its refusal
is written here; nor does what a proxy in front of it may have read in another way (`Strict`).
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from dataclasses import dataclass
from time import monotonic
from typing import Any, ClassVar

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.http.lingering import LingeringTransport
from service.http.middleware.problems import MEDIA_TYPE, Problem
from service.operations import metrics

_LOG = logging.getLogger("diptych.service")
# larger than the application's own limits, so that those answer with 414 and 431 and their reason
MAX_HEAD_BYTES = 96 << 10
# a caller who has just connected is not the one to make room
_EVICTABLE_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Seconds, and how many connections.

    Attributes:
        head_s: until a request's head is complete.
        write_s: without progress until a caller counts as not reading.
        linger_s: to read a refusal before the connection is closed for good.
        connections: open at once.
    """

    head_s: float = 10.0
    write_s: float = 10.0
    linger_s: float = 2.0
    connections: int = 4096


def protocol_class(limits: ConnectionLimits) -> type[ProblemH11Protocol]:
    """The protocol with these limits, for one server: its connections know of each other."""

    class Limited(ProblemH11Protocol):
        pass

    Limited.limits = limits
    Limited.waiting = {}
    return Limited


class Strict(h11.Connection):
    """h11 without what RFC 9112 lets a server forgive and a proxy may have read differently.

    Where two readers part ways on where a request ends, the second of them takes a body for the
    next request. Refused: lines that end in a bare LF, in the head and behind a chunked body;
    folded header lines; a length told twice, by `Content-Length` beside `Transfer-Encoding` or by
    two of them; and `Transfer-Encoding` in HTTP/1.0.
    """

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        # of a body with a length nothing is left to be read in two ways; its bytes are not copied
        if self.their_state is h11.SEND_BODY and not self._chunked:
            return super().next_event()
        before, _ = self.trailing_data
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
            self._check_head(event)
        if isinstance(event, h11.Request | h11.EndOfMessage):
            read = before[: len(before) - len(self.trailing_data[0])]
            if read.count(b"\n") != read.count(b"\r\n"):
                raise h11.RemoteProtocolError("a line ends in a bare LF")
            if b"\n " in read or b"\n\t" in read:
                raise h11.RemoteProtocolError("a header line is folded")
            if self._chunked is False and read.lower().count(b"\ncontent-length:") > 1:
                raise h11.RemoteProtocolError("the length is told twice")  # h11 merges equal ones
        return event

    _chunked: bool = False

    def _check_head(self, request: h11.Request) -> None:
        if not self._chunked:
            return
        if any(name == b"content-length" for name, _ in request.headers):
            raise h11.RemoteProtocolError("the length is told twice")
        if request.http_version < b"1.1":
            raise h11.RemoteProtocolError("Transfer-Encoding in HTTP/1.0")


class ProblemH11Protocol(H11Protocol):
    """`H11Protocol` with deadlines, a bound, and `send_400_response` in our shape."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()
    # connections without a request under way, longest first, and since when
    waiting: ClassVar[dict[ProblemH11Protocol, float]] = {}

    _wire: LingeringTransport
    _head_timer: asyncio.TimerHandle | None = None
    _last: bool = False

    def __init__(self, config: uvicorn.Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.conn = Strict(h11.SERVER, config.h11_max_incomplete_event_size or MAX_HEAD_BYTES)

    # -- asyncio's side -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        limits = self.limits
        self._wire = LingeringTransport(transport, self.loop, limits.write_s, limits.linger_s)
        super().connection_made(self._wire)
        metrics.CONNECTIONS.set(len(self.connections))
        if len(self.connections) > limits.connections and not self._evict():
            metrics.REJECTED.labels("connections").inc()
            problem = Problem(
                "too-many-connections", "Ask again soon.", headers={"Retry-After": "2"}
            )
            self._refuse(problem, b"Service Unavailable")
            return
        self._wait(limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._wire.lost()
        super().connection_lost(exc)
        metrics.CONNECTIONS.set(len(self.connections))

    def data_received(self, data: bytes) -> None:
        if self._wire.is_closing():
            return  # of a request already refused
        super().data_received(data)
        if self._answering():
            self._stop_waiting()
            if self._last:
                self.cycle.keep_alive = False
        elif self._head_timer is None and not self._wire.is_closing():
            # uvicorn stopped its idle timer at the first byte
            self._wait(self.limits.head_s)

    def eof_received(self) -> None:
        self._wire.finished()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wire.watch_writing()

    # -- uvicorn's side -----------------------------------------------------------------------

    def on_response_complete(self) -> None:
        self._stop_waiting()
        self.waiting[self] = monotonic()  # as the youngest; uvicorn times idleness itself
        super().on_response_complete()
        if self._answering():  # a pipelined request
            self._stop_waiting()

    def shutdown(self) -> None:
        """The server stops accepting: finish what has begun."""
        self._last = True
        if not self._answering() and (self.cycle is None or self.conn.trailing_data[0]):
            # its first request, or a part of one, is on its way
            self._stop_waiting()
            self._wait(1.0)
            return
        super().shutdown()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's signature
        self._refuse(Problem("bad-request", "This is not HTTP/1.1."), b"Bad Request")

    # -- ours ---------------------------------------------------------------------------------

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self, seconds: float) -> None:
        self.waiting[self] = monotonic()
        self._head_timer = self.loop.call_later(seconds, self._too_late)

    def _stop_waiting(self) -> None:
        self.waiting.pop(self, None)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_late(self) -> None:
        metrics.CONNECTIONS_CLOSED.labels("head-timeout").inc()
        self._wire.drop()

    def _evict(self) -> bool:
        """Close the connection that has waited longest without a request, if it had its time."""
        longest = next(iter(self.waiting), None)
        if longest is None or monotonic() - self.waiting[longest] < _EVICTABLE_AFTER_S:
            return False
        metrics.CONNECTIONS_CLOSED.labels("evicted").inc()
        longest._stop_waiting()
        self.connections.discard(longest)
        longest._wire.drop()
        return True

    def _refuse(self, problem: Problem, reason: bytes) -> None:
        request_id = uuid.uuid4().hex
        response = problem.response(request_id)
        client = (self.client or (None,))[0]
        fields = {
            "event": "refused",
            "request_id": request_id,
            "status": problem.status,
            "code": problem.code,
            "client": client,
        }
        _LOG.info(
            "request=%s refused %d code=%s client=%s",
            request_id,
            problem.status,
            problem.code,
            client,
            extra={"fields": fields},
        )
        more = [(name.encode(), value.encode()) for name, value in problem.headers.items()]
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(response.body)).encode()),
            (b"x-request-id", request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-store"),
            *more,
            (b"connection", b"close"),
        ]
        self._stop_waiting()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            # otherwise an answer is already on its way, and closing is all that is left
            start = h11.Response(status_code=problem.status, headers=headers, reason=reason)
            for event in (start, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self._wire.linger()
