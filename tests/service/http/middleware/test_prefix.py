"""The path a proxy serves the service under, at the layer itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.http.middleware.prefix import BelievedProxies, Prefix, check_prefix, outside

PATHS = ("/", "/v1/search", "/docs", "/static/{name}")


def ask(path: str, *, root: str = "", forwarded: str | None = None, proxies: str = "10.0.0.7",
        client: str = "10.0.0.7", method: str = "GET") -> tuple[str, str, Message]:  # fmt: skip
    """The path that the application sees, a link of its own, and the start of the answer."""
    seen = ["", ""]

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        seen[:] = scope["path"], outside("/v1/items/a")
        assert scope["raw_path"].decode() == scope["path"]
        await send({"type": "http.response.start", "status": 200, "headers": []})

    headers = [] if forwarded is None else [(b"x-forwarded-prefix", forwarded.encode())]
    scope: dict[str, Any] = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "headers": headers, "client": (client, 5000), "scheme": "http",
    }  # fmt: skip
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    app = BelievedProxies(Prefix(application, root, PATHS), proxies)
    asyncio.run(app(scope, receive, send))
    return seen[0], seen[1], sent[0]


def test_no_prefix_changes_nothing() -> None:
    assert ask("/photos/v1/search")[:2] == ("/photos/v1/search", "/v1/items/a")


@pytest.mark.parametrize("path", ["/v1/search", "/photos/v1/search"])
@pytest.mark.parametrize("how", [{"root": "/photos/"}, {"forwarded": "/photos"}])
def test_passed_on_or_taken_off(path: str, how: dict[str, str]) -> None:
    assert ask(path, **how)[:2] == ("/v1/search", "/photos/v1/items/a")


def test_what_a_proxy_says_goes_before_the_option() -> None:
    assert ask("/v1/search", root="/a", forwarded="/b/c")[1] == "/b/c/v1/items/a"


def test_only_named_proxies_are_believed() -> None:
    assert ask("/v1/search", forwarded="/evil", client="10.0.0.8")[1] == "/v1/items/a"


@pytest.mark.parametrize(
    "text", ["//evil.example", "photos", "/a/../b", "/a b", "/a\r\nx: y", "/ä", "/" + "a" * 300]
)
def test_what_is_no_path_is_no_prefix(text: str) -> None:
    assert ask("/v1/search", forwarded=text)[1] == "/v1/items/a"
    with pytest.raises(ValueError, match="such as /photos"):
        check_prefix(text)


def test_a_prefix_that_begins_like_a_route_is_never_taken_off() -> None:
    assert ask("/v1/search", root="/v1")[:2] == ("/v1/search", "/v1/v1/items/a")


def test_without_its_slash_the_page_is_moved() -> None:
    start = ask("/photos", root="/photos")[2]
    assert (start["status"], dict(start["headers"])[b"location"]) == (308, b"/photos/")
    assert ask("/photoshop", root="/photos")[0] == "/photoshop"
