"""Everything a caller can get wrong: 4xx, always a problem document, never a 500."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import pytest
from fakes import solid
from services import APPLE, build_colours, colour_client
from starlette.testclient import TestClient

from service.http.app import ServiceSettings
from service.http.middleware.limits import RequestLimits

CANARY = "canary-of-the-caller"
BODY_LIMIT = 200_000
PNG = solid("red")
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    index = build_colours(tmp_path_factory.mktemp("bad") / "colours.index")
    settings = ServiceSettings(limits=RequestLimits(body_bytes=BODY_LIMIT))
    with colour_client(index, settings) as client:
        yield client


def check(response: Any, *statuses: int, code: str | None = None) -> dict[str, Any]:
    assert response.status_code in statuses, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert {"type", "title", "status", "detail", "instance", "code"} <= document.keys()
    assert document["status"] == response.status_code
    assert document["type"] == "urn:diptych:problem:" + document["code"]
    assert document["instance"] == "urn:request:" + response.headers["x-request-id"]
    assert CANARY not in response.text
    assert "Traceback" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "server" not in response.headers
    assert "access-control-allow-origin" not in response.headers
    if code:
        assert document["code"] == code
    return document


SEARCHES = ["/v1/search", "/v1/search/text-to-image"]
MALFORMED = [
    b"", b"{", b'{"text": "red",}', b"{} {}", b"\xef\xbb\xbf{}", b'"\xff"', b"null null",
    '{"text": "red"}'.encode("utf-16"), b'{"k": NaN}', b'{"k": 1e400}', b'{"k": Infinity}',
    b'{"text": "a", "text": "b"}', b"[" * 50_000, b'{"a":' * 30_000,
    b'{"k": ' + b"9" * 10_000 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("path", [*SEARCHES, "/v1/classify", "/v1/explain"])
@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_json(client: TestClient, path: str, body: bytes) -> None:
    begun = perf_counter()
    check(client.post(path, content=body, headers=JSON), 400, code="malformed-json")
    assert perf_counter() - begun < 1


@pytest.mark.parametrize("text", ["\\ud800", "a\\u0000b"])
def test_text_that_is_not_unicode(client: TestClient, text: str) -> None:
    for body in (f'{{"query": {{"text": "{text}"}}}}', f'{{"query": {{"id": "{text}"}}}}',
                 f'{{"{text}": 1}}'):  # fmt: skip
        check(client.post("/v1/search", content=body, headers=JSON), 422, code="invalid-text")


WRONG_SEARCHES: list[tuple[dict[str, Any] | list[Any] | str | None, str]] = [
    ({}, "#/query"),
    ([], "#"),
    (None, "#"),
    ("red", "#"),
    ({"query": "red"}, "#/query"),
    ({"query": {}}, "#/query"),
    ({"query": {"text": "red", "id": "x"}}, "#/query"),
    ({"query": {"text": 1}}, "#/query/text"),
    ({"query": {"text": ["red"]}}, "#/query/text"),
    ({"query": {"text": ""}}, "#/query/text"),
    ({"query": {"text": " \n "}}, "#/query/text"),
    ({"query": {"text": "x" * 10_001}}, "#/query/text"),
    ({"query": {"text": "red", "colour": 1}}, "#/query/colour"),
    ({"query": {"text": "red", "a " + CANARY: 1}}, "#/query"),
    ({"query": {"embedding": ["1"] * 9}}, "#/query/embedding/0"),
    ({"query": {"embedding": [True] * 9}}, "#/query/embedding/0"),
    ({"query": {"embedding": "abc"}}, "#/query/embedding"),
    ({"query": {"embedding": [0.5] * 20_000}}, "#/query/embedding"),
    ({"query": {"text": "red"}, "k": "10"}, "#/k"),
    ({"query": {"text": "red"}, "k": True}, "#/k"),
    ({"query": {"text": "red"}, "k": 1.5}, "#/k"),
    ({"query": {"text": "red"}, "k": 10.0}, "#/k"),
    ({"query": {"text": "red"}, "k": None}, "#/k"),
    ({"query": {"text": "red"}, "k": 0}, "#/k"),
    ({"query": {"text": "red"}, "k": -1}, "#/k"),
    ({"query": {"text": "red"}, "k": 1001}, "#/k"),
    ({"query": {"text": "red"}, "k": 2**63}, "#/k"),
    ({"query": {"text": "red"}, "k": 10**250}, "#/k"),
    ({"query": {"text": "red"}, "offset": -1}, "#/offset"),
    ({"query": {"text": "red"}, "offset": 10_001}, "#/offset"),
    ({"query": {"text": "red"}, "min_score": "high"}, "#/min_score"),
    ({"query": {"text": "red"}, "target": "videos"}, "#/target"),
    ({"query": {"text": "red"}, "include": ["everything"]}, "#/include/0"),
    ({"query": {"text": "red"}, "include": "embedding"}, "#/include"),
    ({"query": {"text": "red"}, "relevance": 1}, "#/relevance"),
]


@pytest.mark.parametrize(("body", "pointer"), WRONG_SEARCHES, ids=range(len(WRONG_SEARCHES)))
def test_values_that_do_not_fit_are_pointed_at(client: TestClient, body: Any, pointer: str) -> None:
    document = check(client.post("/v1/search", content=json.dumps(body), headers=JSON), 422)
    assert pointer in {error["pointer"] for error in document["errors"]}


def test_empty_text_has_its_own_code(client: TestClient) -> None:
    check(client.post("/v1/search", json={"query": {"text": " "}}), 422, code="invalid-text")


@pytest.mark.parametrize(
    "values", [[1.0] * 8, [0.0] * 9, [1e38] + [0.0] * 8, [10**290] + [0] * 8, [], [-0.0] * 9]
)
def test_embeddings_that_cannot_be_searched(client: TestClient, values: list[float]) -> None:
    response = client.post("/v1/search", json={"query": {"embedding": values}})
    check(response, 422, code="invalid-vector")


def test_unknown_items(client: TestClient) -> None:
    for item in (CANARY, "../" + CANARY, "%2e%2e%2f" + CANARY, "x" * 2000, "%00", "%ff", "%0a", ""):
        check(client.get(f"/v1/items/{item}"), 404, 422)
        check(client.get(f"/v1/items/{item}/thumbnail"), 404, 422)
    check(client.post("/v1/search", json={"query": {"id": CANARY}}), 404, code="not-found")


# -- pictures -------------------------------------------------------------------------------------


def huge_png(width: int, height: int) -> bytes:
    """A PNG that promises many pixels and holds next to none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )  # fmt: skip


