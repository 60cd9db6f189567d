"""`diptych serve`, `search` and `classify` as real processes: answers, exit codes, errors."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import threading
from email.message import Message
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import pytest
from fakes import halves, solid
from services import APPLE, FLAG, build_colours
from serving import run, server

from indexer.store.history import history


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_colours(tmp_path_factory.mktemp("cli") / "colours.index")


class Reply(NamedTuple):
    status: int
    headers: Message
    document: Any


def ask(url: str, text: str) -> Reply:
    body = json.dumps({"text": text, "k": 1}).encode()
    request = Request(url + "/v1/search/text-to-image", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=20) as response:
        return Reply(response.status, response.headers, json.load(response))


def wire(url: str, data: bytes) -> bytes:
    """Send bytes as they are; everything until the service hangs up."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as raw:
        raw.sendall(data)
        received = b""
        while chunk := raw.recv(65536):
            received += chunk
        return received


def test_serve_answers_and_stops_cleanly(index: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with server(index, log) as (process, url):
        assert urlsplit(url).hostname == "127.0.0.1"
        reply = ask(url, "canarycolour red")
        assert reply.status == 200
        assert reply.headers["Server"] is None
        assert reply.headers["Index-Version"] == "1"
        assert reply.document["hits"][0]["id"] == APPLE
        parts = urlsplit(url)
        idle = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
        idle.request("GET", "/readyz?canaryparameter")
        with idle.getresponse() as ready:
            assert ready.status == 200
            ready.read()
        # an idle keep-alive connection must not hold up the stop
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        idle.close()
    written = log.read_text()
    assert "/v1/search/text-to-image 200" in written
    assert "canary" not in written
    assert "Traceback" not in written


def test_label_sets_outlive_the_killed_process(index: Path, tmp_path: Path) -> None:
    copy = tmp_path / "photos.index"
    shutil.copytree(index, copy)
    body = json.dumps({"labels": ["red", "blue"], "abstain": 0.75}).encode()
    with server(copy, tmp_path / "log") as (_, url):
        put = Request(
            url + "/v1/label-sets/mine", body, {"Content-Type": "application/json"}, method="PUT"
        )
        with urlopen(put, timeout=20) as response:
            assert response.status == 201
    # leaving the block is SIGKILL
    assert (tmp_path / "photos.index.label-sets" / "mine.json").is_file()
    with (
        server(copy, tmp_path / "log") as (_, url),
        urlopen(url + "/v1/label-sets/mine", timeout=20) as response,
    ):
        assert json.load(response)["abstain"] == 0.75
    elsewhere = tmp_path / "empty"
    with (
        server(copy, tmp_path / "log", "--label-sets", str(elsewhere)) as (_, url),
        urlopen(url + "/v1/label-sets", timeout=20) as response,
    ):
        assert json.load(response) == {"label_sets": [], "writable": True}
        assert not elsewhere.exists(), "made by the first that is stored"


def test_a_request_in_flight_is_answered_before_the_stop(index: Path, tmp_path: Path) -> None:
    with server(index, tmp_path / "log") as (process, url):
        parts = urlsplit(url)
        body = json.dumps({"text": "red", "k": 1}).encode()
        with socket.create_connection((parts.hostname, parts.port), timeout=20) as raw:
            raw.sendall(
                b"POST /v1/search/text-to-image HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            )
            threading.Event().wait(0.5)  # the request has begun
            process.send_signal(signal.SIGTERM)
            threading.Event().wait(0.5)
            raw.sendall(body)
            assert raw.recv(65536).startswith(b"HTTP/1.1 200")
        assert process.wait(timeout=20) == 0


def test_what_is_not_http_gets_a_problem_too(index: Path, tmp_path: Path) -> None:
    with server(index, tmp_path / "log") as (_, url):
        for garbage in (
            b"\x16\x03\x01\x00\xa5\x01\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",  # no Host
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
            b"Content-Length: 2\r\n\r\nx",
        ):
            head, _, body = wire(url, garbage).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400")
            assert b"application/problem+json" in head
            assert json.loads(body)["status"] == 400
        for request, status in (
            (b"GET /" + b"a" * 16_000 + b" HTTP/1.1\r\n", b"414"),
            (b"GET / HTTP/1.1\r\nX: " + b"a" * 65_000 + b"\r\n", b"431"),
            (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 1_000, b"431"),
            (b"TRACE / HTTP/1.1\r\n", b"405"),
            (b"CONNECT a:1 HTTP/1.1\r\n", b"405"),
        ):
            tail = b"Host: localhost\r\nConnection: close\r\n\r\n"
            assert wire(url, request + tail).split(b" ", 2)[1] == status
        rebinding = b"GET /v1/index HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        assert b"bad-host" in wire(url, rebinding)
        assert ask(url, "red").status == 200, "it still serves"


# -- refusals before anything is loaded -----------------------------------------------------------


def refused(*arguments: str | Path, code: int, says: str) -> None:
    begun = perf_counter()
    done = run(*arguments)
    assert perf_counter() - begun < 10
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_writes_over_http_leave_as_many_versions_as_asked(index: Path, tmp_path: Path) -> None:
    out = tmp_path / "own.index"
    shutil.copytree(index, out)
    with server(out, tmp_path / "log", "--writable", "--keep", "2") as (_, url):
        for colour in ("red", "green", "blue"):
            name = ask(url, colour).document["hits"][0]["id"]
            request = Request(f"{url}/v1/items/{quote(name, safe='')}", method="DELETE")
            with urlopen(request, timeout=20) as response:
                version = int(response.headers["Index-Version"])
    assert [one.version for one in history(out)] == [version, version - 1]


def test_serve_refuses_early(index: Path, tmp_path: Path) -> None:
    serve = ("serve", "--port", "0", "--index")
    refused(*serve, tmp_path / "nothing", code=2, says="no index")
    refused(*serve, index, "--host", "0.0.0.0", code=2, says="--keys")
    refused(*serve, index, "--host", "no.such.host.invalid", code=2, says="not an address")
    refused(*serve, index, "--model", "others", code=4, says="colours")
    refused(*serve, index, "--model", "missing", code=2, says="no such model")


def test_serve_says_that_the_port_is_busy(index: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        refused("serve", "--index", index, "--port", str(port), code=2, says=f"port {port}")


def test_serve_refuses_a_damaged_index_before_it_loads_a_model(index: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.index"
    shutil.copytree(index, damaged)
    vectors = next(damaged.glob("segments/*/vectors.npy"))
    data = bytearray(vectors.read_bytes())
    data[-1] ^= 1
    vectors.chmod(0o644)
    vectors.write_bytes(data)
    refused("serve", "--index", damaged, "--port", "0", code=4, says="vectors.npy")
    done = run("serve", "--index", damaged, "--port", "0")
    assert "Loading" not in done.stderr


def test_a_public_address_is_served_when_insisted_on(index: Path, tmp_path: Path) -> None:
    more = ("--host", "0.0.0.0", "--insecure-public")
    with server(index, tmp_path / "log", *more) as (_, url):
        port = urlsplit(url).port
        host = b"GET /healthz HTTP/1.1\r\nHost: photos.example\r\nConnection: close\r\n\r\n"
        assert b" 200 " in wire(f"http://127.0.0.1:{port}", host)


def test_several_indexes_share_a_pair_and_choose_by_name(index: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    second = tmp_path / "zwei.index"
    shutil.copytree(index, second)
    with server(index, log, "--index", second, "--index", f"drei={index}") as (_, url):
        with urlopen(url + "/v1/indexes", timeout=20) as response:
            listed = json.load(response)["indexes"]
        assert [entry["name"] for entry in listed] == ["colours", "zwei", "drei"]
        assert [entry["default"] for entry in listed] == [True, False, False]
        with urlopen(url + "/v1/index?index=drei", timeout=20) as response:
            assert json.load(response)["name"] == "drei"
    assert log.read_text().count("Loading") == 1, "one pair, loaded once"


def test_serve_names_the_index_that_keeps_it_from_starting(index: Path, tmp_path: Path) -> None:
    serve = ("serve", "--port", "0", "--index", index)
    refused(*serve, "--index", tmp_path / "gone.index", code=2, says="index gone: no index at")
    refused(*serve, "--index", f"b={tmp_path}", code=2, says="index b: no index at")
    refused(*serve, "--index", index, code=2, says="--index NAME=PATH")
    refused(*serve, "--model", "others", code=4, says="index colours: ")


# -- search ---------------------------------------------------------------------------------------


def test_search_prints_rank_score_path_and_text(index: Path) -> None:
    done = run("search", "--index", index, "red", "-k", "2")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.split(maxsplit=2) == ["1", "1.000", "/p/fruit/red apple.png  a red apple"]
    assert second.split() == ["2", "0.707", "/p/flag.png"]


def test_search_as_json_pages_and_targets(index: Path, tmp_path: Path) -> None:
    picture = tmp_path / "red.png"
    picture.write_bytes(solid("red"))
    done = run(
        "search", "--index", index, "--image", picture, "--target", "texts", "-k", "2", "--json"
    )
    answer = json.loads(done.stdout)
    assert {hit["text"] for hit in answer["hits"]} == {"a red apple", "一个红苹果"}
    paged = json.loads(
        run("search", "--index", index, "红", "-k", "1", "--offset", "1", "--json").stdout
    )
    assert [(hit["rank"], hit["id"]) for hit in paged["hits"]] == [(2, FLAG)]


def test_search_says_what_is_wrong(index: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nope")
    search = ("search", "--index", index)
    refused(*search, code=2, says="either a text or --image")
    refused(*search, " ", code=2, says="empty")
    refused(*search, "red", "-k", "0", code=2, says="-k")
    refused(*search, "red", "--model", "others", code=4, says="others")
    refused(*search, "--image", broken, code=2, says="picture")
    refused("search", "--index", tmp_path / "none", "red", code=2, says="no index")


# -- classify -------------------------------------------------------------------------------------


def test_classify_answers_and_names_what_failed(tmp_path: Path) -> None:
    for name, data in {"r": solid("red"), "b": halves("blue", "blue"), "x": b"no picture"}.items():
        (tmp_path / f"{name}.png").write_bytes(data)
    paths = [
        tmp_path / "r.png",
        tmp_path / "x.png",
        tmp_path / "gone.png",
        tmp_path / "b.png",
    ]
    done = run("classify", *paths, "--labels", "red, blue", "--json")
    assert done.returncode == 3, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [Path(r["image"]).name for r in results] == [p.name for p in paths]
    top = [
        r["predictions"][0]["label"] if r["predictions"] else r["error"]["code"] for r in results
    ]
    assert top == ["red", "image-undecodable", "image-unreadable", "blue"]
    people = run("classify", *paths, "--labels", "red,blue", "--top-k", "1")
    assert people.returncode == 3
    assert [line.split()[1] for line in people.stdout.splitlines() if "%" in line] == [
        "red",
        "blue",
    ]
    assert "x.png" in people.stderr
    assert "gone.png" in people.stderr


def test_classify_takes_labels_from_a_file_and_templates(tmp_path: Path) -> None:
    (tmp_path / "r.png").write_bytes(solid("red"))
    (tmp_path / "labels.txt").write_text("\ufeffblue\n\nred\r\n", encoding="utf-8")
    done = run(
        "classify", tmp_path / "r.png", "--labels-file", tmp_path / "labels.txt",
        "--template", "a {} thing", "--template", "plain", "--multi-label", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert [p["label"] for p in result["predictions"]] == ["red", "blue"]


def test_classify_says_what_is_wrong_at_once(tmp_path: Path) -> None:
    (tmp_path / "r.png").write_bytes(solid("red"))
    classify = ("classify", tmp_path / "r.png")
    refused(*classify, code=2, says="either --labels or --labels-file")
    refused(*classify, "--labels", "red", code=2, says="labels")
    refused(*classify, "--labels", "red,red", code=2, says="twice")
    refused(*classify, "--labels", "red,blue", "--template", "nothing", code=2, says="template")
    refused(
        *classify, "--labels", "red,blue", "--template-set", "none", code=2, says="template set"
    )


@pytest.mark.parametrize("name", ["serve", "search", "classify"])
def test_help_has_examples_and_is_quick(name: str) -> None:
    begun = monotonic()
    done = run(name, "--help")
    assert done.returncode == 0
    assert "Examples:" in done.stdout
    assert "--json" in done.stdout
    assert monotonic() - begun < 10
