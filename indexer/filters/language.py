"""Parses the filter language, strictly, from JSON into a small tree; checks what fields can answer.

    {"all": [...], "any": [...], "not": {...}}      keys standing together must all hold
    {"field": "year", "gte": 2000, "lt": 2010}      one test or more, all must hold

A missing value satisfies no test, and `not` is the plain complement: `{"not": {"field": "brand",
"eq": "x"}}` also selects what has no brand. The logic has two values only, so De Morgan's laws
hold; `exists` tells missing from other.

A date compares as the span of time that it names (`indexer.filters.dates`): `{"eq": "2024-05"}` and
`in` select what is known to lie within that month, `gt` what begins after it, `lt` what begins
before it, `gte` and `lte` each of these and what begins within.

It knows declared fields, nothing of SQL (`indexer.filters.sql`), segments or vectors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from indexer.filters.dates import FORMS, parse_date
from indexer.filters.declared import BUILT_IN, MAX_CHARACTERS, Field
from models.errors import InvalidFilterError

MAX_DEPTH: Final = 8
MAX_NODES: Final = 100
MAX_VALUES: Final = 1000
MAX_TOTAL_CHARACTERS: Final = 100_000
MAX_SUBSTRINGS: Final = 10
"""Tests that no index serves: each reads every value, 20 ns a row, and the next query waits."""

Op = Literal["eq", "in", "gt", "gte", "lt", "lte", "contains", "exists"]
Scalar: TypeAlias = int | float | str | bool

_ORDER: Final = ("gt", "gte", "lt", "lte")
_OPS: Final[dict[str, frozenset[str]]] = {
    "int": frozenset({"eq", "in", "exists", *_ORDER}),
    "float": frozenset({"eq", "in", "exists", *_ORDER}),
    "str": frozenset({"eq", "in", "contains", "exists", *_ORDER}),
    "bool": frozenset({"eq", "in", "exists"}),
    "str[]": frozenset({"in", "contains", "exists"}),
    "date": frozenset({"eq", "in", "exists", *_ORDER}),
}
_ALL_OPS: Final[tuple[Op, ...]] = ("eq", "in", "gt", "gte", "lt", "lte", "contains", "exists")
_JOINS: Final = ("all", "any", "not")
_INT64: Final = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Compare:
    """One test of one field; `where` points at it in the caller's document."""

    field: str
    op: Op
    value: Scalar | tuple[Scalar, ...]
    where: str = dataclasses.field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class AllOf:
    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    part: Filter


Filter: TypeAlias = Compare | AllOf | AnyOf | Not
"""Hashable, so that it can name what was computed for it."""


def parse_filter(document: object) -> Filter:
    """A JSON document as a filter; whether its fields exist is `check_filter`'s question.

    Raises:
        InvalidFilterError: not of the language, or beyond the limits of depth, nodes, list values
            and characters; `where` is a JSON pointer into the document.
    """
    return _Parser().node(document, "", 1)


def check_filter(wanted: Filter, fields: Sequence[Field]) -> None:
    """Refuse what an index with these declared fields cannot answer.

    Raises:
        InvalidFilterError: an undeclared field (the message names the declared ones), a test its
            type does not take, a value of another type, or too many substring tests.
    """
    declared = {one.name: one for one in (*fields, *BUILT_IN)}
    substrings = 0
    for test in _tests(wanted):
        known = declared.get(test.field)
        if known is None:
            raise InvalidFilterError(
                "this field is not declared; declared are "
                + ", ".join(str(one) for one in declared.values()),
                where=f"{test.where}/field",
            )
        if test.op not in _OPS[known.type]:
            takes = ", ".join(op for op in _ALL_OPS if op in _OPS[known.type])
            raise InvalidFilterError(
                f"field {known} takes {takes}", where=f"{test.where}/{test.op}"
            )
        values = test.value if isinstance(test.value, tuple) else (test.value,)
        if test.op != "exists" and not all(_fits(value, known.type) for value in values):
            raise InvalidFilterError(
                f"field {known} is compared with {_WANTED[known.type]}",
                where=f"{test.where}/{test.op}",
            )
        substrings += test.op == "contains" and known.type == "str"
        if substrings > MAX_SUBSTRINGS:
            raise InvalidFilterError(
                f"more than {MAX_SUBSTRINGS} substring tests", where=f"{test.where}/{test.op}"
            )