PICTURES = {
    "empty": b"",
    "one byte": b"\x89",
    "header only": PNG[:33],
    "html": b"<html><script>alert(1)</script>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "pdf": b"%PDF-1.7\n1 0 obj\n",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "zip": b"PK\x03\x04" + b"\0" * 40,
    "text": CANARY.encode(),
    "bomb": huge_png(13_000, 13_000),
    "giant": huge_png(100_000, 100_000),
    "ribbon": huge_png(1, 1_000_000),
    "zero": huge_png(0, 10),
} | {f"cut at {n}/16": PNG[: len(PNG) * n // 16] for n in range(1, 16)}


@pytest.mark.parametrize("data", PICTURES.values(), ids=PICTURES.keys())
def test_pictures_that_cannot_be_decoded(client: TestClient, data: bytes) -> None:
    begun = perf_counter()
    encoded = base64.b64encode(data).decode() or "="
    for response in (
        client.post("/v1/search/image-to-text", files={"image": (CANARY, data)}),
        client.post(
            "/v1/search/image-to-text", content=data, headers={"content-type": "image/png"}
        ),
        client.post("/v1/search", json={"query": {"image": encoded}}),
        client.post("/v1/classify", files={"image": ("x", data)}, data={"labels": "red,blue"}),
        client.post("/v1/classify", json={"images": [encoded], "labels": ["red", "blue"]}),
    ):
        document = check(response, 415, 422)
        assert document["code"].startswith("image-")
    assert perf_counter() - begun < 2


@pytest.mark.parametrize(
    "text", ["a", "!!!!", "http://127.0.0.1/a.png", "file:///etc/passwd", "data:image/png,x"]
)
def test_pictures_that_are_no_base64(client: TestClient, text: str) -> None:
    check(client.post("/v1/search", json={"query": {"image": text}}), 422, code="image-undecodable")


MULTIPART = {"content-type": "multipart/form-data; boundary=b"}


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    file = f'; filename="{filename}"' if filename else ""
    return (
        f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        + value
        + b"\r\n"
    )


BROKEN_FORMS = {
    "empty": b"",
    "no boundary inside": b"hello",
    "cut": part("image", PNG, "a")[:60],
    "unterminated": part("image", PNG, "a"),
    "no name": b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
    "line feeds": b"\r\n" * 5_000,
    "1,001 parts": b"".join(part("image", b"x", "a") for _ in range(1_001)) + b"--b--\r\n",
    "3,000 fields": b"".join(part("labels", b"x") for _ in range(3_000))[: BODY_LIMIT - 100],
    "long name": part("x" * 100_000, b"x") + b"--b--\r\n",
    "field for a picture": part("image", PNG) + b"--b--\r\n",
    "no picture": part("k", b"3") + b"--b--\r\n",
    "two pictures": part("image", PNG, "a") + part("image", PNG, "b") + b"--b--\r\n",
    "picture elsewhere": part(CANARY, PNG, "a") + b"--b--\r\n",
    "unknown field": part("image", PNG, "a") + part(CANARY + " ", b"1") + b"--b--\r\n",
    "field twice": part("image", PNG, "a") + part("k", b"1") * 2 + b"--b--\r\n",
    "k is a word": part("image", PNG, "a") + part("k", CANARY.encode()) + b"--b--\r\n",
    "k is 0": part("image", PNG, "a") + part("k", b"0") + b"--b--\r\n",
    "NUL": part("image", PNG, "a") + part("target", b"a\0") + b"--b--\r\n",
}  # fmt: skip


@pytest.mark.parametrize("body", BROKEN_FORMS.values(), ids=BROKEN_FORMS.keys())
def test_broken_forms(client: TestClient, body: bytes) -> None:
    response = client.post("/v1/search/image-to-text", content=body, headers=MULTIPART)
    check(response, 400, 422)


@pytest.mark.parametrize(
    "query", ["k=0", "k=x", "k=1&k=2", "colour=1", "min_score=nan", "target=x", "k=1e9"]
)
def test_wrong_parameters(client: TestClient, query: str) -> None:
    check(client.post(f"/v1/search/image-to-text?{query}", files={"image": ("x", PNG)}), 422)


def test_a_boundary_is_needed(client: TestClient) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=" + "b" * 300):
        response = client.post(
            "/v1/search/image-to-text", content=b"x", headers={"content-type": kind}
        )
        check(response, 400, 422)


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/xml", "application/x-www-form-urlencoded", "x"]
)
def test_media_types(client: TestClient, kind: str) -> None:
    for path in (*SEARCHES, "/v1/search/image-to-text", "/v1/classify"):
        response = client.post(path, content=b'{"text": "red"}', headers={"content-type": kind})
        check(response, 415, code="unsupported-media-type")


WRONG_CLASSES: list[dict[str, Any]] = [
    {},
    {"labels": []},
    {"labels": ["red"]},
    {"labels": ["red", "red"]},
    {"labels": ["red", ""]},
    {"labels": ["red", CANARY * 600]},
    {"labels": [CANARY, CANARY]},
    {"labels": "red,blue"},
    {"labels": ["red", 1]},
    {"labels": [f"{n}" for n in range(1001)]},
    {"labels": ["red", "blue"], "templates": [CANARY]},
    {"labels": ["red", "blue"], "templates": ["{0.__class__}"]},
    {"labels": ["red", "blue"], "templates": []},
    {"labels": ["red", "blue"], "template_set": CANARY},
    {"labels": ["red", "blue"], "template_set": "plain", "templates": ["{}"]},
    {"labels": ["red", "blue"], "multi_label": "yes"},
    {"labels": ["red", "blue"], "top_k": 0},
    {"labels": ["red", "blue"], "images": []},
    {"labels": ["red", "blue"], "images": [1]},
    {"labels": ["red", "blue"], "images": ["AAAA"] * 65},
    {"labels": ["red", "blue"], "label_set": "x"},
]


@pytest.mark.parametrize("body", WRONG_CLASSES, ids=range(len(WRONG_CLASSES)))
def test_classes_that_do_not_fit(client: TestClient, body: dict[str, Any]) -> None:
    picture = base64.b64encode(PNG).decode()
    check(client.post("/v1/classify", json={"images": [picture], **body}), 422)


def test_format_strings_are_only_text(client: TestClient) -> None:
    body = {
        "images": [base64.b64encode(PNG).decode()],
        "labels": ["{0.__class__}", "red"],
        "templates": ["{c} {0.__class__.__mro__} %s {}"],
    }
    assert client.post("/v1/classify", json=body).status_code == 200


# -- composed queries -----------------------------------------------------------------------------

RED = {"text": "red"}
WRONG_PARTS: list[tuple[Any, str, str]] = [
    ([], "invalid-request", "#/query"),
    ([RED] * 17, "invalid-request", "#/query"),
    ([RED, {}], "invalid-request", "#/query/1"),
    ([RED, {"text": " "}], "invalid-text", "#/query/1/text"),
    ([RED, {"text": "x", "weight": 0}], "invalid-request", "#/query/1/weight"),
    ([RED, {"text": "x", "weight": 100.5}], "invalid-request", "#/query/1/weight"),
    ([RED, {"text": "x", "weight": "2"}], "invalid-request", "#/query/1/weight"),
    ([RED, {"text": "x", "weight": True}], "invalid-request", "#/query/1/weight"),
    ([RED, {"image": "?"}], "image-undecodable", "#/query/1/image"),
    ([[RED]], "invalid-request", "#/query/0"),
    ("red", "invalid-request", "#/query"),
    ({"text": "x", "weight": 0}, "invalid-request", "#/query/weight"),
    ({"text": "x", "id": "y"}, "invalid-request", "#/query"),
]


@pytest.mark.parametrize(("query", "code", "pointer"), WRONG_PARTS, ids=range(len(WRONG_PARTS)))
def test_parts_that_do_not_fit(client: TestClient, query: Any, code: str, pointer: str) -> None:
    response = client.post("/v1/search", json={"query": query})
    check(response, 422, code=code)
    assert [error["pointer"] for error in response.json()["errors"]] == [pointer]


def test_parts_that_cancel_out_say_so(client: TestClient) -> None:
    query = [RED, {"image": base64.b64encode(PNG).decode(), "weight": -1}]
    response = client.post("/v1/search", json={"query": query})
    check(response, 422, code="invalid-vector")
    assert "cancel out" in response.json()["detail"]
    missing = client.post("/v1/search", json={"query": [RED, {"id": "none"}]})
    check(missing, 404, code="not-found")


# -- protocol -------------------------------------------------------------------------------------


def test_an_oversized_body(client: TestClient) -> None:
    for path in (*SEARCHES, "/v1/search/image-to-text", "/v1/classify", "/v1/explain"):
        for kind in ("application/json", "image/png", "multipart/form-data; boundary=b"):
            declared = client.post(
                path, content=b"x" * (BODY_LIMIT + 1), headers={"content-type": kind}
            )
            check(declared, 413, code="body-too-large")
    streamed = client.post(
        "/v1/search/image-to-text",
        content=(b"x" * 50_000 for _ in range(5)),
        headers={"content-type": "image/png"},
    )
    check(streamed, 413, code="body-too-large")
    text = client.post("/v1/search/text-to-image", json={"text": "x" * (1 << 20)})
    check(text, 413)


def test_encoded_bodies_and_long_addresses(client: TestClient) -> None:
    headers = {**JSON, "content-encoding": "gzip"}
    check(client.post("/v1/search", content=b"\x1f\x8b", headers=headers), 415)
    check(client.get("/" + "a" * 9000), 414, code="uri-too-long")
    check(client.get("/", headers={"x-long": "a" * 40_000}), 431, code="headers-too-large")
    check(client.get("/", headers={"host": "a/b?"}), 400, code="bad-host")


PATHS = {
    "/v1/search": "POST", "/v1/search/text-to-image": "POST", "/v1/search/image-to-text": "POST",
    "/v1/search/batch": "POST", "/v1/classify": "POST", "/v1/explain": "POST",
    "/v1/embeddings": "POST", "/embeddings": "POST", "/models": "GET", "/v1/models": "GET",
    "/v1/models/x": "GET", "/knn-service": "POST", "/metadata": "POST", "/indices-list": "GET",
    "/v1/index": "GET", "/v1/indexes": "GET",
    "/v1/items": "POST", "/v1/items/x": "GET PUT DELETE",
    "/v1/template-sets": "GET", "/v1/label-sets": "GET",
    "/v1/label-sets/x": "GET PUT DELETE",
    # PUT and DELETE: of an item whose id ends so
    "/v1/items/x/thumbnail": "GET PUT DELETE",
    "/healthz": "GET", "/readyz": "GET", "/": "GET", "/docs": "GET", "/openapi.json": "GET",
    "/static/app.js": "GET", "/favicon.ico": "GET",
}  # fmt: skip
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"]


def test_every_route_is_in_the_walk(client: TestClient) -> None:
    known = {path.replace("/v1/items/x", "/v1/items/{id}") for path in PATHS}
    known |= {"/v1/label-sets/{name}", "/v1/models/{model}"}
    assert set(client.get("/openapi.json").json()["paths"]) <= known


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", METHODS)
def test_wrong_methods(client: TestClient, path: str, method: str) -> None:
    allowed = PATHS[path].split()
    if method in allowed:
        return
    response = client.request(method, path, headers={"origin": "https://evil.example"})
    check(response, 405, code="method-not-allowed")
    for name in allowed:
        assert name in response.headers["allow"]


@pytest.mark.parametrize(
    "path",
    ["/" + CANARY, "/v1", "/v1/", "/v2/search", "/v1/search/", "//v1/index", "/v1//index",
     "/static/", "/static/" + CANARY, "/static/../app.py", "/static/..%2f..%2fapp.py",
     "/static/%2e%2e/app.py", "/static/index.html", "/redoc", "/docs/", "/V1/INDEX",
     "/v1/index%00", "/.git/config"],
)  # fmt: skip
def test_unknown_routes(client: TestClient, path: str) -> None:
    check(client.get(path), 404, code="not-found")


def test_accept_and_origin_change_nothing(client: TestClient) -> None:
    headers = {"accept": "text/html", "origin": "https://evil.example"}
    check(client.get("/nothing", headers=headers), 404)
    assert "access-control-allow-origin" not in client.get("/v1/index", headers=headers).headers


def test_ranges_are_ignored(client: TestClient) -> None:
    ranges = "bytes=" + ",".join(f"{n}-{n}" for n in range(2000))
    url = client.get("/v1/items/" + APPLE).json()["thumbnail_url"]
    whole = client.get(url, headers={"range": ranges[:20_000]})
    assert whole.status_code == 200
    assert whole.content == client.get(url).content


def test_json_is_reported_as_json(client: TestClient) -> None:
    response = client.post("/v1/search", content=b"{", headers=JSON)
    assert json.loads(response.content)["detail"].startswith("Not JSON at line 1, column")
