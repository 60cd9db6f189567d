"""HTTP/1.1 on the wire: uvicorn's h11 protocol, answering garbage with a problem document too.

A request that h11 cannot parse never reaches the application, so its refusal is written here.
"""

from __future__ import annotations

import uuid

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.problems import MEDIA_TYPE, Problem

# larger than the application's own limits, so that those answer with 414 and 431 and their reason
MAX_HEAD_BYTES = 96 << 10


class ProblemH11Protocol(H11Protocol):
    """`H11Protocol` with `send_400_response` in our shape."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's signature
        request_id = uuid.uuid4().hex
        response = Problem("bad-request", "This is not HTTP/1.1.").response(request_id)
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(response.body)).encode()),
            (b"x-request-id", request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            # otherwise an answer is already on its way, and closing is all that is left
            start = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (start, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
