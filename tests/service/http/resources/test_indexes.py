"""Several indexes behind one service: each request is answered by the one it names."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from fakes import ColourEncoder, solid
from indexes import ListSource, record
from services import APPLE, build_colours
from starlette.testclient import TestClient

from indexer.ingest.build import build_index
from indexer.search.snapshot import open_snapshot
from models.errors import InputError
from service.engine.engine import Engine
from service.engine.shared_encoder import SerialEncoder
from service.http.app import create_app

EXTRA = "only here"
OTHER = ColourEncoder(name="others")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("several")
    first = build_colours(folder / "first.index")
    build_index([ListSource([record(EXTRA, "red")])], folder / "second.index", OTHER)
    with (
        open_snapshot(first, fingerprint=None) as one,
        open_snapshot(folder / "second.index", fingerprint=None) as two,
    ):
        engines = [Engine(ColourEncoder(), one), Engine(OTHER, two, name="zwei & 2")]
        with TestClient(create_app(engines)) as client:
            yield client


def test_they_are_listed_with_the_default_first(client: TestClient) -> None:
    first, second = client.get("/v1/indexes").json()["indexes"]
    assert (first["name"], first["default"], first["model"]) == ("default", True, "colours")
    assert (first["images"], first["texts"], first["version"]) == (4, 4, 1)
    assert (second["name"], second["default"], second["model"]) == ("zwei & 2", False, "others")
    assert (second["images"], second["texts"]) == (1, 0)
    assert first["fingerprint"] != second["fingerprint"]


@pytest.mark.parametrize("path", ["/v1/search", "/v1/search/text-to-image"])
def test_a_search_goes_to_the_index_it_names(client: TestClient, path: str) -> None:
    body: dict[str, object] = {"text": "red"} if "text" in path else {"query": {"text": "red"}}
    body["k"] = 1
    for index, model, found in [(None, "colours", APPLE), ("zwei & 2", "others", EXTRA)]:
        parameters = {} if index is None else {"index": index}
        answer = client.post(path, json=body, params=parameters).json()
        assert [hit["id"] for hit in answer["hits"]] == [found]
        assert answer["model"] == model


def test_an_upload_goes_to_the_index_it_names(client: TestClient) -> None:
    upload = {"image": ("x", solid("red"))}
    path = "/v1/search/image-to-text?target=images&k=1"
    for suffix, found in [("", APPLE), ("&index=default", APPLE), ("&index=zwei+%26+2", EXTRA)]:
        answer = client.post(path + suffix, files=upload)
        assert [hit["id"] for hit in answer.json()["hits"]] == [found]


def test_thumbnail_urls_lead_back_to_their_own_index(client: TestClient) -> None:
    body = {"query": {"text": "red"}, "k": 1}
    (hit,) = client.post("/v1/search?index=zwei %26 2", json=body).json()["hits"]
    assert hit["thumbnail_url"] == "/v1/items/only%20here/thumbnail?index=zwei%20%26%202"
    assert client.get(hit["thumbnail_url"]).headers["content-type"] == "image/jpeg"
    assert client.get("/v1/items/only%20here/thumbnail").status_code == 404
    item = client.get("/v1/items/only%20here?index=zwei %26 2").json()
    assert item["thumbnail_url"] == hit["thumbnail_url"]
    assert client.get("/v1/items/only%20here").status_code == 404


def test_classification_and_description_follow_the_name(client: TestClient) -> None:
    form = {"files": {"image": ("x", solid("red"))}, "data": {"labels": "red,blue"}}
    assert client.post("/v1/classify", **form).json()["model"] == "colours"  # type: ignore[arg-type]
    named = client.post("/v1/classify?index=zwei %26 2", **form)  # type: ignore[arg-type]
    assert named.json()["model"] == "others"
    assert client.get("/v1/index").json()["name"] == "default"
    assert client.get("/v1/index?index=zwei %26 2").json()["images"] == 1


@pytest.mark.parametrize("name", ["", "none", "../first", "zwei", "x" * 2000])
def test_an_unknown_name_is_a_problem(client: TestClient, name: str) -> None:
    answers = [
        client.post("/v1/search", json={"query": {"text": "red"}}, params={"index": name}),
        client.get("/v1/index", params={"index": name}),
        client.get("/v1/items/x", params={"index": name}),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
        assert "index" in answer.json()["detail"]


def test_a_name_given_twice_is_refused(client: TestClient) -> None:
    answer = client.get("/v1/index?index=default&index=default")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")


def test_two_engines_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="two indexes"):
        create_app([Engine(ColourEncoder()), Engine(ColourEncoder())])


def test_engines_of_one_pair_take_turns_on_the_device() -> None:
    inside = threading.Semaphore(1)

    class Alone(ColourEncoder):
        def embed_texts(self, texts: object) -> object:  # type: ignore[override]
            assert inside.acquire(blocking=False), "two callers on one device"
            try:
                threading.Event().wait(0.005)
                return super().embed_texts(texts)  # type: ignore[arg-type]
            finally:
                inside.release()

    shared = SerialEncoder(Alone())
    engines = [Engine(shared, name=name) for name in "ab"]
    failures: list[BaseException] = []

    def ask(engine: Engine) -> None:
        try:
            for _ in range(10):
                engine.classify([solid("red")], [f"red {threading.get_ident()}", "blue"])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
