"""How many times an answer is sent: each sending gives Python's lock to the encoder's thread."""

from __future__ import annotations

import asyncio
from typing import cast

from service.http.lingering import LingeringTransport

HEAD = b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\n"


class Wire:
    """What reaches asyncio's transport, in order."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def write_eof(self) -> None:
        self.sent.append(b"EOF")

    def abort(self) -> None:
        self.sent.append(b"ABORT")

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return False

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


def transport() -> tuple[Wire, LingeringTransport]:
    wire = Wire()
    loop = asyncio.get_running_loop()
    return wire, LingeringTransport(cast(asyncio.Transport, wire), loop, 1.0, 0.01)


def test_head_and_body_leave_in_one_sending() -> None:
    async def run() -> list[bytes]:
        wire, ours = transport()
        ours.write(HEAD)
        ours.write(b"{}")
        await asyncio.sleep(0)
        ours.write(b"more")
        return wire.sent

    assert asyncio.run(run()) == [HEAD + b"{}", b"more"]


def test_a_head_does_not_wait_for_a_body_that_takes_its_time() -> None:
    async def run() -> list[list[bytes]]:
        wire, ours = transport()
        ours.write(HEAD)
        before = list(wire.sent)
        await asyncio.sleep(0)
        return [before, wire.sent]

    assert asyncio.run(run()) == [[], [HEAD]]


def test_go_ahead_for_a_body_is_sent_at_once() -> None:
    async def run() -> list[bytes]:
        wire, ours = transport()
        ours.write(b"HTTP/1.1 100 \r\n\r\n")
        return list(wire.sent)

    assert asyncio.run(run()) == [b"HTTP/1.1 100 \r\n\r\n"]


def test_closing_sends_the_head_first_and_dropping_sends_nothing() -> None:
    async def run() -> tuple[list[bytes], list[bytes]]:
        closed, ours = transport()
        ours.write(HEAD)
        ours.close()
        dropped, others = transport()
        others.write(HEAD)
        others.drop()
        await asyncio.sleep(0)
        return closed.sent, dropped.sent

    assert asyncio.run(run()) == ([HEAD, b"EOF"], [b"ABORT"])
