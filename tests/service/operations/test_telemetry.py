"""What an operator sees: logs as JSON, the metrics port, traces."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.http.metrics_port import MetricsPort
from service.http.middleware.frame import RequestFrame
from service.operations import metrics, timing
from service.operations.logs import JsonFormatter
from service.operations.tracing import Tracer, traceparent_of

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Route:
    path = "/v1/search"


class Key:
    id = "abcdefghij"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    scope["route"] = Route()
    scope["state"]["key"] = Key()
    timing.report(scope, {"embed": 2.5, "search": 0.25, "total": 3.0})
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("can" + "ary")  # in two: frames show the source's line, not the message


def call(app: Any, *headers: tuple[bytes, bytes], method: str = "POST") -> list[Message]:
    scope = {"type": "http", "method": method, "path": "/v1/search", "query_string": b"canary",
             "headers": list(headers), "state": {}}  # fmt: skip
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"canary"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


def header(sent: list[Message], name: bytes) -> str | None:
    return {k.lower(): v.decode() for k, v in sent[0]["headers"]}.get(name)


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    formatter = JsonFormatter()
    return [json.loads(formatter.format(record)) for record in caplog.records]


def test_a_request_is_one_line_of_json_without_what_was_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="diptych.service"):
        sent = call(RequestFrame(application), (b"traceparent", PARENT.encode()))
    (line,) = lines(caplog)
    assert line["event"] == "request"
    assert line["request_id"] == header(sent, b"x-request-id")
    assert (line["route"], line["method"], line["status"]) == ("/v1/search", "POST", 200)
    assert line["stages_ms"] == {"embed": 2.5, "search": 0.25}
    assert line["key"] == "abcdefghij"
    assert line["trace_id"] == PARENT[3:35]
    assert line["took_ms"] >= 0
    assert line["ts"].endswith("+00:00")
    assert "canary" not in caplog.text


def test_a_defect_is_logged_without_its_message(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="diptych.service"):
        sent = call(RequestFrame(broken))
    defect, line = lines(caplog)
    assert (defect["event"], defect["exception"]) == ("unhandled", "ValueError")
    assert Path(__file__).name in defect["frames"]
    assert line["status"] == sent[0]["status"] == 500
    assert "canary" not in json.dumps([defect, line])


def test_an_exception_of_another_logger_is_named_without_its_text() -> None:
    try:
        raise ValueError("canary")
    except ValueError:
        import sys

        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed", None, sys.exc_info())
    line = json.loads(JsonFormatter().format(record))
    assert (line["event"], line["exception"]) == ("failed", "ValueError")
    assert "canary" not in json.dumps(line)


def test_requests_are_counted_by_template_and_methods_by_ours() -> None:
    def count(method: str) -> float:
        labels = {"route": "/v1/search", "method": method, "status": "200"}
        return metrics.REGISTRY.get_sample_value("diptych_requests_total", labels) or 0.0

    before = count("POST"), count("other")
    call(RequestFrame(application))
    call(RequestFrame(application), method="BREW")
    assert (count("POST"), count("other")) == (before[0] + 1, before[1] + 1)


def test_closing_ends_each_connection_with_its_answer() -> None:
    assert header(call(RequestFrame(application)), b"connection") is None
    assert header(call(RequestFrame(application, lambda: True)), b"connection") == "close"


# -- the metrics port -----------------------------------------------------------------------------


def get(port: int, path: str, host: str = "localhost:9000") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers={"Host": host})
    with connection.getresponse() as response:
        answer = response.status, response.read().decode()
    connection.close()
    return answer


def test_the_metrics_port_has_metrics_and_nothing_else() -> None:
    with MetricsPort(0) as served:
        status, text = get(served.port, "/metrics")
        assert status == 200
        for name in (
            "diptych_requests_total", "diptych_request_seconds_bucket", "diptych_stage_seconds",
            "diptych_rejected", "diptych_batch_size", "diptych_queue_depth", "diptych_index_swaps",
            "diptych_decode_worker_restarts", "process_resident_memory_bytes", "process_open_fds",
        ):  # fmt: skip
            assert name in text
        for path in ("/", "/healthz", "/v1/index", "/metrics/x", "/docs"):
            assert get(served.port, path)[0] == 404
        assert get(served.port, "/metrics", host="127.0.0.1")[0] == 200
        for host in ("evil.example", "evil.example:9000", "localhost.evil.example", ""):
            assert get(served.port, "/metrics", host=host)[0] == 404
        with pytest.raises(OSError, match="in use"):
            MetricsPort(served.port)


# -- traces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ([PARENT.encode()], True),
        ([PARENT.encode(), PARENT.encode()], False),
        ([PARENT.upper().encode()], False),
        ([b"ff" + PARENT[2:].encode()], False),
        ([b"00-" + b"0" * 32 + PARENT[35:].encode()], False),
        ([PARENT.encode() + b"-more"], False),
        ([], False),
    ],
)
def test_a_traceparent_is_taken_when_well_formed(given: list[bytes], taken: bool) -> None:
    headers = [(b"traceparent", value) for value in given]
    assert (traceparent_of({"headers": headers}) is not None) is taken
    # without a provider the caller's own goes back to it, and nothing is made up
    sent = call(RequestFrame(application), *headers)
    assert header(sent, b"traceparent") == (PARENT if taken else None)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    trace = pytest.importorskip("opentelemetry.trace")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()


def test_a_span_continues_the_callers_trace_and_names_the_template(spans: Any) -> None:
    sent = call(RequestFrame(application), (b"traceparent", PARENT.encode()))
    (span,) = spans.get_finished_spans()
    assert span.name == "POST /v1/search"
    assert f"{span.context.trace_id:032x}" == PARENT[3:35]
    assert f"{span.parent.span_id:016x}" == PARENT[36:52]
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["diptych.embed_ms"] == 2.5
    assert header(sent, b"traceparent") == (f"00-{PARENT[3:35]}-{span.context.span_id:016x}-01")
    assert "canary" not in span.to_json()


def test_a_failed_request_is_a_failed_span_without_its_message(spans: Any) -> None:
    call(RequestFrame(broken))
    (span,) = spans.get_finished_spans()
    assert not span.status.is_ok
    assert span.events == ()
    assert "canary" not in span.to_json()


def test_without_opentelemetry_the_callers_trace_is_still_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    scope = {"headers": [(b"traceparent", PARENT.encode())], "method": "GET"}
    with Tracer().request(scope, "r") as trace:
        assert trace.trace_id == PARENT[3:35]
        trace.finish("/v1/search", "GET", 200, {})
