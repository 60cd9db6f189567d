"""Declarations of filterable fields, and values taken from attributes."""

from __future__ import annotations

from typing import Any

import pytest

from indexer.filters.declared import Field, check_fields, parse_fields, values_of
from models.errors import InputError


def test_declarations() -> None:
    fields = parse_fields(["year:int, brand:str,tags:str[]", "taken=exif.date.year:int", "类别"])
    assert fields == (
        Field("year", "int", "year"),
        Field("brand", "str", "brand"),
        Field("tags", "str[]", "tags"),
        Field("taken", "int", "exif.date.year"),
        Field("类别", "str", "类别"),
    )
    assert parse_fields([]) == ()


@pytest.mark.parametrize(
    "spec",
    [
        "", "a,", ":int", "a:", "a:integer", "a:int[]", "a b:int", "1a:int", "a.b:int", "a=:int",
        "a=b..c:int", "a=.b:int", "a:int:int", "a=b=c:int", "a-:int", "'a':int",
        "x" * 65, "a:int,a:str", "label:str", "language", "a=b c:int",
    ],
)  # fmt: skip
def test_declarations_that_are_refused(spec: str) -> None:
    with pytest.raises(InputError):
        parse_fields([spec])


def test_a_limit_on_their_number() -> None:
    check_fields([Field(f"f{i}", "int") for i in range(32)])
    with pytest.raises(InputError, match="32"):
        check_fields([Field(f"f{i}", "int") for i in range(33)])


VALUES: list[tuple[str, Any, Any]] = [
    ("int", 5, 5), ("int", -(2**63), -(2**63)), ("int", 5.0, 5), ("int", -0.0, 0),
    ("float", 5, 5.0), ("float", 0.5, 0.5), ("float", 2**70, float(2**70)),
    ("bool", True, 1), ("bool", False, 0),
    ("str", "", ""), ("str", "x" * 1000, "x" * 1000),
    ("str[]", [], ()), ("str[]", ["b", "a", "b"], ("b", "a")),
    ("int", None, None), ("str[]", None, None),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "found", "stored"), VALUES, ids=range(len(VALUES)))
def test_values_that_are_stored(kind: str, found: Any, stored: Any) -> None:
    values, problems = values_of({"x": found}, parse_fields([f"x:{kind}"]))
    assert (values, problems) == ((stored,), [])
    assert type(values[0]) is type(stored)


WRONG: list[tuple[str, Any, str]] = [
    ("int", "5", "text"), ("int", 5.5, "a number"), ("int", True, "a truth value"),
    ("int", 2**63, "64 bits"), ("int", 1e300, "64 bits"), ("int", [5], "a list"),
    ("float", "0.5", "text"), ("float", False, "a truth value"), ("float", 10**400, "too large"),
    ("bool", 1, "a number"), ("bool", "true", "text"),
    ("str", 5, "a number"), ("str", {"a": 1}, "an object"), ("str", "x" * 1001, "limit is 1000"),
    ("str", "a\0", "NUL"), ("str[]", "a", "text"), ("str[]", ["a", 1], "a number"),
    ("str[]", ["a"] * 1001, "limit is 1000"), ("str[]", [None], "null"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "found", "why"), WRONG, ids=range(len(WRONG)))
def test_values_of_the_wrong_type_are_missing_and_reported(kind: str, found: Any, why: str) -> None:
    values, problems = values_of({"x": found, "y": 1}, parse_fields([f"x:{kind},y:int"]))
    assert values == (None, 1)
    (problem,) = problems
    assert problem.startswith("x: ")
    assert why in problem


def test_paths_reach_inside_and_a_key_with_dots_comes_first() -> None:
    fields = parse_fields(["a=meta.year:int", "b=names.0:str", "c=x.y:int", "d=meta.year.z:int"])
    attributes = {"meta": {"year": 7}, "names": ["n"], "x.y": 1, "x": {"y": 2}}
    assert values_of(attributes, fields) == ((7, "n", 1, None), [])
