"""/v1/search/batch: each search as alone, refused one by one, embedded and searched together."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import ColourEncoder, solid
from services import APPLE, SKY, build_colours, colour_client
from starlette.testclient import TestClient

from indexer.search.snapshot import open_snapshot
from service.engine.engine import Engine
from service.engine.retrieval import BatchedSearch
from service.engine.shared_encoder import BatchingEncoder
from service.http.app import create_app

RED = base64.b64encode(solid("red")).decode()
SEARCHES: list[dict[str, Any]] = [
    {"query": {"text": "red"}, "k": 3},
    {"query": {"text": "blue"}, "k": 1, "offset": 1},
    {"query": {"image": RED}, "target": "texts", "min_score": 0.5},
    {"query": {"id": APPLE}, "include": ["embedding", "thumbnail"]},
    {"query": [{"text": "red"}, {"text": "blue", "weight": -0.5}], "k": 2},
    {"query": {"text": "red"}, "filter": {"field": "year", "eq": 2024}},
]
# each with the problem it is alone
REFUSED: list[tuple[Any, str]] = [
    ({"query": {"text": ""}}, "invalid-text"),
    ({"query": {"text": "red"}, "k": 0}, "invalid-request"),
    ({"query": {"text": "red"}, "more": 1}, "invalid-request"),
    ({}, "invalid-request"),
    ("red", "invalid-request"),
    (None, "invalid-request"),
    ({"query": {"id": "canary-nothing"}}, "not-found"),
    ({"query": {"image": "*"}}, "image-undecodable"),
    ({"query": {"image": "AAAA"}}, "image-undecodable"),
    ({"query": {"image_url": "http://a.example/x.png"}}, "url-not-allowed"),
    ({"query": {"embedding": [1.0]}}, "invalid-vector"),
    ({"query": {"text": "red"}, "filter": {"field": "canary", "eq": 1}}, "invalid-filter"),
    ({"query": [{"text": "red"}, {"text": "red", "weight": -1}]}, "invalid-vector"),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_colours(tmp_path_factory.mktemp("batch") / "colours.index")


@pytest.fixture(scope="module")
def client(index: Path) -> Iterator[TestClient]:
    with colour_client(index) as client:
        yield client


def batch(client: TestClient, searches: Any, status: int = 200) -> Any:
    response = client.post("/v1/search/batch", json={"searches": searches})
    assert response.status_code == status, response.text
    return response.json()


def without_times(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in ("took_ms", "timings")}


def test_each_search_is_answered_as_if_alone(client: TestClient) -> None:
    found = batch(client, SEARCHES)["results"]
    assert [one["index"] for one in found] == list(range(len(SEARCHES)))
    for one, search in zip(found, SEARCHES, strict=True):
        alone = client.post("/v1/search", json=search).json()
        assert without_times(one["answer"]) == without_times(alone)
        assert "error" not in one
    assert found[0]["answer"]["hits"][0]["id"] == APPLE


def test_a_refused_search_does_not_sink_the_others(client: TestClient) -> None:
    mixed: list[Any] = []
    for bad, _ in REFUSED:
        mixed += [bad, {"query": {"text": "blue"}, "k": 1}]
    found = batch(client, mixed)["results"]
    assert len(found) == len(mixed)
    for one, (bad, code) in zip(found[::2], REFUSED, strict=True):
        assert one["error"]["code"] == code, bad
        assert "answer" not in one
        if bad:  # of nothing the client would send nothing
            alone = client.post("/v1/search", json=bad)
            assert one["error"]["status"] == alone.status_code
            assert one["error"]["detail"] == alone.json()["detail"]
            assert one["error"].get("errors") == alone.json().get("errors")
    assert [one["answer"]["hits"][0]["id"] for one in found[1::2]] == [SKY] * len(REFUSED)
    assert "canary" not in str(found)


def test_all_refused_is_still_an_answer(client: TestClient) -> None:
    found = batch(client, [{"query": {"text": " "}}])["results"]
    assert found[0]["error"]["code"] == "invalid-text"


@pytest.mark.parametrize("searches", [[], [{}] * 65, None, {}, "x", [[[]]] * 65])
def test_the_batch_itself_has_a_shape(client: TestClient, searches: Any) -> None:
    document = batch(client, searches, 422)
    assert document["errors"][0]["pointer"].startswith("#/searches")


def test_texts_are_embedded_and_searches_run_together(index: Path) -> None:
    runs: dict[str, list[int]] = {"texts": [], "searches": []}

    class Counting(ColourEncoder):
        def embed_texts(self, texts: Any) -> Any:
            runs["texts"].append(len(texts))
            return super().embed_texts(texts)

    encoder, searches = BatchingEncoder(Counting()), BatchedSearch()
    with open_snapshot(index, fingerprint=None) as snapshot:
        real = snapshot.search

        def counted(queries_QD: Any, *args: Any, **more: Any) -> Any:
            runs["searches"].append(len(queries_QD))
            return real(queries_QD, *args, **more)

        snapshot.search = counted  # type: ignore[method-assign]
        engine = Engine(encoder, snapshot, searches=searches)
        with TestClient(create_app(engine)) as client:
            for counts in runs.values():
                counts.clear()
            found = batch(client, [{"query": {"text": "red"}, "k": 2}] * 60)["results"]
            assert all(one["answer"]["hits"][0]["id"] == APPLE for one in found)
    assert searches.stop(5)
    assert encoder.stop(5)
    assert sum(runs["texts"]) == sum(runs["searches"]) == 60
    # a batch is what queued while the last ran, so how many there are is not fixed: never 60
    assert len(runs["texts"]) <= 30
    assert len(runs["searches"]) <= 30
