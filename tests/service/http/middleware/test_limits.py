"""Limits and the frame around requests, driven as bare ASGI so that streams can misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.middleware.frame import RequestFrame
from service.http.middleware.limits import LOOPBACK_HOSTS, Limits, RequestLimits
from service.http.middleware.problems import ProblemError


async def reader(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the whole body and answers its length."""
    try:
        body = await Request(scope, receive).body()
    except ProblemError as error:
        await error.problem.response("r")(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


class Answer:
    def __init__(self, sent: list[Message], consumed: int) -> None:
        self.status = sent[0]["status"]
        self.headers = {k.decode().lower(): v.decode() for k, v in sent[0]["headers"]}
        self.body = b"".join(message.get("body", b"") for message in sent[1:])
        self.consumed = consumed

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"])


def ask(
    app: ASGIApp,
    *,
    headers: Iterable[tuple[bytes, bytes]] = ((b"host", b"localhost"),),
    chunks: Iterable[bytes] = (b"",),
    path: bytes = b"/",
    query: bytes = b"",
    stall: bool = False,
    pace: float = 0,
    method: str = "POST",
) -> Answer:
    scope: dict[str, Any] = {
        "type": "http", "method": method, "path": path.decode("latin-1"), "raw_path": path,
        "query_string": query, "headers": list(headers), "state": {},
    }  # fmt: skip
    pieces = list(chunks)
    sent: list[Message] = []
    consumed = 0

    async def receive() -> Message:
        nonlocal consumed
        if consumed == len(pieces) and stall:
            await asyncio.sleep(3600)
        if pace:
            await asyncio.sleep(pace)
        piece = pieces[consumed]
        consumed += 1
        more = stall or consumed < len(pieces)
        return {"type": "http.request", "body": piece, "more_body": more}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return Answer(sent, consumed)


HOST = (b"host", b"localhost:8000")
LIMITS = RequestLimits(body_bytes=100, body_seconds=0.05, hosts=LOOPBACK_HOSTS)


def test_a_body_at_the_limit_passes_and_one_byte_more_does_not() -> None:
    app = Limits(reader, LIMITS)
    assert ask(app, chunks=[b"x" * 60, b"x" * 40]).body == b"100"
    refused = ask(app, chunks=[b"x" * 60, b"x" * 41, b"x" * 1000])
    assert (refused.status, refused.code) == (413, "body-too-large")
    assert refused.consumed == 2, "the rest is not read"


def test_a_declared_length_over_the_limit_is_refused_before_reading() -> None:
    refused = ask(Limits(reader, LIMITS), headers=[HOST, (b"content-length", b"101")])
    assert (refused.status, refused.consumed) == (413, 0)
    assert refused.headers["connection"] == "close"


@pytest.mark.parametrize("length", [b"9" * 5000, b"9" * 16])
def test_an_absurd_length_is_refused(length: bytes) -> None:
    assert ask(Limits(reader, LIMITS), headers=[HOST, (b"content-length", length)]).status == 413


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"", "١".encode()])
def test_a_length_that_is_no_number_is_refused(length: bytes) -> None:
    assert ask(Limits(reader, LIMITS), headers=[HOST, (b"content-length", length)]).status == 400


def test_a_body_that_stops_arriving_is_a_timeout() -> None:
    refused = ask(Limits(reader, LIMITS), chunks=[b"x"], stall=True)
    assert (refused.status, refused.code) == (408, "body-timeout")


def test_bytes_that_came_quickly_buy_no_long_silence_nor_a_drip_for_ever() -> None:
    limits = RequestLimits(body_seconds=0.1, body_pace=10, body_most_s=0.5)
    at_once = ask(Limits(reader, limits), chunks=[b"x" * 10_000], stall=True)
    assert (at_once.status, at_once.code) == (408, "body-timeout")
    dripped = ask(Limits(reader, limits), chunks=[b"xx"] * 1000, pace=0.01)
    assert (dripped.status, dripped.consumed < 60) == (408, True)


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"identity, gzip", b"GZIP"])
def test_encoded_bodies_are_refused(coding: bytes) -> None:
    refused = ask(Limits(reader, LIMITS), headers=[HOST, (b"content-encoding", coding)])
    assert (refused.status, refused.code) == (415, "content-encoding-refused")


def test_identity_is_no_encoding() -> None:
    assert (
        ask(Limits(reader, LIMITS), headers=[HOST, (b"content-encoding", b"Identity")]).status
        == 200
    )


def test_proxy_and_debug_methods_are_refused_on_any_path() -> None:
    for method in ("CONNECT", "TRACE"):
        refused = ask(Limits(reader, LIMITS), method=method)
        assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD, POST, PUT, DELETE")


def test_long_uris_and_many_headers() -> None:
    app = Limits(reader, LIMITS)
    assert ask(app, path=b"/" + b"a" * 8200).code == "uri-too-long"
    assert ask(app, query=b"q=" + b"a" * 8200).status == 414
    assert ask(app, headers=[HOST, *[(b"x-a", b"1")] * 100]).code == "headers-too-large"
    assert ask(app, headers=[HOST, (b"x-a", b"1" * 40_000)]).status == 431
    assert ask(app, headers=[HOST, *[(b"x-a", b"1")] * 99]).status == 200


@pytest.mark.parametrize(
    "host",
    [b"evil.example", b"localhost.evil.example", b"a/b?", b"user@localhost", b"",
     b"localhost:99999999", b"127.0.0.1.nip.io", b"[::1", b"\xff"],
)  # fmt: skip
def test_only_loopback_names_reach_a_loopback_service(host: bytes) -> None:
    refused = ask(Limits(reader, LIMITS), headers=[(b"host", host)])
    assert (refused.status, refused.code) == (400, "bad-host")


@pytest.mark.parametrize("host", [b"localhost", b"LOCALHOST:80", b"127.0.0.1:8000", b"[::1]:8000"])
def test_loopback_names_are_answered(host: bytes) -> None:
    assert ask(Limits(reader, LIMITS), headers=[(b"host", host)]).status == 200


def test_two_hosts_are_refused_and_any_well_formed_one_passes_when_public() -> None:
    public = Limits(reader, RequestLimits())
    assert ask(public, headers=[HOST, HOST]).status == 400
    assert ask(public, headers=[(b"host", b"photos.example:80")]).status == 200
    assert ask(public, headers=[(b"host", b"a/b")]).status == 400


def test_a_defect_is_a_500_without_details_and_the_log_has_no_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    query = "-".join(["my", "secret"])  # the log shows source lines, but no values

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError(query)

    answer = ask(RequestFrame(broken))
    assert (answer.status, answer.code) == (500, "internal-error")
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(answer.body)["instance"] == f"urn:request:{answer.headers['x-request-id']}"
    assert query.encode() not in answer.body
    assert b"KeyError" not in answer.body
    assert "KeyError" in caplog.text
    assert query not in caplog.text


def test_security_headers_are_on_every_answer() -> None:
    headers = ask(RequestFrame(Limits(reader, LIMITS)), path=b"/" + b"a" * 9000).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"
    assert len(headers["x-request-id"]) == 32
