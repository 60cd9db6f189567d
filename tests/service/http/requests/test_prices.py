"""What requests are charged: by what they ask for, whatever their bodies weigh."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fakes import ColourEncoder, solid
from readers import in_memory
from services import APPLE, build_colours
from starlette.testclient import TestClient

from indexer.search.snapshot import open_snapshot
from service.engine.engine import Engine
from service.http.app import create_app

RED = base64.b64encode(solid("red")).decode()
ALL = ["attributes", "embedding", "thumbnail"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Of an index that says it has a million pictures, and has a few."""
    path = build_colours(tmp_path_factory.mktemp("prices") / "colours.index")
    with open_snapshot(path, fingerprint=None) as snapshot:
        reader = in_memory(snapshot)
        many = replace(reader, about=replace(reader.about, images=10**6, texts=10**6))
        with TestClient(create_app([Engine(ColourEncoder(), many)])) as client:
            yield client


def search(**more: Any) -> dict[str, Any]:
    return {"query": {"text": "red"}, **more}


LARGE: list[tuple[str, Any]] = [
    ("/v1/search", search(k=1000)),
    ("/v1/search", search(k=1000, target="texts", include=ALL)),
    ("/v1/search", search(k=100, include=["thumbnail"])),
    ("/v1/search", {"query": {"id": APPLE}, "k": 1000}),
    ("/v1/search/text-to-image", {"text": "red", "k": 500, "include": ["embedding"]}),
    ("/v1/search/image-to-text?k=1000", solid("red")),
    ("/v1/search/batch", {"searches": [search(k=30)] * 64}),
    ("/knn-service", {"text": "red", "modality": "image", "num_images": 100}),
    ("/metadata", {"ids": [0] * 100}),
    ("/v1/embeddings", {"input": ["red"] * 2048}),
    ("/v1/classify",
     {"images": [RED] * 16, "labels": [f"class {n}" for n in range(500)], "templates": ["{}"]}),
]  # fmt: skip
SMALL: list[tuple[str, Any]] = [
    ("/v1/search", search()),
    ("/v1/search", search(k=100)),
    ("/v1/search", search(k=20, include=ALL)),
    ("/v1/search/text-to-image", {"text": "red"}),
    ("/v1/search/image-to-text", solid("red")),
    ("/v1/search/batch", {"searches": [search(k=3)] * 3}),
    # beyond num_images only numbers come
    ("/knn-service",
     {"text": "red", "modality": "image", "num_images": 1, "num_result_ids": 1000}),
    ("/metadata", {"ids": [0]}),
    ("/v1/embeddings", {"input": ["red"] * 100}),
    ("/v1/classify", {"images": [RED], "labels": ["red", "blue"]}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "large"), [(*one, True) for one in LARGE] + [(*one, False) for one in SMALL]
)
def test_a_large_answer_waits_in_a_lane_of_its_own(
    client: TestClient, path: str, body: Any, large: bool
) -> None:
    lane = client.app.state.diptych.admission.lanes["large"]  # type: ignore[attr-defined]
    before = lane.cost_seconds
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    headers = {"content-type": "image/png"} if isinstance(body, bytes) else {}
    response = client.post(path, **sent, headers=headers)
    assert response.status_code == 200, response.text
    # what a lane has served is what its estimate changes by
    assert (lane.cost_seconds != before) == large


def test_the_few_hits_of_a_small_index_are_no_large_answer(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = build_colours(tmp_path_factory.mktemp("few") / "colours.index")
    with open_snapshot(path, fingerprint=None) as snapshot:
        app = create_app([Engine(ColourEncoder(), snapshot)])
        lane = app.state.diptych.admission.lanes["large"]
        before = lane.cost_seconds
        with TestClient(app) as client:
            found = client.post("/v1/search", json=search(k=1000, include=ALL))
    assert found.status_code == 200
    assert lane.cost_seconds == before


def test_the_answers_of_a_batch_are_bounded_together(client: TestClient) -> None:
    searches = [search(k=1000, include=ALL)] * 64
    response = client.post("/v1/search/batch", json={"searches": searches})
    assert response.status_code == 422
    assert response.json()["code"] == "answer-too-large"
    assert "64 MB" in response.json()["detail"]
    assert "smaller k" in response.json()["hint"]
    # as many plain hits as there can be are given
    response = client.post("/v1/search/batch", json={"searches": [search(k=1000)] * 64})
    assert response.status_code == 200
