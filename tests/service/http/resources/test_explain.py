"""POST /v1/explain and `explain` on classify: right corners, every refusal a problem."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fakes import COLOURS, ColourEncoder, encode, solid
from PIL import Image
from services import APPLE, build_colours, colour_client
from starlette.testclient import TestClient

from indexer.search.snapshot import open_snapshot
from service.engine.engine import Engine
from service.http.app import create_app
from service.http.resources.classify import MAX_EXPLAINED

CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]


class Unexplaining:
    """The colour pair without its maps: an `Encoder` and nothing else."""

    def __init__(self) -> None:
        whole = ColourEncoder()
        for name in (
            "fingerprint",
            "dim",
            "logit_scale",
            "logit_bias",
            "prepare_image",
            "prepare_text",
            "embed_images",
            "embed_texts",
        ):
            setattr(self, name, getattr(whole, name))


def corner_picture(corner: tuple[int, int], colour: str = "red") -> bytes:
    picture = Image.new("RGB", (600, 400), COLOURS["white"])
    left, top = 300 * corner[1], 200 * corner[0]
    picture.paste(COLOURS[colour], (left, top, left + 300, top + 200))
    return encode(picture)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_colours(tmp_path_factory.mktemp("explain") / "x.index")


@pytest.fixture(scope="module")
def client(index: Path) -> Iterator[TestClient]:
    with colour_client(index) as client:
        yield client


def as_json(client: TestClient, image: bytes, text: str) -> dict[str, object]:
    response = client.post(
        "/v1/explain",
        json={"text": text, "image": base64.b64encode(image).decode()},
        headers={"Accept": "application/json"},
    )
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("corner", CORNERS)
def test_the_right_corner_lights_up(client: TestClient, corner: tuple[int, int]) -> None:
    answer = as_json(client, corner_picture(corner), "red")
    values = np.array(answer["map"]["values"])  # type: ignore[index]
    assert values.shape == (4, 4)
    expected = np.zeros((2, 2))
    expected[corner] = 1.0
    np.testing.assert_allclose(values, np.kron(expected, np.ones((2, 2))))
    assert (answer["width"], answer["height"]) == (512, 341)
    assert answer["method"] == "local-head"
    assert 0 < answer["score"] < 1  # type: ignore[operator]
    # another text: the complement
    other = np.array(as_json(client, corner_picture(corner), "white")["map"]["values"])  # type: ignore[index]
    np.testing.assert_allclose(other, 1.0 - values)


@pytest.mark.parametrize("corner", CORNERS)
def test_a_png_by_default(client: TestClient, corner: tuple[int, int]) -> None:
    drawn = {}
    for text, accept in (("red", "*/*"), ("white", "image/png, application/json;q=0.1")):
        response = client.post(
            "/v1/explain",
            data={"text": text},
            files={"image": ("x", corner_picture(corner))},
            headers={"Accept": accept},
        )
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "image/png"
        picture = Image.open(BytesIO(response.content))
        assert picture.size == (512, 341)
        drawn[text] = np.asarray(picture, dtype=int)
    # inferno's red grows with the heat, and the picture beneath is the same in both
    hotter = (drawn["red"] - drawn["white"])[:, :, 0]
    means = {(r, c): hotter[r * 171 : r * 171 + 170, c * 256 : c * 256 + 256] for r, c in CORNERS}
    assert [corner] == [place for place, block in means.items() if block.mean() > 0]


def test_an_indexed_picture_is_explained_by_its_thumbnail(client: TestClient) -> None:
    response = client.post("/v1/explain", json={"text": "red", "id": APPLE})
    assert response.status_code == 200
    assert Image.open(BytesIO(response.content)).size == (32, 32)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"text": "red"}, "invalid-request"),
        ({"text": "red", "id": APPLE, "image": "aaaa"}, "invalid-request"),
        ({"text": " ", "id": APPLE}, "invalid-text"),
        ({"text": "red", "id": "nobody"}, "not-found"),
        ({"text": "red", "id": f"{APPLE}#en/0"}, "not-found"),
        ({"text": "red", "image": "!!"}, "image-undecodable"),
        ({"text": "red", "image": base64.b64encode(b"GIF89a").decode()}, "image-undecodable"),
        ({"text": "red", "id": APPLE, "size": 9}, "invalid-request"),
    ],
)
def test_refusals(client: TestClient, body: dict[str, object], code: str) -> None:
    response = client.post("/v1/explain", json=body)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == code
    assert response.status_code in (404, 422)


@pytest.mark.parametrize(
    ("data", "files"),
    [
        ({"text": "red"}, {}),
        ({}, {"image": b"x"}),
        ({"text": "red", "extra": "1"}, {"image": b"x"}),
        ({"text": "red"}, {"picture": b"x"}),
    ],
)
def test_forms_hold_one_text_and_one_picture(
    client: TestClient, data: dict[str, str], files: dict[str, bytes]
) -> None:
    parts = {name: ("x", value) for name, value in files.items()}
    parts = parts or {"": ("", b"")}
    response = client.post("/v1/explain", data=data, files=parts)
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"


def test_a_model_without_a_method_says_so(index: Path) -> None:
    one = base64.b64encode(solid("red")).decode()
    with (
        open_snapshot(index, fingerprint=None) as snapshot,
        TestClient(create_app(Engine(Unexplaining(), snapshot))) as client,  # type: ignore[arg-type]
    ):
        assert client.get("/v1/index").json()["explains"] is False
        explained = client.post("/v1/explain", json={"text": "red", "id": APPLE})
        classified = client.post(
            "/v1/classify", json={"images": [one], "labels": ["red", "blue"], "explain": True}
        )
    for response in (explained, classified):
        assert (response.status_code, response.json()["code"]) == (422, "cannot-explain")


def test_classify_draws_the_top_label(client: TestClient) -> None:
    assert client.get("/v1/index").json()["explains"] is True
    body = {
        "images": [base64.b64encode(corner_picture((0, 1), "blue")).decode(), "broken!"],
        "labels": ["blue", "green"],
    }
    plain = client.post("/v1/classify", json=body).json()
    assert [result["heatmap"] for result in plain["results"]] == [None, None]
    drawn = client.post("/v1/classify", json={**body, "explain": True}).json()
    first, second = drawn["results"]
    assert first["predictions"] == plain["results"][0]["predictions"]
    assert first["heatmap"].startswith("data:image/png;base64,")
    png = base64.b64decode(first["heatmap"].partition(",")[2])
    assert Image.open(BytesIO(png)).size == (512, 341)
    assert second["heatmap"] is None
    assert second["error"]["code"] == "image-undecodable"


def test_classify_draws_nodes_of_a_tree(client: TestClient) -> None:
    body = {
        "images": [base64.b64encode(corner_picture((0, 0), "blue")).decode()],
        "labels": ["cold/blue", "cold/cyan", "warm/red"],
        "level": 1,
        "explain": True,
    }
    [result] = client.post("/v1/classify", json=body).json()["results"]
    assert result["predictions"][0]["label"] == "cold"
    assert result["heatmap"] is not None


def test_only_so_many_pictures_are_explained(client: TestClient) -> None:
    one = base64.b64encode(solid("red")).decode()
    body = {"images": [one] * (MAX_EXPLAINED + 1), "labels": ["red", "blue"], "explain": True}
    response = client.post("/v1/classify", json=body)
    assert (response.status_code, response.json()["code"]) == (422, "invalid-request")
    body["images"] = [one] * MAX_EXPLAINED
    assert client.post("/v1/classify", json=body).status_code == 200
