"""Filters and fields over HTTP: on all three searches, refused with a pointer, never repeated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import ColourEncoder, solid
from indexes import build, record
from starlette.testclient import TestClient

from indexer.filters.declared import parse_fields
from indexer.search.snapshot import open_snapshot
from service.engine.engine import Engine
from service.http.app import create_app

ROWS = [
    record("a", "red", "red one", year=1999, brand="x", sale=True, tags=["old", "car"]),
    record("b", "red", "red two", year=2005, brand="it's", sale=False),
    record("c", "red", year=2020, tags=["car"]),
    record("d", "blue", "blue one", year=2021, brand="x"),
]
DAYS = ["2023:12:31 23:30:00", "2024-05-17T10:30:00+02:00", "2024-05", None]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    out: Path = tmp_path_factory.mktemp("filters") / "x.index"
    build(ROWS, out, fields=parse_fields(["year:int,brand,sale:bool,tags:str[]"]))
    encoder = ColourEncoder()
    with (
        open_snapshot(out, fingerprint=None) as snapshot,
        TestClient(create_app(Engine(encoder, snapshot))) as client,
    ):
        client.encoder = encoder  # type: ignore[attr-defined]
        yield client


def ids(response: Any) -> list[str]:
    assert response.status_code == 200, response.text
    return [hit["id"] for hit in response.json()["hits"]]


CASES: list[tuple[dict[str, Any] | None, list[str]]] = [
    (None, ["a", "b", "c", "d"]),
    ({"field": "year", "gte": 2005}, ["b", "c", "d"]),
    ({"field": "year", "gte": 2005, "lt": 2021}, ["b", "c"]),
    ({"field": "brand", "eq": "it's"}, ["b"]),
    ({"field": "brand", "in": ["x", "y"]}, ["a", "d"]),
    ({"not": {"field": "brand", "eq": "x"}}, ["b", "c"]),
    ({"field": "sale", "eq": False}, ["b"]),
    ({"field": "tags", "contains": "car"}, ["a", "c"]),
    ({"any": [{"field": "tags", "contains": "old"}, {"field": "year", "gt": 2020}]}, ["a", "d"]),
    ({"field": "language", "exists": False}, ["c"]),
    ({"field": "label", "exists": True}, []),
    ({"field": "brand", "eq": "' OR 1=1 --"}, []),
    ({"all": []}, ["a", "b", "c", "d"]),
    ({"any": []}, []),
]


@pytest.mark.parametrize(("wanted", "expected"), CASES, ids=range(len(CASES)))
def test_all_three_searches_take_a_filter(
    client: TestClient, wanted: dict[str, Any] | None, expected: list[str]
) -> None:
    body = {"k": 9, "filter": wanted}
    assert ids(client.post("/v1/search", json={"query": {"text": "red"}, **body})) == expected
    assert ids(client.post("/v1/search/text-to-image", json={"text": "red", **body})) == expected
    upload = {"image": ("x", solid("red"))}
    form = {"k": "9", "target": "images"} | (
        {} if wanted is None else {"filter": json.dumps(wanted)}
    )
    path = "/v1/search/image-to-text"
    assert ids(client.post(path, files=upload, data=form)) == expected
    raw = client.post(
        path, params=form, content=solid("red"), headers={"content-type": "image/png"}
    )
    assert ids(raw) == expected


def test_texts_have_their_pictures_values_and_pages_stay_whole(client: TestClient) -> None:
    body = {"query": {"text": "red"}, "target": "texts", "filter": {"field": "brand", "eq": "x"}}
    assert ids(client.post("/v1/search", json=body)) == ["a#en/0", "d#en/0"]
    page = {"query": {"text": "red"}, "filter": {"field": "year", "gt": 2000}, "k": 1}
    assert [ids(client.post("/v1/search", json={**page, "offset": n})) for n in range(4)] == [
        ["b"],
        ["c"],
        ["d"],
        [],
    ]


def test_an_item_of_the_query_is_left_out_and_its_place_filled(client: TestClient) -> None:
    body = {"query": [{"id": "a"}, {"id": "b"}], "k": 2, "filter": {"field": "year", "gt": 1}}
    assert ids(client.post("/v1/search", json=body)) == ["c", "d"]
    inside = {"query": {"id": "a"}, "k": 9, "filter": {"field": "brand", "eq": "x"}}
    assert ids(client.post("/v1/search", json=inside)) == ["d"]


CANARY = "canaryvalue"
REFUSED: list[tuple[Any, str]] = [
    ({"field": "colour", "eq": CANARY}, "/field"),
    ({"all": [{"field": "year", "gte": 1}, {"field": CANARY, "exists": True}]}, "/all/1/field"),
    ({"field": "year", "eq": CANARY}, "/eq"),
    ({"field": "year", "regex": CANARY}, ""),
    ({CANARY: 1}, ""),
    ({}, ""),
    ([], ""),
    (CANARY, ""),
    (0, ""),
    ({"any": [{"field": "year", "eq": 1}] * 10_000}, "/any/99"),
    ({"field": "tags", "gte": "a"}, "/gte"),
]


@pytest.mark.parametrize(("wanted", "where"), REFUSED, ids=range(len(REFUSED)))
def test_a_filter_that_cannot_be_used(client: TestClient, wanted: Any, where: str) -> None:
    encoder: ColourEncoder = client.encoder  # type: ignore[attr-defined]
    before = encoder.texts_embedded
    for response in (
        client.post("/v1/search", json={"query": {"text": "red"}, "filter": wanted}),
        client.post(
            "/v1/search/image-to-text",
            files={"image": ("x", solid("red"))},
            data={"filter": json.dumps(wanted)},
        ),
    ):
        assert response.status_code == 422
        problem = response.json()
        assert problem["code"] == "invalid-filter"
        assert [error["pointer"] for error in problem["errors"]] == ["#/filter" + where]
        assert CANARY not in response.text
    assert encoder.texts_embedded == before, "refused before anything was embedded"


def test_an_undeclared_field_names_the_declared_ones(client: TestClient) -> None:
    body = {"text": "red", "filter": {"field": "colour", "eq": 1}}
    detail = client.post("/v1/search/text-to-image", json=body).json()["detail"]
    for declared in ("year (int)", "brand (str)", "sale (bool)", "tags (str[])", "label (str)"):
        assert declared in detail


@pytest.mark.parametrize("text", ["", "{", "{'field': 1}", '{"a":1,"a":2}', "NaN", "[" * 5000])
def test_a_filter_in_a_form_that_is_no_json(client: TestClient, text: str) -> None:
    response = client.post(
        "/v1/search/image-to-text", files={"image": ("x", solid("red"))}, data={"filter": text}
    )
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "invalid-filter")


def test_the_index_lists_its_fields_and_their_values(client: TestClient) -> None:
    fields = {field["name"]: field for field in client.get("/v1/index").json()["fields"]}
    assert list(fields) == ["year", "brand", "sale", "tags", "language"], "no item has a label"
    assert fields["year"] == {
        "name": "year", "type": "int", "present": 4, "texts": 3,
        "distinct": None, "values": None,
        "min": 1999, "max": 2021,
    }  # fmt: skip
    assert fields["brand"]["values"] == [
        {"value": "x", "count": 2, "texts": 2},
        {"value": "it's", "count": 1, "texts": 1},
    ]
    assert fields["sale"]["values"] == [
        {"value": False, "count": 1, "texts": 1},
        {"value": True, "count": 1, "texts": 1},
    ]
    assert fields["tags"] == {
        "name": "tags", "type": "str[]", "present": 2, "texts": 1, "distinct": 2,
        "min": None, "max": None,
        "values": [{"value": "car", "count": 2, "texts": 1},
                   {"value": "old", "count": 1, "texts": 1}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The same pictures with a date; those without one name it otherwise."""
    out: Path = tmp_path_factory.mktemp("dates") / "x.index"
    dates = [{} if day is None else {"taken": day} for day in DAYS]
    rows = [
        replace(row, attributes={**row.attributes, **more})
        for row, more in zip(ROWS, dates, strict=True)
    ]
    build(rows, out, fields=parse_fields(["taken:date,year:int,brand"]))
    with (
        open_snapshot(out, fingerprint=None) as snapshot,
        TestClient(create_app(Engine(ColourEncoder(), snapshot))) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("tests", "wanted"),
    [
        ({"eq": "2024"}, ["b", "c"]), ({"eq": "2024-05"}, ["b", "c"]),
        ({"eq": "2024-05-17"}, ["b"]), ({"eq": "2024-05-17T08:30Z"}, ["b"]),
        ({"in": ["2023", "2025"]}, ["a"]), ({"gte": "2024"}, ["b", "c"]),
        ({"lt": "2024"}, ["a"]), ({"gt": "2024-05-01"}, ["b"]),
        ({"lte": "2024-05"}, ["a", "b", "c"]),
        ({"gte": "2023-12-31", "lte": "2023-12-31"}, ["a"]), ({"exists": False}, ["d"]),
    ],
)  # fmt: skip
def test_dates_are_asked_for_by_what_is_known(
    dated: TestClient, tests: dict[str, Any], wanted: list[str]
) -> None:
    body = {"text": "red", "filter": {"field": "taken", **tests}}
    assert sorted(ids(dated.post("/v1/search/text-to-image", json=body))) == wanted