class _Parser:
    """Counts what it has read, so that no document is expensive however it is shaped."""

    def __init__(self) -> None:
        self._nodes = 0
        self._values = 0
        self._characters = 0

    def node(self, document: object, where: str, depth: int) -> Filter:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise InvalidFilterError(f"more than {MAX_NODES} nodes", where=where)
        if depth > MAX_DEPTH:
            raise InvalidFilterError(f"nested deeper than {MAX_DEPTH} levels", where=where)
        if not isinstance(document, Mapping):
            raise InvalidFilterError("a filter is an object", where=where)
        if "field" in document:
            return self._leaf(document, where)
        if not document or not set(document) <= set(_JOINS):
            raise InvalidFilterError(
                "an object has field and its tests, or some of all, any and not", where=where
            )
        parts: list[Filter] = []
        for join in _JOINS:
            if join not in document:
                continue
            below = document[join]
            if join == "not":
                parts.append(Not(self.node(below, f"{where}/not", depth + 1)))
                continue
            if not isinstance(below, list):
                raise InvalidFilterError(f"{join} takes a list", where=f"{where}/{join}")
            members = tuple(
                self.node(member, f"{where}/{join}/{number}", depth + 1)
                for number, member in enumerate(below)
            )
            parts.append(AllOf(members) if join == "all" else AnyOf(members))
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _leaf(self, document: Mapping[str, Any], where: str) -> Filter:
        name = document["field"]
        if not isinstance(name, str):
            raise InvalidFilterError("a field is named by a string", where=f"{where}/field")
        self._string(name, f"{where}/field")
        given = [op for op in _ALL_OPS if op in document]
        if not given or len(given) + 1 != len(document):
            raise InvalidFilterError(
                f"beside field an object has tests: {', '.join(_ALL_OPS)}", where=where
            )
        tests = tuple(
            Compare(name, op, self._value(op, document[op], where), where) for op in given
        )
        return tests[0] if len(tests) == 1 else AllOf(tests)

    def _value(self, op: str, value: object, where: str) -> Scalar | tuple[Scalar, ...]:
        where = f"{where}/{op}"
        if op == "exists":
            if not isinstance(value, bool):
                raise InvalidFilterError("exists takes true or false", where=where)
            return value
        if op != "in":
            return self._scalar(value, where)
        if not isinstance(value, list):
            raise InvalidFilterError("in takes a list", where=where)
        if self._values + len(value) > MAX_VALUES:
            raise InvalidFilterError(f"more than {MAX_VALUES} values in lists", where=where)
        self._values += len(value)
        return tuple(self._scalar(entry, f"{where}/{number}") for number, entry in enumerate(value))

    def _scalar(self, value: object, where: str) -> Scalar:
        if isinstance(value, str):
            self._string(value, where)
            return value
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            if value not in _INT64:
                raise InvalidFilterError("a number needs more than 64 bits", where=where)
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        raise InvalidFilterError(
            "a value is a string, a finite number or a truth value", where=where
        )

    def _string(self, text: str, where: str) -> None:
        self._characters += len(text)
        if len(text) > MAX_CHARACTERS or self._characters > MAX_TOTAL_CHARACTERS:
            raise InvalidFilterError(
                f"a string has at most {MAX_CHARACTERS} characters, "
                f"all together {MAX_TOTAL_CHARACTERS}",
                where=where,
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidFilterError("a string is not valid Unicode", where=where) from None
        if "\0" in text:
            raise InvalidFilterError("a string holds NUL", where=where)


def _tests(wanted: Filter) -> list[Compare]:
    match wanted:
        case Compare():
            return [wanted]
        case Not(part):
            return _tests(part)
        case AllOf(parts) | AnyOf(parts):
            return [test for part in parts for test in _tests(part)]


_WANTED: Final = {
    "int": "numbers",
    "float": "numbers",
    "str": "strings",
    "str[]": "strings",
    "bool": "true or false",
    "date": f"dates: {FORMS}",
}


def _fits(value: Scalar, kind: str) -> bool:
    if kind == "bool":
        return isinstance(value, bool)
    if kind in ("int", "float"):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, str) and (kind != "date" or _is_date(value))


def _is_date(text: str) -> bool:
    try:
        parse_date(text)
    except ValueError:
        return False
    return True
