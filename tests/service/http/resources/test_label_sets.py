"""Label sets over HTTP: stored, used, replaced, refused; and what they save."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import ColourEncoder, halves, solid
from starlette.testclient import TestClient

from service.engine.engine import Engine
from service.engine.label_set_store import MAX_SETS, LabelSetStore
from service.http.app import create_app
from service.http.resources.label_sets import LabelSetRequest

RED = base64.b64encode(solid("red")).decode()
GREY = base64.b64encode(halves("magenta", "cyan")).decode()


@contextmanager
def service(directory: Path | None, encoder: ColourEncoder | None = None) -> Iterator[TestClient]:
    store = None if directory is None else LabelSetStore(directory)
    engine = Engine(encoder or ColourEncoder(), label_sets=store)
    with TestClient(create_app(engine)) as client:
        yield client


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with service(tmp_path / "sets") as client:
        yield client


def put(client: TestClient, name: str = "colours", **body: Any) -> Any:
    return client.put(f"/v1/label-sets/{name}", json={"labels": ["red", "blue"], **body})


def ask(client: TestClient, *images: str, **body: Any) -> Any:
    return client.post("/v1/classify", json={"images": list(images) or [RED], **body})


def test_a_label_set_lives(client: TestClient) -> None:
    assert client.get("/v1/label-sets").json() == {"label_sets": [], "writable": True}
    created = put(client, template_set="plain", abstain=0.7)
    assert created.status_code == 201
    assert created.json()["labels"] == ["red", "blue"]
    assert client.get("/v1/label-sets/colours").json() == created.json()
    answer = ask(client, label_set="colours").json()
    assert answer["label_set"] == "colours"
    assert answer["abstain"] == 0.7
    assert answer["results"][0]["predictions"][0]["label"] == "red"
    assert put(client, labels=["green", "red", "blue"]).status_code == 200
    (entry,) = client.get("/v1/label-sets").json()["label_sets"]
    assert (entry["name"], entry["classes"], entry["error"]) == ("colours", 3, None)
    assert client.delete("/v1/label-sets/colours").status_code == 204
    for response in (
        client.get("/v1/label-sets/colours"),
        client.delete("/v1/label-sets/colours"),
        ask(client, label_set="colours"),
    ):
        assert response.status_code == 404
        assert response.json()["code"] == "label-set-not-found"


def test_a_thousand_labels_are_embedded_once_and_survive_a_restart(tmp_path: Path) -> None:
    labels = [f"red {number}" for number in range(999)] + ["blue"]
    encoder = ColourEncoder()
    with service(tmp_path / "sets", encoder) as client:
        before = encoder.texts_embedded
        assert put(client, labels=labels).status_code == 201
        assert encoder.texts_embedded == before + 5000  # five default templates
        for _ in range(3):
            assert ask(client, label_set="colours").status_code == 200
        assert encoder.texts_embedded == before + 5000
        assert encoder.images_embedded == 1 + 3  # one to warm up
    fresh = ColourEncoder()
    with service(tmp_path / "sets", fresh) as client:
        warm = fresh.texts_embedded
        answer = ask(client, label_set="colours", top_k=2)
        assert answer.status_code == 200
        assert fresh.texts_embedded == warm, "the class matrix came from the disk"
        assert len(answer.json()["results"][0]["predictions"]) == 2


def test_a_damaged_matrix_is_made_again(tmp_path: Path) -> None:
    with service(tmp_path / "sets") as client:
        put(client)
        expected = ask(client, label_set="colours").json()["results"]
    (kept,) = (tmp_path / "sets" / "matrices").iterdir()
    data = bytearray(kept.read_bytes())
    data[5] ^= 1
    kept.write_bytes(data)
    with service(tmp_path / "sets") as client:
        assert ask(client, label_set="colours").json()["results"] == expected


def test_another_encoder_uses_the_labels_but_not_what_was_learnt(tmp_path: Path) -> None:
    with service(tmp_path / "sets") as client:
        put(client, "plain")
        put(client, "learnt", temperature=2.0)
        put(client, "shown", examples={"red": [RED]})
    with service(tmp_path / "sets", ColourEncoder(name="others")) as client:
        assert ask(client, label_set="plain").status_code == 200
        for name in ("learnt", "shown"):
            refused = ask(client, label_set=name)
            assert (refused.status_code, refused.json()["code"]) == (409, "label-set-mismatch")
        put(client, "learnt", temperature=2.0)
        assert ask(client, label_set="learnt").status_code == 200


def test_temperature_softens(client: TestClient) -> None:
    sure = ask(client, labels=["red", "blue"]).json()["results"][0]["predictions"]
    soft = ask(client, labels=["red", "blue"], temperature=10).json()
    assert soft["temperature"] == 10
    assert sure[0]["probability"] > soft["results"][0]["predictions"][0]["probability"] > 0.5


def test_examples_teach_what_the_labels_do_not_say(client: TestClient) -> None:
    labels = ["apple", "sea"]
    plain = ask(client, labels=labels).json()["results"][0]["predictions"]
    assert plain[0]["probability"] == pytest.approx(0.5)
    shown = ask(client, labels=labels, examples={"sea": [RED]}).json()["results"][0]["predictions"]
    assert shown[0]["label"] == "sea"
    assert shown[0]["probability"] > 0.6
    stored = put(client, labels=labels, examples={"sea": [RED], "apple": []}).json()
    assert stored["examples"] == {"sea": 1}
    assert ask(client, label_set="colours").json()["results"][0]["predictions"] == shown


def test_trees_answer_at_any_level(client: TestClient) -> None:
    labels = ["warm/red", "warm/yellow", "cold/blue"]
    (result,) = ask(client, labels=labels).json()["results"]
    assert result["predictions"][0] | {"probability": 0} == {
        "label": "warm/red", "path": ["warm", "red"], "probability": 0,
    }  # fmt: skip
    chance = {p["label"]: p["probability"] for p in result["predictions"]}
    parents = {p["label"]: p["probability"] for p in result["parents"]}
    assert parents["warm"] == pytest.approx(chance["warm/red"] + chance["warm/yellow"])
    (top,) = ask(client, labels=labels, level=1).json()["results"]
    assert [p["label"] for p in top["predictions"]] == ["warm", "cold"]
    assert ask(client, labels=["red", "a/b"]).json()["results"][0]["parents"] is None
    assert ask(client, labels=["red", "a/b"], hierarchy=True).json()["results"][0]["parents"]
    assert ask(client, labels=["red", "blue"], level=1).status_code == 422


def test_abstaining_keeps_the_predictions(client: TestClient) -> None:
    # magenta and cyan are neither of the labels, nor anything among the background's words
    red, other = ask(client, RED, GREY, labels=["red", "blue"], abstain=True).json()["results"]
    assert (red["abstained"], other["abstained"]) == (False, True)
    assert red["background"] < 0.01
    assert other["background"] == pytest.approx(0.5)
    assert len(other["predictions"]) == 2
    silent = ask(client, RED, labels=["red", "blue"]).json()
    assert silent["abstain"] is None
    assert silent["results"][0]["background"] is None
    assert ask(client, RED, labels=["red", "blue"], abstain=0).json()["results"][0]["abstained"]
    put(client, abstain=True)
    assert ask(client, GREY, label_set="colours").json()["results"][0]["abstained"]
    calm = ask(client, GREY, label_set="colours", abstain=False).json()
    assert calm["results"][0]["background"] is None


def test_one_corrupt_picture_among_sixteen(client: TestClient) -> None:
    pictures = [RED] * 16
    pictures[7] = base64.b64encode(b"\x89PNG nonsense").decode()
    results = ask(client, *pictures, labels=["red", "blue"], abstain=True).json()["results"]
    assert [result["error"] is None for result in results] == [at != 7 for at in range(16)]
    assert results[7]["error"]["code"] == "image-undecodable"
    assert not results[7]["predictions"]


NAMES = ["", ".", "..", "A", "a b", "a/b", "../x", "a\\b", "-a", "x" * 65, "a.json", "ü", "a%00"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_refused(client: TestClient, tmp_path: Path, name: str) -> None:
    from urllib.parse import quote

    response = put(client, quote(name, safe=""))
    assert response.status_code in (404, 405, 422)
    written = {path.name for path in tmp_path.rglob("*")}
    assert not any(name.endswith(".json") for name in written)


WRONG: list[dict[str, Any]] = [
    {"labels": []},
    {"labels": ["red"]},
    {"labels": [str(number) for number in range(1001)]},
    {"labels": ["red", "red"]},
    {"labels": ["red", ""]},
    {"labels": ["x" * 10_000, "y" * 10_000]},
    {"labels": ["animal", "animal/cat"], "hierarchy": True},
    {"labels": ["a//b", "c/d"]},
    {"templates": ["no place"]},
    {"templates": ["{0.__class__}"]},
    {"templates": ["{c}"], "template_set": "plain"},
    {"template_set": "nobody's"},
    {"abstain": 1.1},
    {"abstain": "yes"},
    {"temperature": 0},
    {"temperature": 1e9},
    {"alpha": -1},
    {"beta": 1e9},
]


@pytest.mark.parametrize("body", WRONG, ids=range(len(WRONG)))
def test_what_does_not_fit_is_refused_and_not_stored(
    client: TestClient, body: dict[str, Any]
) -> None:
    for response in (put(client, **body), ask(client, **{"labels": ["red", "blue"], **body})):
        assert response.status_code == 422, response.text
        assert response.headers["content-type"] == "application/problem+json"
    assert client.get("/v1/label-sets").json()["label_sets"] == []


@pytest.mark.parametrize(
    "examples",
    [{"green": [RED]}, {"red": ["?"]}, {"red": [RED] * 257}, {"red": RED}, {"red": [1]}],
)
def test_examples_that_do_not_fit(client: TestClient, examples: Any) -> None:
    assert put(client, examples=examples).status_code == 422
    assert ask(client, labels=["red", "blue"], examples=examples).status_code == 422


@pytest.mark.parametrize(
    "more",
    [
        {"labels": ["a", "b"]},
        {"templates": ["{}"]},
        {"multi_label": True},
        {"temperature": 2.0},
        {"examples": {"red": [RED]}},
    ],
)
def test_a_label_set_brings_its_own(client: TestClient, more: dict[str, Any]) -> None:
    put(client)
    assert ask(client, label_set="colours", **more).status_code == 422
    assert ask(client).status_code == 422, "neither labels nor a label set"


def test_a_form_names_a_label_set_and_a_threshold(client: TestClient) -> None:
    put(client)
    for abstain, threshold in (("true", 0.5), ("0.25", 0.25), ("1", 1.0)):
        answer = client.post(
            "/v1/classify",
            files={"image": ("x", solid("red"))},
            data={"label_set": "colours", "abstain": abstain},
        )
        assert answer.json()["abstain"] == threshold, answer.text


def test_a_damaged_set_is_named_and_can_be_replaced(client: TestClient, tmp_path: Path) -> None:
    put(client, "good")
    put(client, "bad")
    path = tmp_path / "sets" / "bad.json"
    for content in (
        b"", b"[]", b"\xff", b"9" * 100, path.read_bytes()[:-40],
        path.read_bytes().replace(b'"red"', b'"rod"'),
    ):  # fmt: skip
        path.write_bytes(content)
        refused = ask(client, label_set="bad")
        assert (refused.status_code, refused.json()["code"]) == (500, "label-set-damaged")
        entries = client.get("/v1/label-sets").json()["label_sets"]
        assert {e["name"]: e["error"] and e["error"]["code"] for e in entries} == {
            "bad": "label-set-damaged",
            "good": None,
        }
    assert put(client, "bad").status_code == 200
    assert ask(client, label_set="bad").status_code == 200


def test_a_link_or_a_folder_is_no_label_set(client: TestClient, tmp_path: Path) -> None:
    put(client)
    sets = tmp_path / "sets"
    (sets / "link.json").symlink_to(sets / "colours.json")
    (sets / "folder.json").mkdir()
    for name in ("link", "folder"):
        assert client.get(f"/v1/label-sets/{name}").json()["code"] == "label-set-damaged"


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for directory in (None, tmp_path / "file" / "sets"):
        with service(directory) as client:
            refused = put(client)
            assert (refused.status_code, refused.json()["code"]) == (403, "label-sets-read-only")
            assert client.get("/v1/label-sets").json()["writable"] is False
            assert client.delete("/v1/label-sets/x").status_code in (403, 404)
            assert client.get("/v1/label-sets/x").status_code == 404


def test_their_number_is_bounded(client: TestClient, tmp_path: Path) -> None:
    put(client)
    stored = (tmp_path / "sets" / "colours.json").read_bytes()
    for number in range(MAX_SETS - 1):
        (tmp_path / "sets" / f"n{number}.json").write_bytes(stored)
    assert put(client, "one-more").json()["code"] == "label-sets-full"
    assert put(client).status_code == 200, "replacing is always possible"
    assert client.delete("/v1/label-sets/n0").status_code == 204
    assert put(client, "one-more").status_code == 201


def test_the_documented_examples_run(client: TestClient) -> None:
    for body in LabelSetRequest.model_config["json_schema_extra"]["examples"]:  # type: ignore[index]
        stored = client.put("/v1/label-sets/example", content=json.dumps(body))
        assert stored.status_code == 415, "a body says that it is JSON"
        assert client.put("/v1/label-sets/example", json=body).status_code in (200, 201)
        assert ask(client, label_set="example").status_code == 200


def test_template_sets_are_listed_and_every_one_works(client: TestClient) -> None:
    sets = client.get("/v1/template-sets").json()["template_sets"]
    assert {"default", "food", "pets", "satellite", "zh", "zh-food"} <= {s["name"] for s in sets}
    for entry in sets:
        answer = ask(client, labels=["red", "blue"], template_set=entry["name"], abstain=True)
        assert answer.json()["results"][0]["predictions"][0]["label"] == "red", entry["name"]