def test_what_is_no_date_is_refused_with_what_is(dated: TestClient) -> None:
    body = {"text": "red", "filter": {"field": "taken", "gte": "17.5.2024"}}
    answer = dated.post("/v1/search/text-to-image", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-filter")
    assert "2024-05-17T10:30:00Z" in answer.text


def test_years_and_months_are_listed(dated: TestClient) -> None:
    [field] = [one for one in dated.get("/v1/index").json()["fields"] if one["name"] == "taken"]
    assert field == {
        "name": "taken", "type": "date", "present": 3, "texts": 2, "distinct": 2,
        "values": [{"value": "2024", "count": 2, "texts": 1},
                   {"value": "2023", "count": 1, "texts": 1}],
        "months": [{"value": "2024-05", "count": 2, "texts": 1},
                   {"value": "2023-12", "count": 1, "texts": 1}],
        "min": "2023-12-31T23:30:00Z", "max": "2024-05-17T08:30:00Z",
    }  # fmt: skip
    for one in [*field["values"], *field["months"]]:
        body = {"text": "red", "filter": {"field": "taken", "eq": one["value"]}}
        assert len(ids(dated.post("/v1/search/text-to-image", json=body))) == one["count"]


SORTED: list[tuple[dict[str, Any], list[str]]] = [
    ({"sort": [{"field": "taken"}]}, ["a", "c", "b", "d"]),
    ({"sort": [{"field": "taken", "order": "desc"}]}, ["b", "c", "a", "d"]),
    ({"sort": [{"field": "brand"}, {"field": "year", "order": "desc"}]}, ["b", "d", "a", "c"]),
    ({"sort": [{"field": "year", "order": "desc"}], "min_score": 0.9}, ["c", "b", "a"]),
    ({"sort": [{"field": "year"}], "k": 2, "offset": 1}, ["b", "c"]),
    ({"sort": [{"field": "year"}], "filter": {"field": "taken", "eq": "2024"}}, ["b", "c"]),
    ({"sort": []}, ["a", "b", "c", "d"]),
]


@pytest.mark.parametrize(("options", "wanted"), SORTED, ids=str)
def test_hits_are_sorted_by_fields(
    dated: TestClient, options: dict[str, Any], wanted: list[str]
) -> None:
    assert ids(dated.post("/v1/search/text-to-image", json={"text": "red", **options})) == wanted
    query = {"query": {"text": "red"}, **options}
    assert ids(dated.post("/v1/search", json=query)) == wanted
    [result] = dated.post("/v1/search/batch", json={"searches": [query]}).json()["results"]
    assert [hit["id"] for hit in result["answer"]["hits"]] == wanted
    asked: dict[str, Any] = {"target": "images", **options}
    asked["sort"] = ",".join(f"{one['field']}:{one.get('order', 'asc')}" for one in asked["sort"])
    asked["filter"] = json.dumps(options["filter"]) if "filter" in options else None
    params = {key: value for key, value in asked.items() if value}
    answer = dated.post("/v1/search/image-to-text", params=params, content=solid("red"),
                        headers={"Content-Type": "image/png"})  # fmt: skip
    assert ids(answer) == wanted


@pytest.mark.parametrize(
    ("sort", "code"),
    [
        ([{"field": "colour"}], "invalid-sort"), ([{"field": "tags"}], "invalid-sort"),
        ([{"field": "year"}, {"field": "year"}], "invalid-sort"),
        ([{"field": "year", "order": "down"}], "invalid-request"), ("year", "invalid-request"),
        ([{"field": "year", "by": "size"}], "invalid-request"), ([{}], "invalid-request"),
        ([{"field": f"f{n}"} for n in range(9)], "invalid-request"),
    ],
)  # fmt: skip
def test_what_cannot_be_sorted_by_is_refused_with_a_pointer(
    client: TestClient, sort: Any, code: str
) -> None:
    answer = client.post("/v1/search", json={"query": {"text": "red"}, "sort": sort})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, code)
    assert problem["errors"][0]["pointer"].startswith("#/sort")
