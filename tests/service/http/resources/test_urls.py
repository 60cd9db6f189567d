"""Pictures by address over HTTP: refused unless turned on, and then fetched by the one fetcher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import COLOURS, solid
from services import APPLE, SKY, build_colours, colour_client
from starlette.testclient import TestClient

from models.errors import UrlError
from models.sources.fetch import Fetcher
from service.http.app import ServiceSettings

URL = "http://canary.example/secret-path.png"


class Stub(Fetcher):
    """What a fetcher gives for each address, without a network."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, float | None]] = []

    def fetch(self, url: str, *, within: float | None = None) -> bytes:
        self.asked.append((url, within))
        if "fails" in url:
            raise UrlError("no picture could be fetched from the address")
        return solid("blue")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_colours(tmp_path_factory.mktemp("urls") / "colours.index")


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def client(index: Path, stub: Stub) -> Iterator[TestClient]:
    with colour_client(index, ServiceSettings(fetcher=stub)) as client:
        yield client


def everywhere(url: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("/v1/search", {"query": {"image_url": url}}),
        ("/v1/search", {"query": [{"image_url": url}, {"text": "red", "weight": -0.1}]}),
        ("/v1/embeddings", {"input": [url], "modality": "image"}),
        ("/v1/embeddings", {"input": [{"image": url}]}),
        ("/knn-service", {"image_url": url, "modality": "image", "num_images": 1}),
    ]


@pytest.mark.parametrize(("path", "body"), everywhere(URL))
def test_off_by_default(index: Path, path: str, body: dict[str, Any]) -> None:
    with colour_client(index) as client:
        response = client.post(path, json=body)
    assert response.status_code == 422
    assert response.json()["code"] == "url-not-allowed"
    assert "--allow-urls" in response.json()["hint"]
    assert "canary" not in response.text


def test_where_it_is_on_the_picture_is_fetched_within_the_deadline(
    client: TestClient, stub: Stub
) -> None:
    for path, body in everywhere(URL):
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        document = response.json()
        if path == "/v1/search":
            assert document["hits"][0]["id"] == SKY
        elif path == "/knn-service":
            assert document[0]["item_id"] == SKY
        else:
            vector = document["data"][0]["embedding"]
            assert vector[list(COLOURS).index("blue")] == pytest.approx(1.0)
    assert [url for url, _ in stub.asked] == [URL] * 5
    assert all(within is not None and 0 < within <= 30 for _, within in stub.asked)


@pytest.mark.parametrize(("path", "body"), everywhere("http://canary.example/fails"))
def test_a_failure_says_one_thing(client: TestClient, path: str, body: dict[str, Any]) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 422
    document = response.json()
    assert document["code"] == "url-fetch-failed"
    assert document["detail"] == "no picture could be fetched from the address"
    assert "canary" not in response.text


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "http://localhost/", "http://127.0.0.1:6379/", "x", "ftp://a.b/"]
)
def test_the_real_fetcher_refuses_by_the_text(index: Path, url: str) -> None:
    with colour_client(index, ServiceSettings(fetcher=Fetcher())) as client:
        response = client.post("/v1/search", json={"query": {"image_url": url}})
    assert response.status_code == 422
    assert response.json()["code"] == "url-not-allowed"


def test_an_index_never_leads_to_a_fetch(client: TestClient, stub: Stub) -> None:
    """An item's own address is data: nobody follows it."""
    assert client.post("/v1/search", json={"query": {"id": APPLE}}).status_code == 200
    assert client.get("/v1/items/sky.png").status_code == 200
    assert stub.asked == []
