"""Denied by default: every route and method without a key, odd keys, odd paths, odd hosts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import solid
from fastapi import APIRouter
from fastapi.routing import iter_route_contexts
from keyed import Keys, bearer
from services import APPLE, build_colours, colour_client, colour_engine
from starlette.testclient import TestClient

from service.http.app import create_app
from service.http.middleware.endpoints import LOOKUP, PUBLIC_FILE, EndpointTable, declared
from service.http.middleware.frame import SECURITY_HEADERS

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "FOO")
OPEN = {"/healthz", "/readyz", "/", "/favicon.ico", "/static/{name}"}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_colours(tmp_path_factory.mktemp("keys") / "colours.index")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("keyfile") / "keys.json")


@pytest.fixture(scope="module")
def client(index: Path, keys: Keys) -> Iterator[TestClient]:
    with colour_client(index, keys.settings()) as client:
        yield client


def routes(client: TestClient) -> list[Any]:
    return list(iter_route_contexts(client.app.routes))  # type: ignore[attr-defined]


def filled(path: str) -> str:
    for name, value in {"name": "app.js", "id:path": "sky.png", "model:path": "x"}.items():
        path = path.replace("{" + name + "}", value)
    assert "{" not in path, path
    return path


def refused(response: Any, status: int = 401) -> None:
    assert response.status_code == status, (response.status_code, response.text)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    if status == 401:
        assert response.headers["www-authenticate"].startswith("Bearer")
        document = response.json()
        assert document.pop("instance").startswith("urn:request:")
        assert document["code"] == "unauthorized"
        told = document.pop("error")
        assert (told["code"], told["param"]) == ("unauthorized", None)
        assert told["message"].startswith(document["detail"])
        assert len(document) == 5, "the same words whatever was wrong"


def test_no_route_answers_without_a_key_but_health_and_the_pages_files(client: TestClient) -> None:
    walked, answered = 0, set()
    for route in routes(client):
        path = filled(route.path)
        for method in METHODS:
            response = client.request(method, path)
            if route.path in OPEN and method in ("GET", "HEAD"):
                assert response.status_code == 200
                answered.add(route.path)
                assert bool(response.content) is (method == "GET")
            elif method in ("TRACE", "CONNECT"):
                assert response.status_code == 405, "refused before anyone asks whose request it is"
            elif method == "HEAD":
                assert response.status_code == 401
            else:
                refused(response)
            walked += 1
    assert answered == OPEN
    assert walked >= 20 * len(METHODS)
    access = {r.path: declared(r.endpoint) for r in routes(client)}
    marked = {path for path, endpoint in access.items() if endpoint and endpoint.access == "public"}
    assert marked == OPEN


def test_the_open_files_hold_nothing_of_the_index(client: TestClient) -> None:
    for name in ("", "static/app.js", "static/words-en.js", "healthz", "readyz"):
        text = client.get("/" + name).text
        assert "colours" not in text
        assert APPLE not in text


def test_every_route_answers_with_a_key(client: TestClient, keys: Keys) -> None:
    for route in routes(client):
        for method in route.methods:
            response = client.request(method, filled(route.path), headers=bearer(keys.writer))
            if response.status_code == 403:  # the key may write, the service may not
                assert response.json()["code"] == "read-only"
                continue
            assert response.status_code not in (401, 429), (method, route.path)


PATHS = [
    "/v1/index", "//v1/index", "/v1//index", "/./v1/index", "/healthz/../v1/index",
    "/healthz%2f..%2fv1/index", "/healthz%2F..%2Fv1%2Findex", "/healthz/..%2fv1/index",
    "/healthz;/v1/index", "/healthz;a=b", "/v1/index;/healthz", "/v1/index;a=b", "/healthz/",
    "/healthz//", "/healthz%00", "/healthz%20", "/v1/index%0a", "/HEALTHZ", "/healthz/v1/index",
    "/healthz@v1/index", "@/healthz", "/@healthz", "/v1/index/healthz", "/v1/items/healthz",
    "/v1/items/%2e%2e%2f%2e%2e%2fhealthz", "/v1/items/..%2f..%2fhealthz", "/static/../v1/index",
    "/static/..%2fv1%2findex", "/static/%2e%2e/v1/index", "/static//app.js", "/static/a/../app.js",
    "/static", "/static/", "/v1/index%3f/healthz", "/v1/index%23/healthz", "/v1/index?/healthz",
    "/v1/index?path=/healthz", "/docs", "/docs/", "/openapi.json", "/openapi.json/", "/redoc",
    "/docs/oauth2-redirect", "/metrics", "/%76%31/index", "/v1%2findex", "/v1\\index",
    "/healthz\\..\\v1\\index", "/healthz%5c..%5cv1%5cindex", "/v1/label-sets", "/v1/indexes",
    "/knn-service", "/indices-list", "/metadata", "/embeddings", "/models", "/v1/models",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_spelling_of_a_path_gets_in(index: Path, keys: Keys, path: str) -> None:
    status, _ = raw(index, keys, path.encode("latin-1"))
    assert status == 401


@pytest.mark.parametrize(
    "host", ["a/b?", "a/healthz?", "@", "x@healthz", "a b", "healthz", "a#", "[::1"]
)
def test_no_host_gets_in(client: TestClient, host: str) -> None:
    response = client.get("/v1/index", headers={"Host": host})
    assert response.status_code in (400, 401)
    assert "uuid" not in response.text


def test_no_root_path_gets_in(index: Path, keys: Keys) -> None:
    """A server may be told that it lives below a prefix: then no path is what it seems."""
    for root, path in (
        ("/healthz", "/healthz/v1/index"),
        ("/v1", "/v1/healthz"),
        ("/x", "/healthz"),
    ):
        status, _ = raw(index, keys, path.encode(), root_path=root)
        assert status == 401, (root, path)


def raw(index: Path, keys: Keys, path: bytes, **scope: Any) -> tuple[int, bytes]:
    """A request as the server hands it over, without a client that tidies the path first."""
    import asyncio
    from urllib.parse import unquote_to_bytes

    bare, _, query = path.partition(b"?")
    whole = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": unquote_to_bytes(bare).decode("utf-8", "replace"),
        "raw_path": bare, "query_string": query, "root_path": "", "client": ("192.0.2.1", 1),
        "headers": [(b"host", b"testserver")], "server": ("testserver", 80), **scope,
    }  # fmt: skip
    sent: list[Any] = []

    async def call() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        with colour_engine(index) as engine:
            await create_app(engine, keys.settings())(whole, receive, send)

    asyncio.run(call())
    return sent[0]["status"], sent[1]["body"]


def test_raw_requests_do_reach_the_routes(index: Path, keys: Keys) -> None:
    headers = [(b"host", b"testserver"), (b"api-key", keys.reader.encode())]
    assert raw(index, keys, b"/v1/index", headers=headers)[0] == 200
    assert raw(index, keys, b"/healthz")[0] == 200
    # to the router a line feed at the end is none: what answers is what was asked for all the same
    assert raw(index, keys, b"/healthz%0a")[1] == raw(index, keys, b"/healthz")[1]


def test_keys_in_odd_places(client: TestClient, keys: Keys) -> None:
    key = keys.writer
    basic = {"Authorization": "Basic " + key}
    wrong: list[tuple[str, Any]] = [
        ("/v1/index", {}),
        (f"/v1/index?api_key={key}&api-key={key}&key={key}&access_token={key}", {}),
        ("/v1/index", {"Cookie": f"api-key={key}; Authorization=Bearer {key}"}),
        ("/v1/index", basic),
        ("/v1/index", {"Authorization": key}),
        ("/v1/index", {"Authorization": "Bearer"}),
        ("/v1/index", {"Authorization": f"Bearer {key} {key}"}),
        ("/v1/index", {"Authorization": f"Bearer {key},{key}"}),
        ("/v1/index", {"X-Api-Key": key}),
        ("/v1/index", {"Proxy-Authorization": f"Bearer {key}"}),
        ("/v1/index", bearer(key[:-1])),
        ("/v1/index", bearer(key[:-1] + "_")),
        ("/v1/index", bearer(key.swapcase())),
        ("/v1/index", bearer(keys.expired)),
        ("/v1/index", {"api-key": f"Bearer {key}"}),
        ("/v1/index", [("Authorization", f"Bearer {key}")] * 2),
        ("/v1/index", [("Authorization", f"Bearer {key}"), ("api-key", key)]),
        ("/v1/index", [("api-key", key), ("api-key", key)]),
        ("/v1/index", [(b"Authorization", "Bearer ключ".encode())]),
        ("/v1/index", [(b"Authorization", b"Bearer \xff\xfe")]),
    ]
    for path, headers in wrong:
        refused(client.get(path, headers=headers))
    for headers in (bearer(key), {"api-key": key}, {"authorization": f"bearer   {key} "}):
        assert client.get("/v1/index", headers=headers).status_code == 200
    for headers in ({"Authorization": "Bearer " + "x" * 600}, {"api-key": "x" * 600}):
        refused(client.get("/v1/index", headers=headers), 400)
    refused(client.get("/v1/index", headers={"api-key": "x" * 40_000}), 431)


def test_scopes(client: TestClient, keys: Keys) -> None:
    labels = {"labels": ["red", "blue"]}
    for key, may_read, may_write in (
        (keys.reader, True, False),
        (keys.scribe, False, True),
        (keys.writer, True, True),
    ):
        found = client.post("/v1/search", json={"query": {"text": "red"}}, headers=bearer(key))
        stored = client.put("/v1/label-sets/mine", json=labels, headers=bearer(key))
        gone = client.delete("/v1/label-sets/mine", headers=bearer(key))
        if may_read:
            assert found.status_code == 200
        else:
            refused(found, 403)
        for response in (stored, gone):
            assert (response.json()["code"] == "scope-missing") is not may_write
    assert client.get("/nothing/here", headers=bearer(keys.reader)).status_code == 404
    wrong = client.delete("/v1/index", headers=bearer(keys.reader))
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "GET, HEAD"


def test_a_route_that_declares_nothing_answers_nobody(index: Path, keys: Keys) -> None:
    """`create_app` refuses one; added to the application afterwards it is closed."""
    with colour_engine(index) as engine:
        app = create_app(engine, keys.settings())
        router = APIRouter()

        @router.post("/v1/forgotten")
        def forgotten() -> dict[str, str]:
            return {"secret": "canary"}

        app.include_router(router)
        with TestClient(app) as client:
            refused(client.post("/v1/forgotten"))
            for key, status in ((keys.reader, 401), (keys.writer, 401), (keys.scribe, 403)):
                refused(client.post("/v1/forgotten", headers=bearer(key)), status)


def test_the_chosen_route_is_asked_again(index: Path, keys: Keys) -> None:
    """Were the layer to take a request for another route's, the route itself would refuse."""

    with (
        colour_engine(index) as engine,
        pytest.MonkeyPatch.context() as patch,
        TestClient(create_app(engine, keys.settings())) as client,
    ):
        patch.setattr(EndpointTable, "of", lambda table, scope: PUBLIC_FILE)
        refused(client.get("/v1/index"))
        refused(client.post("/v1/search", json={"query": {"text": "red"}}))
        assert client.get("/healthz").status_code == 200
        patch.setattr(EndpointTable, "of", lambda table, scope: LOOKUP)
        refused(
            client.put("/v1/label-sets/x", json={"labels": ["a", "b"]}, headers=bearer(keys.reader))
        )


