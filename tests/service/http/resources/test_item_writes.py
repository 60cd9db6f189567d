"""Items over HTTP: put, replaced, deleted, seen at once, refused, and by whom."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fakes import ColourEncoder, solid
from indexes import NAMES
from keyed import Keys, bearer
from PIL import Image
from services import APPLE, SKY, build_colours, colour_client
from starlette.testclient import TestClient
from writable import writable_client

from indexer.format.manifest import read_manifest
from indexer.maintain.verify import verify_index
from indexer.store.writer import IndexWriter

COLOUR_CLI = Path(__file__).resolve().parents[3] / "support" / "colour_cli.py"
YELLOW = base64.b64encode(solid("yellow")).decode()
CYAN = base64.b64encode(solid("cyan")).decode()


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return build_colours(tmp_path / "colours.index")


@pytest.fixture
def client(index: Path) -> Iterator[TestClient]:
    with writable_client(index) as client:
        yield client


def put(client: TestClient, item_id: str, **body: Any) -> Any:
    return client.put(f"/v1/items/{item_id}", json=body)


def found(client: TestClient, text: str, **more: Any) -> list[str]:
    answer = client.post("/v1/search", json={"query": {"text": text}, "min_score": 0.9, **more})
    assert answer.status_code == 200, answer.text
    return [hit["id"] for hit in answer.json()["hits"]]


def code_of(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    return str(response.json()["code"])


def test_a_put_is_found_by_the_next_search_and_replaced_by_the_next_put(
    client: TestClient, index: Path
) -> None:
    version = read_manifest(index).version
    assert found(client, "yellow") == []
    new = put(client, "sun.png", image=YELLOW, texts={"en": ["yellow sun"]},
              label="star", attributes={"year": 2001})  # fmt: skip
    assert new.status_code == 201
    assert new.json() == {
        "id": "sun.png",
        "outcome": "added",
        "texts": ["sun.png#en/0"],
        "refused": [],
        "warnings": [],
        "index_version": version + 1,
    }
    assert new.headers["Index-Version"] == str(version + 1)
    assert found(client, "yellow") == ["sun.png"]
    assert found(client, "yellow", target="texts") == ["sun.png#en/0"]
    assert found(client, "yellow", filter={"field": "year", "eq": 2001}) == ["sun.png"]
    item = client.get("/v1/items/sun.png").json()
    assert (item["label"], item["uri"]) == ("star", None)
    assert client.get(item["thumbnail_url"]).headers["content-type"] == "image/jpeg"
    # replaced whole: picture, texts, label and attributes
    again = put(client, "sun.png", image=CYAN, uri="https://example.org/sun.png")
    assert (again.status_code, again.json()["outcome"]) == (200, "updated")
    assert found(client, "yellow") == []
    assert found(client, "yellow", target="texts") == []
    assert found(client, "cyan") == ["sun.png"]
    item = client.get("/v1/items/sun.png").json()
    assert (item["label"], item["attributes"]) == (None, {})
    assert item["uri"] == "https://example.org/sun.png"
    # the same once more writes nothing
    same = put(client, "sun.png", image=CYAN, uri="https://example.org/sun.png")
    assert (same.status_code, same.json()["outcome"]) == (200, "unchanged")
    assert read_manifest(index).version == version + 2
    assert verify_index(index).ok


def test_a_delete_is_gone_at_once_and_for_ever(client: TestClient, index: Path) -> None:
    assert found(client, "red") == [APPLE]
    path = client.get(f"/v1/items/{APPLE.replace('/', '%2F')}").json()["thumbnail_url"]
    gone = client.delete("/v1/items/fruit%2Fred%20apple.png")
    assert (gone.status_code, gone.content) == (204, b"")
    assert gone.headers["Index-Version"] == str(read_manifest(index).version)
    assert found(client, "red") == []
    assert found(client, "red", target="texts") == []
    assert client.get(path).status_code == 404
    # as gone as asked for; what never was, was never asked for
    assert client.delete("/v1/items/fruit%2Fred%20apple.png").status_code == 204
    assert code_of(client.delete("/v1/items/nobody"), 404) == "not-found"
    build_colours(index)  # its source again, as a nightly job would
    with writable_client(index) as fresh:
        assert found(fresh, "red") == []
        # by its id it may come back
        assert put(fresh, "fruit%2Fred%20apple.png", image=YELLOW).status_code == 201
        assert found(fresh, "yellow") == [APPLE]


def test_a_text_goes_alone_and_its_picture_stays(client: TestClient) -> None:
    assert client.delete("/v1/items/sky.png%23en%2F0").status_code == 204
    assert found(client, "blue", target="texts") == []
    assert found(client, "blue") == [SKY]
    assert client.get("/v1/items/sky.png").json()["captions"] == []


@pytest.mark.parametrize("form", ["raw", "multipart", "data-uri", "text-only", "url-ish-id"])
def test_every_form_of_a_body(client: TestClient, form: str) -> None:
    picture = solid("yellow")
    if form == "raw":
        response = client.put("/v1/items/x?text=yellow&text=cyan&language=en&label=l",
                              content=picture, headers={"Content-Type": "image/png"})  # fmt: skip
    elif form == "multipart":
        data = {"text": "yellow", "attributes": '{"year": 7}'}
        response = client.put("/v1/items/x", files={"image": ("n", picture)}, data=data)
    elif form == "data-uri":
        response = put(client, "x", image="data:image/png;base64," + YELLOW, text="yellow")
    elif form == "text-only":
        response = put(client, "x", text="yellow")
    else:
        response = put(client, "a%2Fthumbnail", image=YELLOW, text="yellow")
    assert response.status_code == 201, response.text
    written = response.json()
    assert found(client, "yellow", target="texts") == written["texts"][:1]
    assert found(client, "yellow") == ([] if form == "text-only" else [written["id"]])
    assert len(written["texts"]) == (2 if form == "raw" else 1)


def test_where_a_picture_was_taken_is_not_kept(client: TestClient, index: Path) -> None:
    picture = Image.new("RGB", (16, 16), (255, 255, 0))
    exif = picture.getexif()
    exif[0x010F] = "CANARY-CAMERA"
    exif.get_ifd(0x8825)[1] = "N"
    out = BytesIO()
    picture.save(out, "JPEG", exif=exif)
    assert b"CANARY-CAMERA" in out.getvalue()
    sent = {"Content-Type": "image/jpeg"}
    assert client.put("/v1/items/x", content=out.getvalue(), headers=sent).status_code == 201
    assert b"CANARY" not in client.get("/v1/items/x/thumbnail").content
    assert all(
        b"CANARY-CAMERA" not in path.read_bytes() for path in index.rglob("*") if path.is_file()
    )


def test_what_cannot_be_stored_is_a_problem_and_changes_nothing(
    client: TestClient, index: Path
) -> None:
    version = read_manifest(index).version
    large = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"x" * 64).decode()
    cases: list[tuple[int, str, dict[str, Any]]] = [
        (422, "invalid-request", {}),
        (422, "invalid-request", {"label": "only"}),
        (422, "invalid-request", {"image": YELLOW, "surprise": 1}),
        (422, "invalid-request", {"text": "a", "texts": {"en": ["b"]}}),
        (422, "invalid-request", {"image": YELLOW, "uri": "javascript:alert(1)"}),
        (422, "invalid-request", {"image": YELLOW, "uri": "file:///etc/passwd"}),
        (422, "invalid-request", {"text": "a", "attributes": [1]}),
        (422, "invalid-text", {"text": "  "}),
        (422, "invalid-text", {"texts": {"en": ["x" * 10_001]}}),
        (422, "image-undecodable", {"image": "!!"}),
        (422, "image-undecodable", {"image": large}),
        (422, "url-not-allowed", {"image_url": "http://example.org/a.png"}),
    ]  # fmt: skip
    for status, code, body in cases:
        assert code_of(put(client, "bad", **body), status) == code, body
    assert code_of(put(client, "x" * 2049, text="red"), 422) == "invalid-request"
    assert code_of(client.put("/v1/items/bad", content=b"x"), 415) == "unsupported-media-type"
    raw = client.put("/v1/items/bad?label=a&label=b", content=solid("red"),
                     headers={"Content-Type": "image/png"})  # fmt: skip
    assert code_of(raw, 422) == "invalid-request"
    assert read_manifest(index).version == version
    assert client.get("/v1/items/bad").status_code == 404


def test_a_field_of_another_type_is_told_and_the_item_stored(client: TestClient) -> None:
    new = put(client, "x", image=YELLOW, attributes={"year": "soon"})
    assert new.status_code == 201
    assert new.json()["refused"] == []
    (warning,) = new.json()["warnings"]
    assert (warning["id"], warning["code"]) == ("x", "invalid-field")


def test_a_hundred_in_one_commit(client: TestClient, index: Path) -> None:
    version = read_manifest(index).version
    items: list[dict[str, Any]] = [{"id": f"n{i}", "image": YELLOW} for i in range(98)]
    items += [{"id": "bad", "image": "!!"}, {"id": "n0", "image": CYAN}]
    answer = client.post("/v1/items", json={"items": items})
    assert answer.status_code == 200, answer.text
    written = answer.json()
    assert (written["added"], written["index_version"]) == (98, version + 1)
    assert written["ids"] == [f"n{i}" for i in range(98)]
    assert {(one["id"], one["code"]) for one in written["refused"]} == {
        ("bad", "image-undecodable"),
        ("n0", "duplicate-id"),
    }
    assert len(found(client, "yellow", k=200)) == 98
    more = client.post("/v1/items", json={"items": [{"id": "a", "text": "b"}] * 101})
    assert code_of(more, 422) == "invalid-request"


def test_eight_writers_at_once_all_get_through(client: TestClient, index: Path) -> None:
    statuses: list[int] = []

    def work(name: str) -> None:
        for number in range(3):
            answer = put(client, f"{name}-{number}", image=YELLOW, text=f"{name} {number}")
            statuses.append(answer.status_code)
            assert f"{name}-{number}" in found(client, "yellow", k=100)

    threads = [threading.Thread(target=work, args=(name,)) for name in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [201] * 24
    assert len(found(client, "yellow", k=100)) == 24
    assert verify_index(index).ok


def test_another_program_that_writes_is_waited_for_and_then_told_of(index: Path) -> None:
    with writable_client(index, patience_s=0.05) as client:
        with IndexWriter(index, ColourEncoder().fingerprint):
            busy = put(client, "x", image=YELLOW)
            assert code_of(busy, 503) == "index-locked"
            assert busy.headers["Retry-After"].isdigit()
            assert code_of(client.delete("/v1/items/sky.png"), 503) == "index-locked"
            assert found(client, "blue") == [SKY]
        assert put(client, "x", image=YELLOW).status_code == 201


def test_a_service_that_is_not_writable_says_so(index: Path) -> None:
    with colour_client(index) as client:
        for response in (
            put(client, "x", image=YELLOW),
            client.delete("/v1/items/sky.png"),
            client.post("/v1/items", json={"items": [{"id": "x", "image": YELLOW}]}),
        ):
            assert code_of(response, 403) == "read-only"


def test_only_keys_that_may_write_do(index: Path, tmp_path: Path) -> None:
    keys = Keys.make(tmp_path / "keys.json")
    with writable_client(index, keys.settings(poll_s=0)) as client:
        for method, path, body in (
            ("PUT", "/v1/items/x", {"image": YELLOW}),
            ("POST", "/v1/items", {"items": [{"id": "y", "image": YELLOW}]}),
            ("DELETE", "/v1/items/sky.png", None),
        ):
            for key, status, code in (
                ("", 401, "unauthorized"),
                (keys.expired, 401, "unauthorized"),
                (keys.reader, 403, "scope-missing"),
            ):
                headers = bearer(key) if key else {}
                assert (
                    code_of(client.request(method, path, json=body, headers=headers), status)
                    == code
                )
            answer = client.request(method, path, json=body, headers=bearer(keys.scribe))
            assert answer.status_code in (200, 201, 204)


def test_options_in_the_address_of_json_are_refused_not_ignored(client: TestClient) -> None:
    refused = client.put("/v1/items/x", params={"label": "star"}, json={"text": "a note"})
    assert code_of(refused, 422) == "invalid-request"
    named = client.put("/v1/items/x", params={"index": "default"}, json={"text": "a note"})
    assert named.status_code == 201, named.text


def test_what_was_put_as_texts_alone_is_read_by_its_id(client: TestClient) -> None:
    new = put(client, "note", texts={"en": ["a cyan note", "another"], "zh": ["笔记"]})
    assert new.status_code == 201
    item = client.get("/v1/items/note").json()
    assert (item["id"], item["modality"], item["text"]) == ("note", "text", "a cyan note")
    assert [one["id"] for one in item["captions"]] == new.json()["texts"]
    assert item["thumbnail_url"] is None
    assert found(client, "cyan", target="texts") == ["note#en/0"]
    like = client.post("/v1/search", json={"query": {"id": "note"}, "target": "texts", "k": 50})
    assert like.status_code == 200, like.text
    assert "note#en/0" not in [hit["id"] for hit in like.json()["hits"]]
    assert client.delete("/v1/items/note#en".replace("#", "%23")).status_code == 404
    assert client.delete("/v1/items/note").status_code == 204
    assert client.get("/v1/items/note").status_code == 404


@pytest.mark.parametrize(
    "item_id", [".", "..", "a/../b", "./a", "a/.", "/a", "//a", "a\nb", "a\x7f", "a\u2028b", "\x1b"]
)
def test_an_id_that_no_link_leads_to_is_refused(client: TestClient, item_id: str) -> None:
    answer = client.post("/v1/items", json={"items": [{"id": item_id, "text": "a note"}]})
    assert answer.status_code == 200
    assert [one["code"] for one in answer.json()["refused"]] == ["invalid-request"]
    assert answer.json()["ids"] == []
    path = quote(item_id, safe="").replace(".", "%2E")
    # what has a line break is no route's at all
    assert put(client, path, text="a note").status_code == (404 if "\n" in item_id else 422)


@pytest.mark.parametrize("item_id", ["...", ".a", "a..b", "http://a.example//b.jpg", "红 #?%"])
def test_an_id_that_only_looks_odd_is_read_again(client: TestClient, item_id: str) -> None:
    path = quote(item_id, safe="")
    assert put(client, path, text="a note").status_code == 201
    assert client.get(f"/v1/items/{path}").json()["id"] == item_id


def test_a_language_is_said_alike_in_json_and_in_a_form(client: TestClient) -> None:
    put(client, "json", text="une note", language="fr")
    client.put("/v1/items/form", params={"text": "une note", "language": "fr"},
               content=solid("cyan"), headers={"Content-Type": "image/png"})  # fmt: skip
    assert client.get("/v1/items/json").json()["language"] == "fr"
    assert client.get("/v1/items/form").json()["language"] == "fr"
    both = put(client, "x", texts={"en": ["a note"]}, language="fr")
    assert code_of(both, 422) == "invalid-request"


def test_attributes_that_no_filter_can_ask_for_are_named(client: TestClient) -> None:
    odd = {"year": 2020, "mood": "calm", "camera": "X1", "place": {"city": "Y"}}
    answer = put(client, "x", image=YELLOW, attributes=odd).json()
    (warning,) = answer["warnings"]
    assert (warning["id"], warning["code"]) == ("x", "not-filterable")
    assert warning["detail"].startswith("camera, place:")
    assert "--filterable" in warning["detail"]
    items = [{"id": f"n{n}", "text": "a", "attributes": {"camera": n}} for n in range(3)]
    items += [{"id": "bad", "image": "!!", "attributes": {"lens": 1}}]
    many = client.post("/v1/items", json={"items": items}).json()
    (warning,) = many["warnings"]
    assert (warning["id"], warning["detail"][:7]) == (None, "camera:")
    assert [one["id"] for one in many["refused"]] == ["bad"]


def test_a_problem_says_its_reason_where_openais_clients_look(client: TestClient) -> None:
    body = {"input": "red", "dimensions": 3}
    said = client.post("/v1/embeddings", json=body).json()
    assert said["error"] == {
        "message": said["detail"], "type": "invalid_request_error", "code": said["code"],
        "param": "#/dimensions",
    }  # fmt: skip
    for answer, kind in (
        (client.get("/v1/models/none"), "not_found_error"),
        (client.get("/nowhere"), "not_found_error"),
        (client.put("/v1/embeddings"), "invalid_request_error"),
        (client.post("/v1/embeddings", content="{"), "invalid_request_error"),
    ):
        error = answer.json()["error"]
        assert error["type"] == kind
        assert error["code"] == answer.json()["code"]
        assert answer.json()["detail"] in error["message"]


def test_writes_succeed_while_the_command_line_adds(
    client: TestClient, index: Path, tmp_path: Path
) -> None:
    """Two `index add` are held in the middle of embedding; nobody waits for anybody."""
    go, adds = tmp_path / "go", []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").write_bytes(solid("white"))
        (tmp_path / name / "shared.png").write_bytes(solid("black"))
        command = [sys.executable, str(COLOUR_CLI), "index", "add", str(tmp_path / name)]
        command += ["--index", str(index), "--batch-size", "1", "--workers", "0"]
        log = {"COLOUR_LOG": str(tmp_path / f"{name}.log"), "COLOUR_WAIT": str(go)}
        adds.append(subprocess.Popen(command, env={**os.environ, **log}, stderr=subprocess.PIPE))
    try:
        for name, add in zip(("one", "two"), adds, strict=True):
            while not (tmp_path / f"{name}.log").exists():
                assert add.poll() is None, add.stderr and add.stderr.read()
                time.sleep(0.02)
        for number in range(5):
            assert put(client, f"put{number}.png", image=YELLOW).status_code == 201
        assert put(client, "one.png", image=CYAN).status_code == 201  # before it is added
        assert client.delete("/v1/items/put4.png").status_code == 204
        assert [add.poll() for add in adds] == [None, None]
    finally:
        go.touch()
        errors = [add.communicate(timeout=60)[1].decode() for add in adds]
    assert "1 records were written or deleted by others" in errors[0]
    assert adds[1].returncode == 0, errors[1]
    report = verify_index(index, deep=True)
    assert report.problems == []
    assert put(client, "last.png", image=CYAN).status_code == 201  # makes the service look again
    assert sorted(found(client, "yellow")) == [f"put{number}.png" for number in range(4)]
    assert "two.png" in found(client, "white")
    assert "one.png" in found(client, "cyan")
    assert "shared.png" in found(client, "black")
