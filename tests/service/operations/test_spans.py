"""The whole application under an OpenTelemetry provider: no span holds what was asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from services import build_colours, colour_engine

from service.http.app import create_app


def test_nothing_but_our_own_span_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    index = build_colours(tmp_path / "colours.index")
    with (
        colour_engine(index) as engine,
        TestClient(create_app(engine), base_url="http://localhost") as client,
    ):
        client.get("/v1/items/canary", params={"index": "canary"})
        client.post("/v1/search/text-to-image", json={"text": "canary", "k": "canary"})
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == [
        "GET /v1/items/{id:path}",
        "POST /v1/search/text-to-image",
    ]
    assert not any("canary" in span.to_json() for span in spans)
