"""`diptych keys` and `serve --keys` as real processes: rotation while serving, nothing leaked."""

from __future__ import annotations

import http.client
import json
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from services import APPLE, build_colours
from serving import run, server


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_colours(tmp_path_factory.mktemp("cli") / "colours.index")


def make(file: Path, *more: str) -> tuple[str, str]:
    done = run("keys", "new", "--file", file, "--json", *more)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    return made["key"], made["id"]


def ask(url: str, key: str | None) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    body = json.dumps({"text": "canaryquery red", "k": 1})
    connection.request("POST", f"/v1/search/text-to-image?canary={key}", body, headers)
    try:
        with connection.getresponse() as response:
            return response.status, response.read()
    finally:
        connection.close()


def becomes(url: str, key: str, status: int) -> None:
    until = time.monotonic() + 15
    while (found := ask(url, key)[0]) != status:
        assert time.monotonic() < until, f"still {found}"
        time.sleep(0.1)


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    done = run("keys", "new", "--file", file, "--name", "laptop")
    assert done.stdout.startswith("dpk_")
    assert len(done.stdout.split()) == 1, "the key alone, for a variable of a shell"
    assert file.stat().st_mode & 0o777 == 0o600
    _, identity = make(file, "--scope", "read", "--scope", "write", "--expires", "90d")
    listed = run("keys", "list", "--file", file)
    assert "laptop" in listed.stdout
    assert "read,write" in listed.stdout
    assert done.stdout.strip() not in listed.stdout + file.read_text()
    assert "sha256" not in run("keys", "list", "--file", file, "--json").stdout
    assert run("keys", "revoke", "--file", file, identity).returncode == 0
    assert identity not in run("keys", "list", "--file", file).stdout
    again = run("keys", "revoke", "--file", file, identity)
    assert again.returncode == 2
    assert len(again.stderr.splitlines()) == 1
    assert run("keys", "new", "--file", file, "--expires", "soon").returncode == 2
    assert run("keys", "list", "--file", tmp_path / "none").returncode == 2


def test_a_key_opens_a_public_address_and_rotates(index: Path, tmp_path: Path) -> None:
    file, log = tmp_path / "keys.json", tmp_path / "log"
    old, old_id = make(file)
    with server(index, log, "--host", "0.0.0.0", "--keys", str(file)) as (_, url):
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert ask(url, None)[0] == 401
        status, body = ask(url, old)
        assert status == 200
        assert APPLE.encode() in body
        new, _ = make(file)
        becomes(url, new, 200)
        assert ask(url, old)[0] == 200, "both count meanwhile"
        assert run("keys", "revoke", "--file", file, old_id).returncode == 0
        becomes(url, old, 401)
        assert ask(url, new)[0] == 200
        file.write_text("broken")
        becomes(url, new, 401)
    written = log.read_text()
    assert "no key is accepted" in written
    assert "Traceback" not in written
    assert "dpk_" not in written
    assert "canary" not in written
    assert old[16:40] not in written


def test_serve_refuses_without_a_usable_key(index: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    serve = ("serve", "--index", index, "--port", "0")
    for arguments, says in (
        (("--host", "0.0.0.0"), "diptych keys new"),
        (("--host", "::"), "diptych keys new"),
        (("--keys", file), "diptych keys new"),
        (("--cors-origin", "*"), "https://photos.example"),
        (("--cors-origin", "https://a.example/"), "https://photos.example"),
        (("--forwarded-allow-ips", "proxy"), "10.0.0.7"),
        (("--forwarded-allow-ips", "*"), "10.0.0.7"),
    ):
        done = run(*serve, *arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert says in done.stderr
        assert "Traceback" not in done.stderr
    file.write_text('{"format": 1, "keys": []}')
    assert "holds no key" in run(*serve, "--keys", file).stderr


def test_urls_are_turned_on_by_a_flag(index: Path, tmp_path: Path) -> None:
    def asked(*more: str) -> bytes:
        with server(index, tmp_path / "log", *more) as (_, url):
            parts = urlsplit(url)
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
            # an address inside, by its plain text: refused by the fetcher, never dialled
            body = json.dumps({"query": {"image_url": f"http://127.0.0.1:80/{parts.port}"}})
            connection.request("POST", "/v1/search", body, {"Content-Type": "application/json"})
            try:
                with connection.getresponse() as response:
                    return response.read()
            finally:
                connection.close()

    assert b"url-not-allowed" in asked()
    assert b"url-fetch-failed" in asked("--allow-urls")