def test_nothing_is_read_before_the_key(client: TestClient) -> None:
    def body() -> Iterator[bytes]:
        yield b"{"
        raise AssertionError("the body was asked for")

    refused(
        client.post("/v1/search", content=iter([b"x" * 100]), headers={"content-length": "100"})
    )
    refused(client.post("/v1/search", json={"query": {"text": "red"}, "k": "wrong"}))


def test_failures_are_limited_and_headers_do_not_help(index: Path, keys: Keys) -> None:
    with colour_client(index, keys.settings(patient=False)) as client:
        statuses = []
        for number in range(60):
            spoofed = {"X-Forwarded-For": f"192.0.2.{number}", "Forwarded": f"for=192.0.2.{number}"}
            statuses.append(client.get("/v1/index", headers=spoofed).status_code)
        assert statuses[:20] == [401] * 20
        assert statuses.count(429) >= 35
        limited = client.get("/v1/index")
        refused(limited, 429)
        assert int(limited.headers["retry-after"]) >= 1
        assert client.get("/v1/index", headers=bearer(keys.reader)).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_no_key_is_ever_logged_or_answered(
    client: TestClient, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answers = []
    for key in (keys.reader, keys.scribe, keys.expired, keys.reader[:-1] + "?"):
        for path in ("/v1/index", "/v1/items/" + key, "/nope?k=" + key, "/v1/label-sets/" + key):
            answers.append(client.get(path, headers=bearer(key)))
            answers.append(client.put(path, headers={"api-key": key}, content=b"{"))
    for answer in answers:
        whole = answer.text + str(answer.headers)
        assert not any(key[:40] in whole for key in (keys.reader, keys.scribe, keys.expired))
    logged = "\n".join(r.getMessage() for r in caplog.records if r.name != "httpx2")
    assert "/v1/index" in logged
    assert "dpk_" not in logged


def test_the_documentation_says_who_needs_a_key(client: TestClient, keys: Keys) -> None:
    document = client.get("/openapi.json", headers=bearer(keys.reader)).json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "api-key"}
    needs = {
        (path, method): operation.get("x-scope")
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert needs["/healthz", "get"] is None
    assert needs["/v1/search", "post"] == "read"
    assert needs["/v1/label-sets/{name}", "put"] == "write"
    assert all(scope for (path, _), scope in needs.items() if path not in OPEN)


def test_headers_on_every_answer(client: TestClient, keys: Keys) -> None:
    seen = set()
    for headers in ({}, bearer(keys.writer)):
        for route in routes(client):
            for method in ("GET", "POST", "FOO"):
                response = client.request(method, filled(route.path), headers=headers)
                seen.add(response.status_code)
                for name in SECURITY_HEADERS:
                    assert response.headers[name], (route.path, method, name)
                assert response.headers["x-content-type-options"] == "nosniff"
                assert len(response.headers["x-request-id"]) == 32
                assert "server" not in response.headers
                assert "access-control-allow-origin" not in response.headers
                policy = response.headers["content-security-policy"]
                own_file = response.status_code == 200 and route.path in (OPEN | {"/docs"})
                if not own_file or "healthz" in route.path or "readyz" in route.path:
                    assert policy.startswith("default-src 'none'")
                    assert "sandbox" in policy
    assert {200, 401, 405, 415} <= seen


def test_other_origins_are_refused_unless_listed(index: Path, keys: Keys) -> None:
    friend, stranger = "https://photos.example", "https://evil.example"
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "api-key"}
    with colour_client(index, keys.settings(cors_origins=(friend,))) as client:
        before = client.options("/v1/search", headers={"Origin": friend, **ask})
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == friend
        assert "api-key" in before.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in before.headers
        body = {"query": {"text": "red"}}
        ours = {"Origin": friend, **bearer(keys.reader)}
        found = client.post("/v1/search", json=body, headers=ours)
        assert found.status_code == 200
        assert found.headers["access-control-allow-origin"] == friend
        refusal = client.post("/v1/search", json=body, headers={"Origin": friend})
        refused(refusal)
        assert refusal.headers["access-control-allow-origin"] == friend, "its page may read why"
        for origin in (stranger, friend + ".evil.example", "null", "http://photos.example", "*"):
            response = client.options("/v1/search", headers={"Origin": origin, **ask})
            refused(response)
            assert "access-control-allow-origin" not in response.headers
    with colour_client(index, keys.settings()) as client:
        closed = client.options("/v1/search", headers={"Origin": friend, **ask})
        refused(closed)
        assert "access-control-allow-origin" not in closed.headers


def test_a_secured_connection_is_to_stay_one(client: TestClient) -> None:
    for path in ("/healthz", "/v1/index", "/nothing"):
        secure = client.get("https://testserver" + path)
        assert secure.headers["strict-transport-security"] == "max-age=31536000"
        assert "strict-transport-security" not in client.get(path).headers


def test_without_keys_everything_is_open(index: Path) -> None:
    with colour_client(index) as client:
        picture = {"Content-Type": "image/png"}
        reply = client.post("/v1/search/image-to-text", content=solid("red"), headers=picture)
        assert reply.status_code == 200
        assert client.get("/docs").status_code == 200
