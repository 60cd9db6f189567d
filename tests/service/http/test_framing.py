"""Requests that two readers may end in two places are refused, and their connection is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from services import build_colours, colour_engine
from stalling import answer, connected, request, serving

from service.http.app import create_app
from service.http.server import ServerSettings

HEAD = (
    b"POST /v1/search/text-to-image HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\n"
)
BODY = b'{"text": "red", "k": 1}'
CHUNKED = b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
TE = b"Transfer-Encoding: chunked\r\n"
CL = b"Content-Length: %d\r\n" % len(BODY)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    index = build_colours(tmp_path_factory.mktemp("framing") / "colours.index")
    settings = ServerSettings(unready_s=0, drain_s=2)
    with colour_engine(index) as engine, serving(create_app(engine), settings) as (_, found):
        yield found


def ask(port: int, sent: bytes) -> tuple[int, bool]:
    """The status, and whether the connection was closed behind it."""

    async def run() -> tuple[int, bool]:
        async with connected(port) as (reader, writer):
            writer.write(sent)
            status, headers, _ = await asyncio.wait_for(answer(reader), 10)
            if headers.get("connection") != "close":
                return status, False
            return status, await asyncio.wait_for(reader.read(), 10) == b""

    return asyncio.run(run())


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + CL + TE + b"\r\n" + CHUNKED + b"\r\n",
        HEAD + TE + CL + b"\r\n" + CHUNKED + b"\r\n",
        HEAD + CL + CL + b"\r\n" + BODY,
        HEAD + CL + b"X: y\n\r\n" + BODY,
        HEAD.replace(b"\r\n", b"\n") + CL.replace(b"\r\n", b"\n") + b"\n" + BODY,
        HEAD + CL + b"X: y\r\n z\r\n\r\n" + BODY,
        HEAD + CL + b"X: y\r\n\tz\r\n\r\n" + BODY,
        HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + TE + b"\r\n" + CHUNKED + b"\r\n",
        HEAD + TE + b"\r\n" + CHUNKED + b"\n",
        HEAD + TE + b"\r\n" + CHUNKED + b"X: y\n\r\n",
    ],
)
def test_what_a_proxy_may_read_otherwise_is_refused_and_closed(port: int, sent: bytes) -> None:
    assert ask(port, sent) == (400, True)


@pytest.mark.parametrize(
    "sent", [request(), HEAD + CL + b"\r\n" + BODY, HEAD + TE + b"\r\n" + CHUNKED + b"\r\n"]
)
def test_what_can_be_read_in_one_way_is_answered(port: int, sent: bytes) -> None:
    assert ask(port, sent) == (200, False)
    assert ask(port, sent + sent) == (200, False)  # one behind the other
