"""/v1/embeddings: OpenAI's shape over a real socket with OpenAI's own client, and infinity's."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import COLOURS, ColourEncoder, solid
from keyed import Keys
from services import build_colours, colour_client
from serving import server
from starlette.testclient import TestClient

RED, BLUE = (list(COLOURS).index(name) for name in ("red", "blue"))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_colours(tmp_path_factory.mktemp("embeddings") / "colours.index")


@pytest.fixture(scope="module")
def client(index: Path) -> Iterator[TestClient]:
    with colour_client(index) as client:
        yield client


def uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def embed(client: TestClient, input: Any, **more: Any) -> Any:
    response = client.post("/v1/embeddings", json={"input": input, **more})
    assert response.status_code == 200, response.text
    return response.json()


def refusal(client: TestClient, status: int, **body: Any) -> Any:
    response = client.post("/v1/embeddings", json=body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    return response.json()


def test_texts_and_pictures_share_the_space_and_keep_their_order(client: TestClient) -> None:
    red = uri(solid("red"))
    inputs = ["blue", red, {"text": "red"}, {"image": red}, {"image": red.split(",")[1]}, "a cat"]
    document = embed(client, inputs)
    assert document["object"] == "list"
    assert document["model"] == "colours"
    assert [one["index"] for one in document["data"]] == list(range(6))
    rows = np.array([one["embedding"] for one in document["data"]])
    assert rows.argmax(axis=1).tolist() == [BLUE, RED, RED, RED, RED, len(COLOURS)]
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(6))
    assert document["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


def test_one_batch_a_tower(index: Path) -> None:
    from services import colour_engine

    from service.http.app import create_app

    calls: list[tuple[str, int]] = []

    class Counting(ColourEncoder):
        def embed_texts(self, texts: Any) -> Any:
            calls.append(("texts", len(texts)))
            return super().embed_texts(texts)

        def embed_images(self, images: Any) -> Any:
            calls.append(("images", len(images)))
            return super().embed_images(images)

    with colour_engine(index, Counting()) as engine, TestClient(create_app(engine)) as client:
        calls.clear()
        embed(client, ["red", uri(solid("red")), "blue", uri(solid("blue"))])
    assert sorted(calls) == [("images", 2), ("texts", 2)]


def test_base64_holds_the_same_floats(client: TestClient) -> None:
    plain = embed(client, "red blue blue")["data"][0]["embedding"]
    packed = embed(client, "red blue blue", encoding_format="base64")["data"][0]["embedding"]
    data = base64.b64decode(packed)
    assert struct.unpack(f"<{len(data) // 4}f", data) == pytest.approx(plain, abs=0)


def test_modality_decides_and_without_it_the_string_does(client: TestClient) -> None:
    red = uri(solid("red"))

    def winner(**more: Any) -> int:
        return int(np.argmax(embed(client, red, **more)["data"][0]["embedding"]))

    assert winner() == RED
    assert winner(modality="image") == RED
    assert winner(modality="text") == len(COLOURS), "a text that names no colour"
    bare = red.split(",")[1]
    assert np.argmax(embed(client, bare, modality="image")["data"][0]["embedding"]) == RED


def test_the_model_is_named_or_not(client: TestClient) -> None:
    for model in ("colours", "default", "default/not-specified", ""):
        assert embed(client, "red", model=model)["model"] == "colours"
    assert refusal(client, 404, input="red", model="text-embedding-3-small")["code"] == (
        "model-not-found"
    )
    dim = len(COLOURS) + 1
    for dimensions in (dim, 0):
        assert len(embed(client, "red", dimensions=dimensions)["data"][0]["embedding"]) == dim
    told = refusal(client, 422, input="red", dimensions=dim - 1)
    assert str(dim) in told["detail"]


def test_infinitys_addresses(client: TestClient) -> None:
    old = client.post("/embeddings", json={"input": "red", "model": "colours"})
    assert old.json() == embed(client, "red", model="colours")
    assert client.get("/models").json() == client.get("/v1/models").json()
    listed = client.get("/v1/models").json()
    assert listed["data"][0]["id"] == "colours"
    assert listed["data"][0]["indexes"] == ["default"]
    assert client.get("/v1/models/colours").json() == listed["data"][0]
    assert client.get("/v1/models/other/tag").status_code == 404


BROKEN = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\nnope").decode()


@pytest.mark.parametrize(
    ("input", "code", "pointer"),
    [
        ([1, 2, 3], "invalid-request", "#/input"),
        ([[1, 2], [3]], "invalid-request", "#/input"),
        ([], "invalid-request", "#/input"),
        (["red"] * 2049, "invalid-request", "#/input"),
        (None, "invalid-request", "#/input"),
        ({"url": "x"}, "invalid-request", "#/input"),
        ([{"text": "a", "image": "b"}], "invalid-request", "#/input"),
        ([{"image": 3}], "invalid-request", "#/input"),
        (["red", ""], "invalid-text", "#/input/1"),
        (["red", " \n"], "invalid-text", "#/input/1"),
        (["red", "x" * 20_000], "invalid-text", "#/input/1"),
        (["red", BROKEN], "image-undecodable", "#/input/1"),
        (["data:image/png;base64,*"], "image-undecodable", "#/input/0"),
        (["data:image/png,raw"], "image-undecodable", "#/input/0"),
        ([uri(b"<svg xmlns='http://x'/>")], "image-format-not-allowed", "#/input/0"),
        ([{"image": "http://a.example/x.png"}], "url-not-allowed", None),
    ],
)  # fmt: skip
def test_what_is_refused(client: TestClient, input: Any, code: str, pointer: str | None) -> None:
    response = client.post("/v1/embeddings", json={"input": input})
    assert response.status_code in (415, 422)
    document = response.json()
    assert document["code"] == code
    if pointer is not None:
        assert document["errors"][0]["pointer"] == pointer
    assert "a.example" not in response.text


def test_too_many_pictures(client: TestClient) -> None:
    assert refusal(client, 422, input=[uri(solid("red"))] * 65)["code"] == "invalid-request"


def test_openais_own_client_unchanged(index: Path, tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    keys = Keys.make(tmp_path / "keys.json")
    with server(index, tmp_path / "log", "--keys", str(keys.path)) as (_, url):
        with openai.OpenAI(base_url=url + "/v1", api_key=keys.reader, max_retries=0) as client:
            # its default is to ask for base64 and to unpack it
            found = client.embeddings.create(model="colours", input=["red", "blue"])
            assert [int(np.argmax(one.embedding)) for one in found.data] == [RED, BLUE]
            assert found.usage.prompt_tokens == 2
            plain = client.embeddings.create(model="colours", input="red", encoding_format="float")
            assert plain.data[0].embedding == pytest.approx(found.data[0].embedding)
            picture = client.embeddings.create(
                model="colours", input=uri(solid("blue")), extra_body={"modality": "image"}
            )
            assert int(np.argmax(picture.data[0].embedding)) == BLUE
            assert [model.id for model in client.models.list()] == ["colours"]
            assert client.models.retrieve("colours").id == "colours"
            with pytest.raises(openai.NotFoundError):
                client.embeddings.create(model="other", input="red")
            with pytest.raises(openai.UnprocessableEntityError):
                client.embeddings.create(model="colours", input="red", dimensions=3)
            with pytest.raises(openai.UnprocessableEntityError):
                client.embeddings.create(model="colours", input=[1, 2, 3])
        with (
            openai.OpenAI(base_url=url + "/v1", api_key="sk-wrong", max_retries=0) as stranger,
            pytest.raises(openai.AuthenticationError),
        ):
            stranger.embeddings.create(model="colours", input="red")
