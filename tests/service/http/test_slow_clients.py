"""Callers who stall, on real sockets: each loses its own connection and nobody else's answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from services import build_colours, colour_engine
from stalling import answer, connected, request, serving, until

from models.environment import raise_file_limit
from service.http import protocol
from service.http.app import ServiceSettings, create_app
from service.http.middleware.lanes import AdmissionLimits
from service.http.middleware.limits import RequestLimits
from service.http.protocol import ConnectionLimits
from service.http.server import Server, ServerSettings
from service.operations import metrics

LIMITS = ConnectionLimits(head_s=0.4, write_s=0.4, linger_s=0.3, connections=300)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, int]]:
    index = build_colours(tmp_path_factory.mktemp("slow") / "colours.index")
    settings = ServiceSettings(limits=RequestLimits(body_seconds=0.4))
    server = ServerSettings(connections=LIMITS, unready_s=0, drain_s=2)
    with colour_engine(index) as engine, serving(create_app(engine, settings), server) as running:
        yield running


def closed(reason: str) -> float:
    value = metrics.REGISTRY.get_sample_value(
        "diptych_connections_closed_total", {"reason": reason}
    )
    return value or 0.0


def test_a_head_that_does_not_come_is_closed_and_one_in_time_is_not(
    served: tuple[Server, int],
) -> None:
    before = closed("head-timeout")

    async def run() -> None:
        port = served[1]
        async with connected(port) as (silent, _), connected(port) as (half, dripping):
            dripping.write(b"GET /healthz HTTP/1.1\r\n")
            for _ in range(3):  # bytes that trickle in do not buy more time
                await asyncio.sleep(0.2)
                dripping.write(b"X: y\r\n")
            assert await asyncio.wait_for(silent.read(), 2) == b""
            with contextlib.suppress(ConnectionError):  # bytes of it lay unread
                assert await asyncio.wait_for(half.read(), 2) == b""
        async with connected(port) as (reader, writer):
            head, tail = request()[:20], request()[20:]
            writer.write(head)
            await asyncio.sleep(0.1)
            writer.write(tail)
            assert (await answer(reader))[0] == 200
            # the second request on the connection has a deadline of its own
            writer.write(head)
            assert await asyncio.wait_for(reader.read(), 2) == b""

    asyncio.run(run())
    assert closed("head-timeout") - before == 3


def test_a_body_that_drips_is_408_and_the_answer_can_be_read(served: tuple[Server, int]) -> None:
    async def run() -> None:
        async with connected(served[1]) as (reader, writer):
            writer.write(request()[:-5])
            status, headers, document = await asyncio.wait_for(answer(reader), 5)
            assert (status, document["code"]) == (408, "body-timeout")
            assert headers["connection"] == "close"
            writer.write(b"more")  # arrives while the refusal lingers: no reset
            assert await asyncio.wait_for(reader.read(), 5) == b""

    asyncio.run(run())


def test_honest_callers_notice_nothing_of_slow_ones(served: tuple[Server, int]) -> None:
    async def run() -> list[int]:
        port = served[1]
        stalled = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
        for number, (_, writer) in enumerate(stalled):
            writer.write(request()[: 30 if number % 2 else -5])
        statuses = []
        async with connected(port) as (reader, writer):
            for _ in range(30):
                writer.write(request())
                statuses.append((await answer(reader))[0])
        for _, writer in stalled:
            writer.close()
        return statuses

    assert set(asyncio.run(run())) == {200}


BIG = (
    b"POST /v1/search/image-to-text HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    b"Content-Length: %d\r\n\r\n"
)


async def _stalled(port: int, source: str, size: int) -> asyncio.StreamWriter:
    """An upload that lacks its last byte."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    writer.write(BIG % size + b"x" * (size - 1))
    await writer.drain()
    return writer


def test_uploads_that_stall_shut_nobody_out_not_even_their_own_address(tmp_path: Path) -> None:
    size = 512 << 10
    settings = ServiceSettings(
        limits=RequestLimits(body_seconds=3.5),
        admission=AdmissionLimits(body_bytes=8 * size, caller_body_bytes=4 * size),
    )
    picture = b"x" * (100 << 10)

    async def run(port: int) -> None:
        held = [await _stalled(port, f"127.0.0.{2 + n % 3}", size) for n in range(11)]
        await asyncio.sleep(0.3)
        async with connected(port) as (reader, writer):
            writer.write(request())  # a text has room of its own, at once
            assert (await answer(reader))[0] == 200
            writer.write(BIG % len(picture) + picture)
            status, headers, document = await answer(reader)
            assert (status, document["code"]) == (429, "overloaded")
            assert 1 <= int(headers["retry-after"]) <= 4
        await asyncio.sleep(2)  # now they stall, and make room: for others, and for their own
        for source in ("127.0.0.1", "127.0.0.2"):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, local_addr=(source, 0)
            )
            writer.write(BIG % len(picture) + picture)
            assert (await answer(reader))[0] == 422, "it was read, and is no picture"
            writer.close()
        await until(lambda: held_bytes() == 0, 5)  # the rest is given up by itself
        for writer in held:
            writer.close()

    with (
        colour_engine(build_colours(tmp_path / "colours.index")) as engine,
        serving(create_app(engine, settings), ServerSettings(unready_s=0, drain_s=2)) as (_, port),
    ):
        asyncio.run(run(port))


