"""clip-retrieval's protocol: its shapes, and its own client class run unchanged over a socket."""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fakes import COLOURS, ColourEncoder, solid
from indexes import build, opened, record
from PIL import Image
from services import APPLE, FLAG, LEAF, SKY, build_colours, colour_client
from serving import server
from starlette.testclient import TestClient

from indexer.search.options import SearchOptions
from models.errors import NotFoundError
from service.http.resources import knn as clip_retrieval


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_colours(tmp_path_factory.mktemp("knn") / "colours.index")


@pytest.fixture(scope="module")
def client(index: Path) -> Iterator[TestClient]:
    with colour_client(index) as client:
        yield client


def knn(client: TestClient, **more: Any) -> Any:
    body = {"modality": "image", "num_images": 4, "indice_name": "default", **more}
    # as its client sends it: JSON without a media type
    response = client.post("/knn-service", content=json.dumps(body))
    assert response.status_code == 200, response.text
    assert response.headers["index-version"] == "1"
    return response.json()


def test_the_answer_is_a_bare_list_in_its_words(client: TestClient) -> None:
    hits = knn(client, text="red", num_images=2, num_result_ids=4)
    assert [hit.get("item_id") for hit in hits] == [APPLE, FLAG, None, None]
    first = hits[0]
    assert first["similarity"] == pytest.approx(1.0, abs=1e-3)
    assert first["caption"] == "a red apple"
    assert first["image_path"] == "/p/fruit/red apple.png"
    assert "url" not in first
    assert Image.open(BytesIO(base64.b64decode(first["image"]))).format == "JPEG"
    assert all(set(hit) == {"id", "similarity"} for hit in hits[2:]), "beyond num_images"
    assert all(type(hit["id"]) is int for hit in hits)
    assert len({hit["id"] for hit in hits}) == 4
    scores = [hit["similarity"] for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_all_ways_to_ask(client: TestClient) -> None:
    blue = base64.b64encode(solid("blue")).decode()
    vector = [0.0] * (len(COLOURS) + 1)
    vector[list(COLOURS).index("green")] = 3.0
    assert knn(client, text="blue")[0]["item_id"] == SKY
    assert knn(client, image=blue)[0]["item_id"] == SKY
    assert knn(client, text="", image=blue)[0]["item_id"] == SKY, "its page sends both"
    assert knn(client, text="red", image=blue)[0]["item_id"] == APPLE, "text comes first"
    assert knn(client, embedding_input=vector)[0]["item_id"] == LEAF
    captions = knn(client, text="red", modality="text")
    assert {captions[0]["caption"], captions[1]["caption"]} == {"a red apple", "一个红苹果"}
    assert captions[0]["image"], "the picture the text belongs to"
    assert len(knn(client, text="red", num_images=100_000)) == 4


def test_near_duplicates_are_left_out_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.index"
    build([record("a", "red"), record("b", "red", size=2), record("c", "blue")], path)
    with colour_client(path) as client:
        every = knn(client, text="red", num_images=10)
        alike = knn(client, text="red", num_images=10, deduplicate=True)
    assert [hit["item_id"] for hit in every] == ["a", "b", "c"]
    assert [hit["item_id"] for hit in alike] == ["a", "c"]


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///p/a%20b.png", "/p/a b.png"),
        ("/photos/1.jpg", "/photos/1.jpg"),
        ("https://example.org/1.jpg", None),
        ("", None),
        (None, None),
    ],
)
def test_the_path_of_a_picture(uri: str | None, path: str | None) -> None:
    assert clip_retrieval._path(uri) == path


