"""What routes declare: all of them do, and the layers find the same route as the router."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts
from services import build_colours, colour_engine
from starlette.routing import Match

from service.engine.engine import Engine
from service.http.app import create_app
from service.http.middleware.endpoints import (
    LOOKUP,
    Endpoint,
    EndpointTable,
    declared,
    json_of,
)
from service.http.middleware.lanes import AdmissionLimits, lane_rules
from service.http.resources import health, openapi
from service.http.resources.embeddings import EmbeddingRequest

POST = replace(LOOKUP, lane="search", cost="body", body=json_of(EmbeddingRequest))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with colour_engine(build_colours(tmp_path_factory.mktemp("endpoints") / "c.index")) as engine:
        yield engine


@pytest.fixture(scope="module")
def app(engine: Engine) -> FastAPI:
    return create_app(engine)


def test_every_route_declares_what_it_needs_and_costs(app: FastAPI) -> None:
    routes = list(iter_route_contexts(app.routes))
    assert len(routes) >= 25
    lanes = {None, *lane_rules(AdmissionLimits())}
    for route in routes:
        endpoint = declared(route.endpoint)
        assert endpoint is not None, route.path
        assert endpoint.lane in lanes
        writes = endpoint.access == "write"
        assert endpoint.idempotency_key == writes, "what changes something can be sent again"
        assert (endpoint.body is not None) == bool(set(route.methods or ()) & {"POST", "PUT"})


def test_a_declaration_leaves_nothing_out() -> None:
    stated: dict[str, Any] = {one.name: getattr(LOOKUP, one.name) for one in fields(Endpoint)}
    assert Endpoint(**stated) == LOOKUP
    for name in stated:
        with pytest.raises(TypeError, match=name):
            Endpoint(**{key: value for key, value in stated.items() if key != name})


def test_a_route_without_a_declaration_is_refused_when_the_application_is_made(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forgotten() -> None: ...

    router = APIRouter()
    router.include_router(health.router)
    router.add_api_route("/v1/forgotten", forgotten)
    monkeypatch.setattr(health, "router", router)
    with pytest.raises(TypeError, match="/v1/forgotten declares no Endpoint"):
        create_app(engine)
    LOOKUP(forgotten)
    assert create_app(engine)


@pytest.mark.parametrize(
    ("method", "endpoint"),
    [
        ("GET", POST),
        ("GET", replace(LOOKUP, access="write")),
        ("GET", replace(LOOKUP, idempotency_key=True)),
        ("POST", LOOKUP),
        ("PUT", LOOKUP),
        ("POST", replace(POST, access="public")),
    ],
)
def test_what_the_methods_contradict_is_refused(method: str, endpoint: Endpoint) -> None:
    async def handler() -> None: ...

    router = APIRouter()
    router.add_api_route("/v1/x", endpoint(handler), methods=[method])
    with pytest.raises(TypeError, match="/v1/x"):
        EndpointTable(router.routes)


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("GET", "/healthz", None),
        ("GET", "/readyz", None),
        ("GET", "/v1/items/a/thumbnail", "light"),
        ("POST", "/v1/search", "search"),
        ("POST", "/v1/search/image-to-text", "pictures"),
        ("POST", "/v1/search/batch", "long"),
        ("POST", "/v1/classify", "long"),
        ("PUT", "/v1/items/a", "write"),
        ("DELETE", "/v1/items/a", "write"),
        ("GET", "/nowhere", "light"),
        ("POST", "/nowhere", "pictures"),
        ("DELETE", "/v1/search", "pictures"),
    ],
)
def test_lanes_of_requests(app: FastAPI, method: str, path: str, wanted: str | None) -> None:
    assert EndpointTable(app.routes).of({"method": method, "path": path}).lane == wanted


PATHS = [
    "/", "/docs", "/healthz", "/v1/index", "/v1/items", "/v1/items/a", "/v1/items/a/b/thumbnail",
    "/v1/items/thumbnail", "/v1/models/a/b", "/v1/models", "/v1/search", "/v1/search/batch",
    "/static/app.js", "/v1/label-sets/x", "/metadata", "/v1/items/", "/healthz\n", "//v1/index",
]  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"])
def test_the_table_and_the_router_choose_the_same_route(app: FastAPI, method: str) -> None:
    table, seen = EndpointTable(app.routes), 0
    for path in PATHS:
        scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
        chosen: list[Endpoint | None] = [
            declared(route.endpoint)
            for route in iter_route_contexts(app.routes)
            if route.matches(dict(scope))[0] is Match.FULL
        ]
        found = table.of(dict(scope))
        if chosen:
            assert found is chosen[0], path
            seen += 1
        else:
            assert found.access == "read"
            assert not found.idempotency_key
    assert method in ("HEAD", "PATCH") or seen


def test_a_path_below_another_root_is_nobodys(app: FastAPI) -> None:
    scope = {"method": "GET", "path": "/healthz", "root_path": "/photos"}
    assert EndpointTable(app.routes).of(scope).access == "read"


def test_the_document_is_a_route_like_any_other() -> None:
    (route,) = openapi.router.routes
    assert declared(getattr(route, "endpoint", None)) is LOOKUP