def held_bytes() -> float | None:
    return metrics.REGISTRY.get_sample_value("diptych_body_bytes")


def test_a_caller_who_never_reads_is_cut_off(served: tuple[Server, int]) -> None:
    server, port = served
    before = closed("write-timeout")

    async def run() -> None:
        await until(lambda: not server.server_state.connections)
        async with connected(port) as (_, writer):
            # pipelined answers pile up until the socket's buffers are full
            page = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
            with contextlib.suppress(ConnectionError, TimeoutError):
                for _ in range(2000):
                    writer.write(page)
                    await asyncio.wait_for(writer.drain(), 5)
                    await asyncio.sleep(0.001)
            await until(lambda: not server.server_state.connections)

    asyncio.run(run())
    assert closed("write-timeout") - before == 1


def test_at_the_bound_new_connections_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a busy machine may take seconds to connect them: none is to make room meanwhile
    monkeypatch.setattr(protocol, "_EVICTABLE_AFTER_S", 60.0)
    limits = ConnectionLimits(head_s=60.0, connections=20)
    server = ServerSettings(connections=limits, unready_s=0, drain_s=2)

    async def run(port: int) -> None:
        crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(21)]
        told = crowd[-1][0]
        status, headers, document = await asyncio.wait_for(answer(told), 20)
        assert (status, document["code"]) == (503, "too-many-connections")
        assert headers["retry-after"].isdigit()
        assert headers["connection"] == "close"
        for _, writer in crowd:
            writer.close()

    with (
        colour_engine(build_colours(tmp_path / "colours.index")) as engine,
        serving(create_app(engine), server) as (_, port),
    ):
        asyncio.run(run(port))
    assert raise_file_limit() >= 300


def test_a_crowd_is_accepted_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between them the loop looks at those who are connected."""
    turn = 0
    accepted: list[int] = []
    loops: list[asyncio.AbstractEventLoop] = []
    made = protocol.ProblemH11Protocol.connection_made

    def tick() -> None:
        nonlocal turn
        turn += 1
        if len(accepted) < 201:
            loops[0].call_soon(tick)

    def noted(self: protocol.ProblemH11Protocol, transport: asyncio.Transport) -> None:
        if not loops:
            loops.append(asyncio.get_running_loop())
            tick()
        accepted.append(turn)
        made(self, transport)

    monkeypatch.setattr(protocol.ProblemH11Protocol, "connection_made", noted)
    settings = ServerSettings(unready_s=0, drain_s=2)
    with (
        colour_engine(build_colours(tmp_path / "colours.index")) as engine,
        serving(create_app(engine), settings) as (_, port),
        contextlib.ExitStack() as crowd,
    ):
        crowd.enter_context(socket.create_connection(("127.0.0.1", port)))
        asyncio.run(until(lambda: bool(loops)))
        held, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            assert go_on.wait(20)

        loops[0].call_soon_threadsafe(hold)
        assert held.wait(20)
        for _ in range(200):
            crowd.enter_context(socket.create_connection(("127.0.0.1", port)))
        go_on.set()
        asyncio.run(until(lambda: len(accepted) == 201, 30))
    assert max(Counter(accepted).values()) <= 16


def test_idle_connections_make_room_after_a_second(tmp_path: Path) -> None:
    index = build_colours(tmp_path / "colours.index")
    settings = ServerSettings(connections=ConnectionLimits(connections=2), unready_s=0, drain_s=2)
    before = closed("evicted")

    async def run(port: int) -> None:
        async with connected(port) as (idle, writer), connected(port) as (_, _):
            writer.write(request())
            assert (await answer(idle))[0] == 200
            await asyncio.sleep(1.1)
            async with connected(port) as (reader, writer):
                writer.write(request())
                assert (await answer(reader))[0] == 200

    with colour_engine(index) as engine, serving(create_app(engine), settings) as (_, port):
        asyncio.run(run(port))
    assert closed("evicted") - before == 1