def test_metadata_by_number(client: TestClient) -> None:
    for modality in ("image", "text"):
        hits = knn(client, text="red", modality=modality)
        numbers = [hit["id"] for hit in hits]
        body = {"indice_name": "default", "ids": numbers}
        found = client.post("/metadata", content=json.dumps(body)).json()
        assert [one["id"] for one in found] == numbers
        for one, hit in zip(found, hits, strict=True):
            del hit["id"], hit["similarity"]
            assert one["metadata"] == hit
    assert client.post("/metadata", json={"ids": [], "indice_name": "default"}).json() == []
    assert client.get("/indices-list").json() == ["default"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "invalid-request"),
        ({"text": "red", "num_images": 3}, 422, "invalid-request"),
        ({"modality": "image", "num_images": 3}, 422, "invalid-request"),
        ({"text": "red", "modality": "audio", "num_images": 3}, 422, "invalid-request"),
        ({"text": "red", "modality": "image", "num_images": 0}, 422, "invalid-request"),
        ({"text": "red", "modality": "image", "num_images": 3, "indice_name": "x"}, 404,
         "not-found"),
        ({"image": "*", "modality": "image", "num_images": 3}, 422, "image-undecodable"),
        ({"embedding_input": [1.0], "modality": "image", "num_images": 3}, 422, "invalid-vector"),
        ({"image_url": "http://169.254.169.254/", "modality": "image", "num_images": 3}, 422,
         "url-not-allowed"),
    ],
)  # fmt: skip
def test_what_is_refused(client: TestClient, body: Any, status: int, code: str) -> None:
    response = client.post("/knn-service", json=body)
    assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    "ids", [[-1], [10**6], [2**70], [0, 99], "0", [0.5], [False], ["0"], [0] * 1001]
)
def test_numbers_that_are_none(client: TestClient, ids: Any) -> None:
    response = client.post("/metadata", json={"ids": ids, "indice_name": "default"})
    assert response.status_code in (404, 422)


def test_numbers_keep_their_items_while_an_index_grows_and_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "a.index"
    build([record("a", "red", "red"), record("b", "blue", "blue")], path)

    def numbers() -> dict[str, int]:
        with opened(path) as snapshot:
            vector = ColourEncoder().embed_texts([ColourEncoder().prepare_text("red")])
            items = [
                hit.item
                for target in ("images", "texts")
                for hit in snapshot.search(vector, SearchOptions(k=10, target=target))[0]  # type: ignore[arg-type]
            ]
            found = {f"{item.modality} {item.id}": snapshot.number(item) for item in items}
            for item in items:
                assert snapshot.numbered(snapshot.number(item)) == item
            total = max(found.values()) + 1
            for number in (-1, total + 5, *(set(range(total)) - set(found.values()))):
                with pytest.raises(NotFoundError):
                    snapshot.numbered(number)
            return found

    before = numbers()
    assert len(before) == 4
    # one changes, one is new: their rows are new, the others keep theirs
    build([record("b", "green", "green"), record("c", "cyan", "cyan")], path)
    after = numbers()
    assert len(after) == 6
    kept = {name for name in before if name.endswith(" a") or " a#" in name}
    assert len(kept) == 2
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert len(set(after.values())) == 6


def client_class() -> Any:
    """clip-retrieval's client by its file: the package around it imports a whole torch stack."""
    try:
        distribution = importlib.metadata.distribution("clip-retrieval")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs clip-retrieval: pip install --no-deps clip-retrieval==2.45.0")
    pytest.importorskip("requests")
    path = distribution.locate_file("clip_retrieval/clip_client.py")
    spec = importlib.util.spec_from_file_location("their_clip_client", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_own_client_unchanged(index: Path, tmp_path: Path) -> None:
    theirs = client_class()
    picture = tmp_path / "blue.png"
    picture.write_bytes(solid("blue"))
    vector = [0.0] * (len(COLOURS) + 1)
    vector[list(COLOURS).index("green")] = 1.0
    with server(index, tmp_path / "log") as (_, url):
        client = theirs.ClipClient(url=url + "/knn-service", indice_name="colours", num_images=3)
        found = client.query(text="red")
        assert found[0]["caption"] == "a red apple"
        assert found[0]["similarity"] > 0.99
        assert len(found) == 3
        assert client.query(image=str(picture))[0]["item_id"] == SKY
        assert client.query(embedding_input=vector)[0]["item_id"] == LEAF
        texts = theirs.ClipClient(
            url=url + "/knn-service", indice_name="colours", modality=theirs.Modality.TEXT
        )
        assert "apple" in texts.query(text="red")[0]["caption"]
        refused = client.query(image="http://169.254.169.254/latest/meta-data")
        assert refused["code"] == "url-not-allowed"
