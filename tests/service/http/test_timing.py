"""`Server-Timing`: every route that embeds says where its milliseconds went."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import solid
from services import APPLE, build_colours, colour_client
from starlette.testclient import TestClient

PICTURE = base64.b64encode(solid("red")).decode()
LABELS = {"images": [PICTURE], "labels": ["red", "blue"]}
ROUTES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "text": ("/v1/search/text-to-image", {"text": "red"}, {"prepare", "embed", "search", "meta"}),
    "picture": (
        "/v1/search",
        {"query": {"image": PICTURE}},
        {"decode", "prepare", "embed", "search", "meta"},
    ),
    "classify": ("/v1/classify", LABELS, {"decode", "prepare", "classes", "embed", "judge"}),
    "classify, explained": (
        "/v1/classify",
        {**LABELS, "explain": True},
        {"decode", "prepare", "classes", "embed", "judge", "explain"},
    ),
    "explain": (
        "/v1/explain",
        {"id": APPLE, "text": "red"},
        {"decode", "prepare", "embed", "explain", "render"},
    ),
    "embed texts": ("/v1/embeddings", {"input": "red"}, {"prepare", "embed"}),
    "embed a picture": (
        "/v1/embeddings",
        {"input": PICTURE, "modality": "image"},
        {"decode", "prepare", "embed"},
    ),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with colour_client(build_colours(tmp_path_factory.mktemp("timing") / "c.index")) as client:
        yield client


@pytest.mark.parametrize("name", ROUTES)
def test_every_stage_is_told_and_together_they_are_no_more_than_all(
    client: TestClient, name: str
) -> None:
    path, body, stages = ROUTES[name]
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    told = dict(re.findall(r"([a-z]+);dur=([0-9.e-]+)", response.headers["server-timing"]))
    assert told.keys() - {"queue"} == {*stages, "total"}
    # each is rounded to a thousandth
    parts = sum(float(took) for stage, took in told.items() if stage != "total")
    assert parts <= float(told["total"]) + 0.01


def test_a_refusal_tells_the_whole_alone(client: TestClient) -> None:
    refused = client.post("/v1/classify", json={**LABELS, "labels": []})
    assert refused.headers["server-timing"].startswith("total;dur=")
