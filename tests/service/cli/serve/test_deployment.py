"""`diptych serve` as an orchestrator, a proxy and an operator see it, as a real process."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from services import build_colours
from serving import COMMAND, environment, run, server

SLOW = COMMAND.replace(
    "    return ColourEncoder", "    import time; time.sleep(4)\n    return ColourEncoder"
)
# torchvision brings triton, whose bindings report what was never collected
WITH_TRITON = "import timm\n" + COMMAND


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_colours(tmp_path_factory.mktemp("deployed") / "colours.index")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def serving(
    code: str, log: Path, *arguments: str, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", *arguments],
            env={**environment(), **variables}, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def ask(port: int, method: str, path: str, body: str | None = None, **headers: str) -> Any:
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        line.request(method, path, body, headers)
        answer = line.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        line.close()


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_while_the_model_loads_probes_are_answered(index: Path, tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "log"
    options = ("--index", str(index), "--port", str(port), "--log-format", "json")
    with serving(SLOW, log, *options) as process:
        assert process.stdout is not None
        deadline = time.monotonic() + 60
        while True:
            try:
                status, headers, body = ask(port, "GET", "/readyz")
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        assert (status, json.loads(body)["code"]) == (503, "not-ready")
        assert int(headers["retry-after"]) >= 1
        assert headers["connection"] == "close"
        assert headers["x-content-type-options"] == "nosniff"
        assert ask(port, "GET", "/healthz")[0] == 200
        assert ask(port, "HEAD", "/healthz")[::2] == (200, b"")
        assert ask(port, "POST", "/v1/search", "{}")[0] == 503
        assert ask(port, "GET", "/healthz", Host="evil.example")[0] == 400
        assert process.stdout.readline().startswith("Serving")
        # not one answer is lost from then on
        assert ask(port, "GET", "/readyz")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    told = lines(log)
    assert any(line["event"].startswith("Loading") for line in told)
    refused = next(line for line in told if line.get("status") == 503)
    assert (refused["route"], refused["client"], refused["code"]) == (
        "/readyz", "127.0.0.1", "not-ready",
    )  # fmt: skip


def test_a_failure_while_loading_ends_the_process_with_its_line(index: Path) -> None:
    done = run("serve", "--index", index, "--port", "0", "--model", "missing")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "diptych: no such model: missing")


def test_sigterm_leaves_nothing_but_json_in_the_log(index: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = ("--index", str(index), "--port", "0", "--log-format", "json")
    with serving(WITH_TRITON, log, *options) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Serving")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert lines(log)[-1]["event"] == "stopping"


def test_head_is_answered_like_get_without_the_body(index: Path, tmp_path: Path) -> None:
    with server(index, tmp_path / "log") as (_, url):
        port = int(url.rpartition(":")[2])
        for path in (
            *("/", "/docs", "/static/app.js", "/healthz", "/readyz", "/v1/index", "/v1/indexes"),
            *("/v1/items/sky.png", "/v1/items/sky.png/thumbnail"),
        ):
            status, headers, body = ask(port, "GET", path)
            assert status == 200, path
            assert ask(port, "HEAD", path)[::2] == (200, b""), path
            assert ask(port, "HEAD", path)[1]["content-length"] == str(len(body)), path
        status, headers, body = ask(port, "HEAD", "/v1/search")
        assert (status, headers["allow"], body) == (405, "POST", b"")
        assert ask(port, "HEAD", "/v1/items/none.png")[0] == 404
        assert ask(port, "PUT", "/v1/index")[1]["allow"] == "GET, HEAD"
        # one connection, so that a body which should not be there would be seen
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        for method in ("HEAD", "GET", "HEAD", "GET"):
            line.request(method, "/v1/index")
            assert len(line.getresponse().read()) > (0 if method == "GET" else -1)
        line.close()


def test_options_stand_in_the_environment(index: Path, tmp_path: Path) -> None:
    variables = {
        "DIPTYCH_INDEX": f"one={index}{os.pathsep}two={index}",
        "DIPTYCH_PORT": "0",
        "DIPTYCH_LOG_FORMAT": "json",
        "DIPTYCH_ALLOWED_HOST": "photos.example pictures.example",
        "DIPTYCH_ROOT_PATH": "/photos",
        "DIPTYCH_JSON": "1",
    }
    with serving(COMMAND, tmp_path / "log", **variables) as process:
        assert process.stdout is not None
        document = ""
        while not document.endswith("\n}\n"):
            document += process.stdout.readline()
        told = json.loads(document)
        assert list(told["indexes"]) == ["one", "two"]
        port = int(told["url"].rpartition(":")[2])
        for host, status in (
            ("photos.example", 200),
            ("pictures.example:80", 200),
            ("x.example", 400),
        ):
            assert ask(port, "GET", "/photos/readyz", Host=host)[0] == status
    lines(tmp_path / "log")


def test_the_command_line_goes_before_the_environment_and_wrong_values_are_named(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPTYCH_POLL", "often")
    wrong = run("serve", "--index", index)
    assert wrong.returncode == 2
    assert "DIPTYCH_POLL" in wrong.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("DIPTYCH_POLL", "1")
        # what Kubernetes sets where a Service is called diptych
        monkeypatch.setenv("DIPTYCH_PORT", "tcp://10.0.0.1:8000")
        done = run("serve", "--index", index, "--port", port)
        assert f"port {port}" in done.stderr
        monkeypatch.setenv("DIPTYCH_HOST", "127.0.0.1")
        monkeypatch.setenv("DIPTYCH_PORT", port)
        assert f"port {port}" in run("serve", "--index", index).stderr


@pytest.mark.parametrize(
    "more", [["--root-path", "photos"], ["--allowed-host", "a.example:80"], ["--keep", "2"]]
)
def test_nonsense_is_refused(index: Path, more: list[str]) -> None:
    done = run("serve", "--index", index, "--port", "0", *more)
    assert (done.returncode, more[0] in done.stderr) == (2, True)


def test_a_refusal_says_who_asked_for_what(index: Path, tmp_path: Path) -> None:
    keys, log = tmp_path / "keys.json", tmp_path / "log"
    made = run("keys", "new", "--file", keys, "--scope", "read", "--json")
    key = json.loads(made.stdout)["key"]
    other = run("keys", "new", "--file", tmp_path / "other.json", "--scope", "read", "--json")
    stranger = json.loads(other.stdout)["key"]
    options = ("--keys", str(keys), "--log-format", "json", "--forwarded-allow-ips", "127.0.0.1")
    with server(index, log, *options) as (_, url):
        port = int(url.rpartition(":")[2])
        far = {"X-Forwarded-For": "203.0.113.9"}
        # with keys any name is answered: a page that got here by DNS rebinding has none
        assert ask(port, "GET", "/readyz", Host="photos.example", **far)[0] == 200
        assert ask(port, "GET", "/v1/items/sky.png", **far)[0] == 401
        assert ask(port, "GET", "/v1/index", Authorization=f"Bearer {stranger}", **far)[0] == 401
        may = {"Authorization": f"Bearer {key}", **far}
        assert ask(port, "PUT", "/v1/label-sets/canary", "{}", **may)[0] == 403
        assert ask(port, "GET", "/v1/items/canary.png", **may)[0] == 404
        assert ask(port, "GET", "/canary", **may)[0] == 404
        assert ask(port, "GET", "/v1/index", **may)[0] == 200
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(b"nonsense\r\n\r\n")
            assert b" 400 " in line.recv(4000)
    told = lines(log)
    answered = [line for line in told if line.get("status") == 200]
    assert not any("client" in line for line in answered), "who was answered is nobody's business"
    refused = [line for line in told if line.get("status", 200) >= 400]
    assert [(line.get("route"), line["code"], line["client"]) for line in refused] == [
        ("/v1/items/{id:path}", "unauthorized", "203.0.113.9"),
        ("/v1/index", "unauthorized", "203.0.113.9"),
        ("/v1/label-sets/{name}", "scope-missing", "203.0.113.9"),
        ("/v1/items/{id:path}", "not-found", "203.0.113.9"),
        ("-", "not-found", "203.0.113.9"),
        (None, "bad-request", "127.0.0.1"),
    ]
    assert refused[1]["claimed_key"] in stranger
    assert "key" not in refused[1]
    assert refused[2]["key"] in key
    text = log.read_text()
    assert "canary" not in text
    assert key not in text
    assert stranger not in text


def uris(url: str) -> list[str | None]:
    host, _, port = url.rpartition("//")[2].rpartition(":")
    found = []
    with contextlib.closing(http.client.HTTPConnection(host, int(port.strip("/")))) as line:
        for path in ("/v1/items/sky.png", "/v1/search/text-to-image", "/knn-service"):
            body = {"text": "blue", "k": 1} if "search" in path else {"text": "blue"}
            if "knn" in path:
                body |= {"modality": "image", "num_images": 1}
            text = None if "items" in path else json.dumps(body)
            headers = {"Content-Type": "application/json"}
            line.request("POST" if text else "GET", path, text, headers)
            told = json.load(line.getresponse())
            told = told["hits"][0] if "search" in path else told[0] if "knn" in path else told
            found.append(told.get("image_path" if "knn" in path else "uri"))
    return found


@pytest.mark.parametrize(
    ("arguments", "uri"),
    [
        ((), "file:///p/sky.png"),
        (("--allowed-host", "photos.example"), None),
        (("--root-path", "/photos"), None),
        (("--root-path", "/photos", "--file-paths", "full"), "file:///p/sky.png"),
        (("--file-paths", "/p"), "sky.png"),
    ],
)
def test_paths_of_this_machine_are_told_to_its_own_programs_only(
    index: Path, tmp_path: Path, arguments: tuple[str, ...], uri: str | None
) -> None:
    with server(index, tmp_path / "log", *arguments) as (_, url):
        path = uri and uri.removeprefix("file://")
        assert uris(url) == [uri, uri, path]
