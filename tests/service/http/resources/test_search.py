"""HTTP over a real index of colours: right answers, not only right statuses."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from fakes import ColourEncoder, halves, solid
from services import (
    APPLE,
    ECCENTRIC_IDS,
    FLAG,
    LEAF,
    SKY,
    build_colours,
    colour_client,
    colour_engine,
)
from starlette.testclient import TestClient

from models.images.decode import decode_image
from service.engine.engine import Engine
from service.http.app import create_app


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_colours(tmp_path_factory.mktemp("http") / "colours.index")


@pytest.fixture(scope="module")
def client(index: Path) -> Iterator[TestClient]:
    with colour_client(index) as client:
        yield client


def hits(client: TestClient, body: dict[str, object]) -> list[str]:
    response = client.post("/v1/search", json=body)
    assert response.status_code == 200, response.text
    return [hit["id"] for hit in response.json()["hits"]]


def png(data: bytes) -> dict[str, tuple[str, bytes]]:
    return {"image": ("../../etc/passwd.svg", data)}


# -- search ---------------------------------------------------------------------------------------


def test_a_hit_says_everything(client: TestClient) -> None:
    response = client.post("/v1/search", json={"query": {"text": "red"}, "k": 1})
    answer = response.json()
    (hit,) = answer["hits"]
    assert hit == {
        "id": APPLE,
        "score": pytest.approx(1.0, abs=1e-3),
        "relevance": pytest.approx(1.0, abs=1e-3),
        "modality": "image",
        "uri": "file:///p/fruit/red%20apple.png",
        "text": "a red apple",
        "language": "en",
        "image_id": None,
        "label": "fruit",
        "attributes": {"year": 2024},
        "thumbnail_url": "/v1/items/fruit%2Fred%20apple.png/thumbnail",
    }
    assert {key: answer[key] for key in ("k", "offset", "target", "truncated", "model")} == {
        "k": 1, "offset": 0, "target": "images", "truncated": False, "model": "colours",
    }  # fmt: skip
    assert response.headers["index-version"] == str(answer["index_version"]) == "1"
    assert answer["took_ms"] >= 0


@pytest.mark.parametrize(
    ("query", "target", "first"),
    [
        ({"text": "green"}, "images", {LEAF}),
        ({"text": "绿色的叶子"}, "images", {LEAF}),
        ({"text": "blue"}, "texts", {f"{SKY}"}),
        ({"id": FLAG}, "images", {APPLE, SKY}),
        ({"image": base64.b64encode(solid("blue")).decode()}, "images", {SKY}),
        (
            {"image": "data:image/png;base64," + base64.b64encode(solid("red")).decode()},
            "texts",
            {APPLE},
        ),
        ({"embedding": [0, 0, 3, 0, 0, 0, 0, 0, 0]}, "images", {SKY}),
    ],
)
def test_every_kind_of_query_finds_its_own(
    client: TestClient, query: dict[str, object], target: str, first: set[str]
) -> None:
    answer = client.post("/v1/search", json={"query": query, "target": target, "k": 1}).json()
    (hit,) = answer["hits"]
    assert (hit["image_id"] or hit["id"]) in first


def test_parts_appear_only_when_asked_for(client: TestClient) -> None:
    body = {"query": {"text": "red"}, "k": 1}
    (plain,) = client.post("/v1/search", json={**body, "include": []}).json()["hits"]
    assert not {"attributes", "embedding", "thumbnail"} & plain.keys()
    include = ["embedding", "thumbnail"]
    (full,) = client.post("/v1/search", json={**body, "include": include}).json()["hits"]
    assert full["embedding"] == pytest.approx([1.0] + [0.0] * 8, abs=1e-3)
    head, _, data = full["thumbnail"].partition(",")
    assert head == "data:image/jpeg;base64"
    assert decode_image(base64.b64decode(data)).getpixel((4, 4))[0] > 240  # type: ignore[index]


def test_pages_floors_and_limits(client: TestClient) -> None:
    whole = hits(client, {"query": {"text": "red"}, "k": 1000})
    assert len(whole) == 4
    assert whole[:2] == [APPLE, FLAG]
    assert hits(client, {"query": {"text": "red"}, "k": 2, "offset": 1}) == whole[1:3]
    assert hits(client, {"query": {"text": "red"}, "offset": 10_000}) == []
    assert hits(client, {"query": {"text": "red"}, "min_score": 0.99}) == [APPLE]


def test_the_headline_searches(client: TestClient) -> None:
    answer = client.post("/v1/search/text-to-image", json={"text": "a leaf that is green", "k": 1})
    assert answer.json()["hits"][0]["id"] == LEAF
    for response in (
        client.post("/v1/search/image-to-text", files=png(solid("green")), data={"k": "1"}),
        client.post("/v1/search/image-to-text?k=1", files=png(solid("green"))),
        client.post(
            "/v1/search/image-to-text?k=1",
            content=solid("green", fmt="JPEG"),
            headers={"content-type": "image/jpeg"},
        ),
        # the declared type lies; the bytes decide
        client.post(
            "/v1/search/image-to-text?k=1",
            content=solid("green"),
            headers={"content-type": "image/svg+xml"},
        ),
    ):
        (hit,) = response.json()["hits"]
        assert (hit["text"], hit["image_id"], hit["modality"]) == ("a green leaf", LEAF, "text")
    images = client.post(
        "/v1/search/image-to-text", files=png(solid("green")), data={"target": "images", "k": "1"}
    )
    assert images.json()["hits"][0]["id"] == LEAF


def test_a_text_over_the_context_says_truncated(client: TestClient) -> None:
    assert client.post("/v1/search/text-to-image", json={"text": "red " * 70}).json()["truncated"]


# -- classify -------------------------------------------------------------------------------------


def test_classify_by_form_and_by_json(client: TestClient) -> None:
    form = client.post("/v1/classify", files=png(solid("red")), data={"labels": "blue, red，green"})
    document = {
        "images": [base64.b64encode(solid("red")).decode()],
        "labels": ["blue", "red", "green"],
    }
    for response in (form, client.post("/v1/classify", json=document)):
        (result,) = response.json()["results"]
        assert result["predictions"][0]["label"] == "red"
        assert sum(p["probability"] for p in result["predictions"]) == pytest.approx(1)


def test_classify_options_of_a_form(client: TestClient) -> None:
    response = client.post(
        "/v1/classify",
        files=[("image", ("a", halves("red", "blue"))), ("image", ("b", solid("green")))],
        data={"labels": ["red", "a, b"], "multi_label": "true", "top_k": "1", "templates": ["{c}"]},
    )
    assert response.status_code == 200, response.text
    first, second = response.json()["results"]
    assert [p["label"] for p in first["predictions"]] == ["red"]
    assert first["predictions"][0]["probability"] > 0.99
    assert len(second["predictions"]) == 1


def test_a_damaged_picture_fails_by_name_and_the_others_answer(client: TestClient) -> None:
    files = [("image", ("a", solid("red"))), ("image", ("b", b"no picture"))]
    response = client.post("/v1/classify", files=files, data={"labels": ["red", "blue"]})
    good, bad = response.json()["results"]
    assert good["error"] is None
    assert (bad["index"], bad["predictions"], bad["error"]["code"]) == (1, [], "image-undecodable")


# -- items and the index --------------------------------------------------------------------------


@pytest.mark.parametrize("item_id", ECCENTRIC_IDS)
def test_ids_with_slashes_and_signs_survive_the_url(client: TestClient, item_id: str) -> None:
    for path in (quote(item_id, safe=""), quote(item_id)):
        if path == quote(FLAG):
            continue  # unencoded, it is the thumbnail of an item `flag`
        response = client.get(f"/v1/items/{path}")
        assert response.json()["id"] == item_id, response.text
        picture = client.get(f"/v1/items/{path}/thumbnail")
        assert picture.headers["content-type"] == "image/jpeg"
        assert decode_image(picture.content).size == (32, 32)


def test_thumbnails_are_inert_and_cacheable(client: TestClient) -> None:
    url = client.get(f"/v1/items/{quote(APPLE)}").json()["thumbnail_url"]
    picture = client.get(url)
    assert picture.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in picture.headers["content-security-policy"]
    again = client.get(url, headers={"if-none-match": picture.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_an_item_lists_its_captions(client: TestClient) -> None:
    captions = client.get(f"/v1/items/{quote(APPLE)}").json()["captions"]
    assert [(one["language"], one["text"]) for one in captions] == [
        ("en", "a red apple"),
        ("zh", "一个红苹果"),
    ]


def test_the_index_describes_itself_without_the_operators_folders(client: TestClient) -> None:
    response = client.get("/v1/index")
    info = response.json()
    assert (info["version"], info["images"], info["texts"], info["dim"]) == (1, 4, 4, 9)
    assert (info["model"], info["fingerprint"]) == ("colours", ColourEncoder().fingerprint.digest)
    assert "sources" not in info
    assert response.headers["index-version"] == "1"


def test_parts_are_weighed_and_their_items_left_out(client: TestClient) -> None:
    red, blue = {"text": "red"}, {"text": "blue"}
    assert hits(client, {"query": [red, blue], "k": 1}) == [FLAG]
    assert hits(client, {"query": [red, {**blue, "weight": -0.5}], "k": 4})[0] == APPLE
    assert hits(client, {"query": [red, {"id": APPLE}], "k": 1}) == [FLAG]
    assert hits(client, {"query": [red], "k": 1}) == hits(client, {"query": red, "k": 1})
    assert hits(client, {"query": {**red, "weight": 7}, "k": 1}) == [APPLE]
    assert hits(client, {"query": {**red, "weight": -1}, "k": 4})[-1] == APPLE
    picture = {"image": base64.b64encode(solid("blue")).decode(), "weight": 0.9}
    assert hits(client, {"query": [red, picture], "k": 1}) == [FLAG]


# -- life -----------------------------------------------------------------------------------------


def test_ready_only_after_a_warm_up(index: Path) -> None:
    encoder = ColourEncoder()
    with colour_engine(index, encoder) as engine:
        app = create_app(engine)
        cold = TestClient(app).get("/readyz")
        assert (cold.status_code, cold.json()["code"]) == (503, "not-ready")
        assert int(cold.headers["retry-after"]) >= 1
        assert TestClient(app).get("/healthz").json() == {"status": "ok"}
        with TestClient(app) as warm:
            assert warm.get("/readyz").json() == {"status": "ready"}
            assert encoder.images_embedded == encoder.texts_embedded == 1
        assert TestClient(app).get("/readyz").status_code == 503


def test_logs_hold_no_query(index: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with colour_client(index) as client:
        client.post("/v1/search/text-to-image", json={"text": "canarytext"})
        client.post(
            "/v1/search/text-to-image?canaryparameter=1", json={"text": 1, "canaryfield": 2}
        )
        client.get("/v1/items/canaryitem")
        client.get("/canarypath")
    ours = "\n".join(
        record.getMessage() for record in caplog.records if record.name == "diptych.service"
    )
    assert "/v1/search/text-to-image 200" in ours
    assert "/v1/items/{id:path} 404" in ours
    assert "canary" not in ours


def test_a_defect_is_a_problem_and_the_service_goes_on(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with colour_client(index) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "search_steps", lambda *_, **__: 1 / 0)
            broken = client.post("/v1/search/text-to-image", json={"text": "red"})
        assert (broken.status_code, broken.json()["code"]) == (500, "internal-error")
        assert "Zero" not in broken.text
        assert broken.headers["x-content-type-options"] == "nosniff"
        assert client.post("/v1/search/text-to-image", json={"text": "red"}).status_code == 200


# -- the page -------------------------------------------------------------------------------------


def test_the_page_and_the_documentation_ask_nobody_else(client: TestClient) -> None:
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert "http://" not in page.text
        assert "https://" not in page.text
        assert "unsafe" not in client.get("/").headers["content-security-policy"]
        for part in page.text.split('"'):
            if part.startswith("/static/"):
                asset = client.get(part)
                assert asset.status_code == 200
                assert asset.headers["content-type"].split(";")[0] in (
                    "text/javascript", "text/css", "image/svg+xml",
                )  # fmt: skip
                unchanged = client.get(part, headers={"if-none-match": asset.headers["etag"]})
                assert unchanged.status_code == 304


def test_the_page_has_no_inline_script_and_no_markup_from_text() -> None:
    import re

    import service

    folder = Path(service.__file__).parent / "page"
    html = (folder / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>|\son\w+=|style=", html)
    for script in folder.glob("*.js"):
        source = script.read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", source
        )
