"""`Idempotency-Key` over HTTP: repeated, refused, concurrent, and after a crash."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.client import RemoteDisconnected
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from fakes import solid
from keyed import Keys, bearer
from services import build_colours
from serving import server
from starlette.testclient import TestClient
from writable import writable_client

from indexer.format.manifest import read_manifest
from indexer.maintain.edit import Editor

YELLOW = base64.b64encode(solid("yellow")).decode()


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return build_colours(tmp_path / "colours.index")


@pytest.fixture
def client(index: Path) -> Iterator[TestClient]:
    with writable_client(index) as client:
        yield client


def put(client: TestClient, key: str, item_id: str = "sun", **more: Any) -> Any:
    headers = {"Idempotency-Key": key, **more.pop("headers", {})}
    return client.put(f"/v1/items/{item_id}", json={"image": YELLOW, **more}, headers=headers)


def test_a_repetition_gets_the_first_answer_and_does_nothing(
    client: TestClient, index: Path
) -> None:
    first = put(client, "k1")
    assert first.status_code == 201
    assert "Idempotency-Replayed" not in first.headers
    assert client.delete("/v1/items/sun").status_code == 204
    version = read_manifest(index).version
    again = put(client, "k1")
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Index-Version"] == first.headers["Index-Version"]
    assert again.headers["X-Request-Id"] != first.headers["X-Request-Id"]
    assert again.headers["X-Content-Type-Options"] == "nosniff"
    assert read_manifest(index).version == version, "it was not put a second time"
    assert client.get("/v1/items/sun").status_code == 404


def test_another_request_under_the_key_is_refused(client: TestClient) -> None:
    assert put(client, "k1").status_code == 201
    for response in (
        put(client, "k1", label="other"),
        put(client, "k1", "other"),
        client.delete("/v1/items/sun", headers={"Idempotency-Key": "k1"}),
    ):
        assert response.status_code == 422
        assert response.json()["code"] == "idempotency-key-reused"
    # a refusal is an answer too
    bad = client.put("/v1/items/x", json={}, headers={"Idempotency-Key": "k2"})
    assert bad.status_code == 422
    repeated = client.put("/v1/items/x", json={}, headers={"Idempotency-Key": "k2"})
    assert (repeated.content, repeated.headers["Idempotency-Replayed"]) == (bad.content, "true")


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "caf\u00e9"])
def test_a_key_that_is_none_is_refused(client: TestClient, key: str) -> None:
    headers = [(b"Idempotency-Key", key.encode("latin-1"))]
    response = client.put("/v1/items/x", json={"image": YELLOW}, headers=headers)
    assert response.status_code == 422
    assert response.json()["code"] == "invalid-request"


def test_a_second_one_while_the_first_runs(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, go_on = threading.Event(), threading.Event()
    really = Editor.put

    def held(*arguments: Any, **more: Any) -> Any:
        running.set()
        assert go_on.wait(20)
        return really(*arguments, **more)

    monkeypatch.setattr(Editor, "put", held)
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.append(put(client, "k1")))
    first.start()
    assert running.wait(20)
    second = put(client, "k1")
    assert (second.status_code, second.json()["code"]) == (409, "idempotency-key-in-use")
    assert second.headers["Retry-After"] == "1"
    go_on.set()
    first.join()
    assert answers[0].status_code == 201
    assert put(client, "k1").content == answers[0].content


def test_two_callers_may_choose_the_same_key(index: Path, tmp_path: Path) -> None:
    keys = Keys.make(tmp_path / "keys.json")
    with writable_client(index, keys.settings(poll_s=0)) as client:
        assert put(client, "k1", headers=bearer(keys.writer)).status_code == 201
        other = put(client, "k1", "other", headers=bearer(keys.scribe))
        assert other.status_code == 201
        assert "Idempotency-Replayed" not in other.headers


def test_a_label_set_is_put_once_too(client: TestClient) -> None:
    # kept nowhere here: the refusal is what is repeated
    body = {"labels": ["a", "b"]}
    headers = {"Idempotency-Key": "k"}
    first = client.put("/v1/label-sets/x", json=body, headers=headers)
    again = client.put("/v1/label-sets/x", json=body, headers=headers)
    assert again.content == first.content
    assert again.headers["Idempotency-Replayed"] == "true"


KILLED = """
import os, signal
from service.engine.item_writer import ItemWriter
really = ItemWriter._take_up
def dies(self):
    os.kill(os.getpid(), signal.SIGKILL)
ItemWriter._take_up = dies
"""


def send(url: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Idempotency-Key": "k1"}
    try:
        with urlopen(Request(url + path, data, headers, method=method), timeout=20) as response:
            text = response.read()
            return response.status, json.loads(text) if text else None
    except HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_crash_between_the_commit_and_the_answer(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import serving

    version = read_manifest(index).version
    with monkeypatch.context() as patch:
        patch.setattr(serving, "COMMAND", KILLED + serving.COMMAND)
        with server(index, tmp_path / "log", "--writable") as (process, url):
            with pytest.raises((ConnectionError, RemoteDisconnected)):
                send(url, "PUT", "/v1/items/sun", {"image": YELLOW})
            assert process.wait(20) == -signal.SIGKILL
    assert read_manifest(index).version == version + 1, "it had been committed"
    with server(index, tmp_path / "log", "--writable") as (process, url):
        status, written = send(url, "PUT", "/v1/items/sun", {"image": YELLOW})
        assert (status, written["outcome"]) == (200, "unchanged")
        assert read_manifest(index).version == version + 1, "and is not written twice"
        status, answer = send(url, "POST", "/v1/search", {"query": {"text": "yellow"}, "k": 1})
        assert (status, answer["hits"][0]["id"]) == (200, "sun")


def test_a_public_address_is_not_writable_without_keys(index: Path) -> None:
    arguments = ("serve", "--index", index, "--port", "0", "--host", "0.0.0.0", "--writable")
    from serving import run

    found: subprocess.CompletedProcess[str] = run(*arguments, "--insecure-public")
    assert found.returncode == 2
    assert "without --keys everyone there could change the index" in found.stderr
