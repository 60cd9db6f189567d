"""The filter language: what it takes, what it refuses and where, and the SQL it becomes."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import pytest
from filtering import FIELDS, documents, holds, items
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.filters.declared import values_of
from indexer.filters.language import AllOf, AnyOf, Compare, Not, check_filter, parse_filter
from indexer.filters.sql import condition
from indexer.format.field_table import FieldTableWriter, columns_of, rows_where
from models.errors import InvalidFilterError


def test_the_forms_of_a_node() -> None:
    year, brand = Compare("year", "gte", 2000), Compare("brand", "in", ("a", "b"))
    assert parse_filter({"field": "year", "gte": 2000}) == year
    assert parse_filter({"field": "year", "lt": 5, "gte": 2000}) == AllOf(
        (year, Compare("year", "lt", 5))
    )
    assert parse_filter(
        {
            "any": [{"field": "brand", "in": ["a", "b"]}],
            "not": {"field": "year", "gte": 2000},
        }
    ) == AllOf((AnyOf((brand,)), Not(year)))
    assert parse_filter({"all": []}) == AllOf(())


def test_equal_filters_are_one_key_wherever_they_stood() -> None:
    first = parse_filter({"all": [{"field": "year", "eq": 1}]})
    second = parse_filter({"all": [{"eq": 1, "field": "year"}]})
    assert first == second
    assert hash(first) == hash(second)


DEEP: dict[str, Any] = {"field": "year", "eq": 1}
for _ in range(8):
    DEEP = {"not": DEEP}

REFUSED: list[tuple[Any, str]] = [
    (None, ""), ([], ""), ("year = 1", ""), (1, ""), ({}, ""),
    ({"and": []}, ""), ({"all": [], "none": []}, ""),
    ({"all": {}}, "/all"), ({"any": None}, "/any"), ({"not": []}, "/not"),
    ({"all": [{"field": "year", "eq": 1}, {}]}, "/all/1"),
    ({"field": "year"}, ""), ({"field": 1, "eq": 1}, "/field"),
    ({"field": None, "eq": 1}, "/field"),
    ({"field": "year", "eq": 1, "or": 2}, ""), ({"field": "year", "$eq": 1}, ""),
    ({"field": "brand", "regex": ".*"}, ""), ({"field": "year", "eq": 1, "all": []}, ""),
    ({"field": "year", "eq": None}, "/eq"), ({"field": "year", "eq": [1]}, "/eq"),
    ({"field": "year", "eq": {"a": 1}}, "/eq"), ({"field": "year", "in": 1}, "/in"),
    ({"field": "year", "in": [1, None]}, "/in/1"), ({"field": "year", "exists": 1}, "/exists"),
    ({"field": "year", "eq": float("nan")}, "/eq"), ({"field": "year", "eq": float("inf")}, "/eq"),
    ({"field": "year", "eq": 2**63}, "/eq"), ({"field": "year", "eq": -(2**63) - 1}, "/eq"),
    ({"field": "brand", "eq": "x" * 1001}, "/eq"), ({"field": "x" * 1001, "eq": 1}, "/field"),
    ({"field": "brand", "eq": "a\0b"}, "/eq"), ({"field": "brand", "eq": "\ud800"}, "/eq"),
    ({"field": "brand", "in": ["x"] * 1001}, "/in"),
    ({"any": [{"field": "brand", "in": ["x"] * 600}] * 2}, "/any/1/in"),
    ({"field": "brand", "in": ["x" * 1000] * 200}, "/in/99"),
    ({"any": [{"field": "year", "eq": 1}] * 10_000}, "/any/99"),
    (DEEP, "/not" * 8),
]  # fmt: skip


@pytest.mark.parametrize(("document", "where"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_not_of_the_language(document: Any, where: str) -> None:
    with pytest.raises(InvalidFilterError) as caught:
        parse_filter(document)
    assert caught.value.where == where
    assert "'" not in caught.value.message, "nothing of the caller's is repeated"


def test_limits_are_where_they_say() -> None:
    parse_filter({"any": [{"field": "year", "eq": 1}] * 99})
    parse_filter({"field": "brand", "in": ["x"] * 1000})
    parse_filter(DEEP["not"])
    for field, times in (("brand", 10), ("tags", 99)):
        many = parse_filter({"any": [{"field": field, "contains": "x"}] * times})
        check_filter(many, FIELDS)
    # width costs nothing beyond the limit: refused after a hundred nodes, not after a million
    with pytest.raises(InvalidFilterError):
        parse_filter({"all": [{"all": [{}] * 1_000_000}]})


UNANSWERABLE: list[tuple[Any, str, str]] = [
    ({"field": "color", "eq": 1}, "/field", "year (int)"),
    ({"field": "__class__", "exists": True}, "/field", "language (str)"),
    ({"field": "f0", "eq": 1}, "/field", "not declared"),
    ({"field": "row", "eq": 1}, "/field", "not declared"),
    ({"field": "year) OR 1=1 --", "eq": 1}, "/field", "not declared"),
    ({"all": [{"not": {"field": "Year", "eq": 1}}]}, "/all/0/not/field", "not declared"),
    ({"field": "year", "eq": "2000"}, "/eq", "numbers"),
    ({"field": "year", "eq": True}, "/eq", "numbers"),
    ({"field": "year", "in": [1, "2"]}, "/in", "numbers"),
    ({"field": "year", "contains": 1}, "/contains", "takes eq, in, gt"),
    ({"field": "price", "lt": False}, "/lt", "numbers"),
    ({"field": "brand", "eq": 1}, "/eq", "strings"),
    ({"field": "sale", "eq": 1}, "/eq", "true or false"),
    ({"field": "sale", "gt": True}, "/gt", "takes eq, in, exists"),
    ({"field": "tags", "eq": "a"}, "/eq", "takes in, contains, exists"),
    ({"field": "tags", "contains": 1}, "/contains", "strings"),
    ({"field": "label", "eq": 1}, "/eq", "strings"),
    ({"any": [{"field": "brand", "contains": "x"}] * 11}, "/any/10/contains", "more than 10"),
]


@pytest.mark.parametrize(("document", "where", "says"), UNANSWERABLE, ids=range(len(UNANSWERABLE)))
def test_what_these_fields_cannot_answer(document: Any, where: str, says: str) -> None:
    wanted = parse_filter(document)
    with pytest.raises(InvalidFilterError) as caught:
        check_filter(wanted, FIELDS)
    assert caught.value.where == where
    assert says in caught.value.message


def table(rows: list[dict[str, Any]]) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:")
    writer = FieldTableWriter(db, FIELDS)
    for number, row in enumerate(rows):
        values, problems = values_of(row, FIELDS)
        assert not problems
        writer.add(number, row.get("label"), row.get("language"), values)
    writer.finish()
    return db


def select(db: sqlite3.Connection, document: Any) -> list[int]:
    wanted = parse_filter(document)
    check_filter(wanted, FIELDS)
    where = condition(wanted, columns_of(FIELDS))
    return rows_where(lambda sql, values: db.execute(sql, values).fetchall(), where).tolist()


@settings(max_examples=300, deadline=None)
@given(st.lists(items(), max_size=12), documents())
def test_sql_selects_what_a_loop_over_the_items_does(
    rows: list[dict[str, Any]], document: Any
) -> None:
    db = table(rows)
    expected = [number for number, row in enumerate(rows) if holds(document, row)]
    assert select(db, document) == expected
    everything = list(range(len(rows)))
    assert select(db, {"not": document}) == [row for row in everything if row not in expected]
    db.close()


def test_a_missing_value_satisfies_no_test_and_not_is_the_complement() -> None:
    db = table([{"brand": "x"}, {"brand": "y"}, {}, {"tags": []}, {"tags": ["x"]}])
    x: dict[str, Any] = {"field": "brand", "eq": "x"}
    assert select(db, x) == [0]
    assert select(db, {"not": x}) == [1, 2, 3, 4]
    assert select(db, {"not": {"not": x}}) == [0]
    assert select(db, {"all": [{"not": x}, {"field": "brand", "exists": True}]}) == [1]
    for test in ({"gte": ""}, {"lt": "z"}, {"in": ["x", "y"]}, {"contains": ""}):
        assert select(db, {"field": "brand", **test}) == [0, 1]
    assert select(db, {"field": "brand", "exists": False}) == [2, 3, 4]
    # an empty list is no value
    assert select(db, {"field": "tags", "exists": True}) == [4]
    assert select(db, {"not": {"field": "tags", "contains": "x"}}) == [0, 1, 2, 3]


INJECTIONS = [
    "' OR '1'='1", '" OR 1=1 --', "x'); DROP TABLE fields; --", "%", "_", "?", "\\", "NULL",
    "x' UNION SELECT row FROM items --", "🙂", "{0.__class__}", "$(id)", ";", "/*", "''",
]  # fmt: skip


@pytest.mark.parametrize("text", INJECTIONS)
def test_sql_in_a_value_is_only_a_value(text: str) -> None:
    db = table([{"brand": text, "tags": [text]}, {"brand": "plain"}, {}])
    for document in (
        {"field": "brand", "eq": text},
        {"field": "brand", "in": [text]},
        {"field": "brand", "contains": text},
        {"field": "tags", "contains": text},
        {"field": "tags", "in": [text]},
    ):
        assert select(db, document) == [0]
        assert select(db, {"not": document}) == [1, 2]
    assert db.execute("SELECT count(*) FROM fields").fetchone() == (3,)


def test_numbers_compare_exactly_across_whole_and_real() -> None:
    big = 2**53 + 1
    db = table([{"year": big}, {"year": 3}, {"price": 0.1}, {"price": 3.0}])
    assert select(db, {"field": "year", "eq": big}) == [0]
    assert select(db, {"field": "year", "eq": float(2**53)}) == []
    assert select(db, {"field": "year", "gt": 2.5, "lt": 3.5}) == [1]
    assert select(db, {"field": "price", "eq": 3}) == [3]
    assert select(db, {"field": "price", "eq": 0.1}) == [2]


@settings(max_examples=200, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["all", "any", "not", "field", "eq", "in", "gt", "exists", "x"]), inner,
        max_size=4,
    ),
    max_leaves=20,
))  # fmt: skip
def test_any_document_is_parsed_or_refused(document: Any) -> None:
    try:
        check_filter(parse_filter(document), FIELDS)
    except InvalidFilterError as error:
        json.dumps(error.where)
