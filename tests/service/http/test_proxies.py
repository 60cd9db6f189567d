"""Behind a real nginx, with the recipes of docs/operations.md: at the root, and under a path."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from nginx import NGINX, nginx
from services import build_colours
from serving import server

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"
RECIPES = re.findall(r"```nginx\n(.*?)```", OPERATIONS.read_text(), re.DOTALL)
HOST = "photos.example"
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


def get(url: str, body: Any = None, **headers: str) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    more = {"content-type": "application/json"} if data else {}
    asked = urllib.request.Request(url, data, {"Host": HOST, **more, **headers})
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def every_link_leads_somewhere(page: str) -> None:
    """The page and its files, the documentation, and what the interface links to."""
    for start in (page, urljoin(page, "docs")):
        status, html = get(start)
        assert status == 200
        links = re.findall(r'(?:href|src)="([^"#]+)"', html)
        assert len(links) >= 4
        for link in links:
            assert get(urljoin(start, link))[0] == 200, link
    status, answer = get(urljoin(page, "v1/search"), {"query": {"text": "red"}, "k": 1})
    assert status == 200, answer
    (hit,) = json.loads(answer)["hits"]
    asked = urllib.request.Request(urljoin(page, hit["thumbnail_url"]), headers={"Host": HOST})
    with urllib.request.urlopen(asked, timeout=20) as thumbnail:
        assert thumbnail.headers["content-type"] == "image/jpeg"


def test_at_the_root_of_a_name(tmp_path: Path) -> None:
    index = build_colours(tmp_path / "x.index")
    options = ("--forwarded-allow-ips", "127.0.0.1", "--allowed-host", HOST)
    with (
        server(index, tmp_path / "log", *options) as (_, url),
        nginx(tmp_path / "nginx", RECIPES[0], url) as port,
    ):
        every_link_leads_somewhere(f"http://127.0.0.1:{port}/")
        assert get(f"http://127.0.0.1:{port}/readyz", Host="evil.example")[0] == 400


@pytest.mark.parametrize("way", ["header", "option", "passed on"])
def test_under_a_path(way: str, tmp_path: Path) -> None:
    index = build_colours(tmp_path / "x.index")
    recipe = RECIPES[1]
    options = ["--forwarded-allow-ips", "127.0.0.1", "--allowed-host", HOST]
    if way != "header":
        recipe = recipe.replace("proxy_set_header X-Forwarded-Prefix /photos;", "")
        options += ["--root-path", "/photos/"]
    if way == "passed on":
        recipe = recipe.replace("127.0.0.1:8000/;", "127.0.0.1:8000;")
    with (
        server(index, tmp_path / "log", *options) as (_, url),
        nginx(tmp_path / "nginx", recipe, url) as port,
    ):
        page = f"http://127.0.0.1:{port}/photos/"
        every_link_leads_somewhere(page)
        document = json.loads(get(page + "openapi.json")[1])
        assert document["servers"] == [{"url": "/photos"}]


def test_a_kept_host_is_refused_without_keys_and_says_what_helps(tmp_path: Path) -> None:
    index = build_colours(tmp_path / "x.index")
    with server(index, tmp_path / "log") as (_, url):
        status, answer = get(f"{url}/readyz")
        assert (status, json.loads(answer)["code"]) == (400, "bad-host")
        assert "--allowed-host" in json.loads(answer)["hint"]
