"""How a search is done, over HTTP: words too, near-duplicates left out, exactly, how hard."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clustered import FINGERPRINT, fill, pictures, texts
from fakes import ColourEncoder, solid
from services import APPLE, build_colours, colour_client
from starlette.testclient import TestClient
from writable import writable_client

from indexer.maintain.optimize import OptimizeOptions, optimize
from indexer.search.options import HYBRID, NEAR_DUPLICATE
from indexer.search.snapshot import open_snapshot
from models.encoder import Fingerprint
from service.engine.engine import Engine
from service.http.resources.indexes import index_response


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    index: Path = build_colours(tmp_path_factory.mktemp("manners") / "colours.index")
    with writable_client(index) as client:
        # two reds alike, and a green picture whose words only a search by words can find
        items = [
            {"id": "red 2.png", "image": b64(solid("red", size=(40, 40)))},
            {"id": "ticket.png", "image": b64(solid("green")), "text": "invoice 4711 xylophone"},
        ]
        assert client.post("/v1/items", json={"items": items}).json()["added"] == 2
        yield client


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def hits(client: TestClient, text: str, route: str = "/v1/search", **more: Any) -> list[Any]:
    body: dict[str, Any] = {"query": {"text": text}} if route == "/v1/search" else {"text": text}
    answer = client.post(route, json=body | more)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["hits"])


@pytest.mark.parametrize("route", ["/v1/search", "/v1/search/text-to-image"])
def test_words_find_what_vectors_do_not(client: TestClient, route: str) -> None:
    plain = hits(client, "red xylophone", route)
    assert plain[0]["id"] in (APPLE, "red 2.png")
    assert "fused" not in plain[0]
    words = hits(client, "red xylophone", route, hybrid=1)
    assert words[0]["id"] == "ticket.png"
    assert words[0]["fused"] > words[-1]["fused"]
    assert words[0]["score"] == pytest.approx(0, abs=1e-3), "the cosine stays the cosine"
    assert hits(client, "red xylophone", route, hybrid=True) == hits(
        client, "red xylophone", route, hybrid=HYBRID
    )
    for none in (False, 0, 0.0):
        assert hits(client, "red xylophone", route, hybrid=none) == plain


@pytest.mark.parametrize("wanted", [True, NEAR_DUPLICATE, 1])
def test_near_duplicates_are_left_out_and_named(client: TestClient, wanted: Any) -> None:
    assert len([one for one in hits(client, "red") if one["score"] > 0.99]) == 2
    best = hits(client, "red", deduplicate=wanted)
    assert [one["id"] for one in best if one["score"] > 0.99] == [APPLE]
    assert best[0]["duplicates"] == ["red 2.png"]
    assert "duplicates" not in hits(client, "blue", deduplicate=wanted, k=1)[0]
    assert "duplicates" not in hits(client, "red", deduplicate=False)[0]


def test_exact_and_effort_are_taken(client: TestClient) -> None:
    plain = hits(client, "red")
    assert hits(client, "red", exact=True) == plain
    assert hits(client, "red", effort=7) == plain, "nothing is optimized here"


def test_in_a_batch_each_has_its_own(client: TestClient) -> None:
    query = {"text": "red xylophone"}
    searches = [
        {"query": query},
        {"query": query, "hybrid": 1.0},
        {"query": {"text": "red"}, "deduplicate": True},
        {"query": query, "hybrid": 2},
    ]
    results = client.post("/v1/search/batch", json={"searches": searches}).json()["results"]
    assert [one["answer"]["hits"][0]["id"] for one in results[:3]] == [
        hits(client, "red xylophone")[0]["id"], "ticket.png", APPLE,
    ]  # fmt: skip
    assert results[2]["answer"]["hits"][0]["duplicates"] == ["red 2.png"]
    assert results[3]["error"]["code"] == "invalid-request"


def test_a_picture_has_no_words_but_may_leave_out_its_like(client: TestClient) -> None:
    raw = {"Content-Type": "image/png"}
    path = "/v1/search/image-to-text?target=images&deduplicate=true&exact=true&effort=9"
    answer = client.post(path, content=solid("red"), headers=raw)
    assert answer.json()["hits"][0]["duplicates"] == ["red 2.png"]
    form = {"deduplicate": "0.9", "target": "images"}
    posted = client.post("/v1/search/image-to-text", files={"image": solid("red")}, data=form)
    assert posted.json()["hits"] == answer.json()["hits"]
    refused = client.post("/v1/search/image-to-text?hybrid=1", content=solid("red"), headers=raw)
    assert refused.status_code == 422


@pytest.mark.parametrize(
    "bad",
    [{"hybrid": 1.1}, {"hybrid": -0.1}, {"hybrid": "true"}, {"hybrid": None}, {"deduplicate": 0},
     {"deduplicate": 1.5}, {"exact": 1}, {"effort": 0}, {"effort": 1.5}, {"effort": 10**9}],
    ids=str,
)  # fmt: skip
def test_what_is_no_manner_is_refused(client: TestClient, bad: dict[str, Any]) -> None:
    answer = client.post("/v1/search", json={"query": {"text": "red"}, **bad})
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid-request"
    assert any(one["pointer"].startswith(f"#/{next(iter(bad))}") for one in answer.json()["errors"])


def test_the_index_tells_what_it_is_searched_with(tmp_path: Path) -> None:
    index = build_colours(tmp_path / "colours.index")
    with colour_client(index) as client:
        info = client.get("/v1/index").json()
        assert (info["structures"], info["degraded"], info["writable"]) == ([], [], False)


class Clustered(ColourEncoder):
    """Only in name: nothing is embedded with it."""

    @property
    def fingerprint(self) -> Fingerprint:
        return FINGERPRINT


def test_an_optimized_index_tells_its_structure_and_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    fill(path, pictures(2000), texts(200))
    # so few rows are scanned faster
    options = OptimizeOptions(structure="ivf", fewest=500, floor=0.8, gain=0.0)
    report = optimize(path, options).images
    with open_snapshot(path, fingerprint=FINGERPRINT) as snapshot:
        info = index_response(Engine(Clustered(), snapshot))
    (one,) = info.structures
    assert (one.modality, one.rows, one.structure) == ("image", 2000, "ivf")
    assert (one.effort, one.recall, one.recipe) == (report.effort, report.recall, report.recipe)
    assert info.degraded == []
    # damaged, it is told and searched exactly
    file = next(path.glob("segments/*/ann.faiss"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)
    with open_snapshot(path, fingerprint=FINGERPRINT) as snapshot:
        info = index_response(Engine(Clustered(), snapshot))
    assert len(info.degraded) == 1
