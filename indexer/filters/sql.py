"""Turns a filter into an SQL condition over a segment's field table (`indexer.format.field_table`).

What a caller wrote becomes parameters only; the names of columns come from the index. It knows the
filter's tree and where values are, nothing of databases or of how a filter was written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from indexer.filters.dates import GRAINS, Span, parse_date
from indexer.filters.language import AllOf, AnyOf, Compare, Filter, Not, Scalar

_ORDER: Final[dict[str, str]] = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


@dataclass(frozen=True, slots=True)
class Column:
    """Where the values of a field are: a column, or the entries of a list of that number."""

    type: str
    name: str
    number: int


@dataclass(frozen=True, slots=True)
class Condition:
    """An SQL condition over rows of `indexer.format.field_table`, true or not; its parameters."""

    sql: str
    values: tuple[Scalar, ...] = ()


def condition(wanted: Filter, columns: Mapping[str, Column]) -> Condition:
    """A checked filter as SQL.

    SQL's logic has three values. A test of a missing value is NULL, which in a conjunction or
    disjunction selects as little as false does, so tests stand bare there and can use an index;
    only under `not` the difference matters, and there `IS NOT TRUE` folds NULL into false.
    """
    match wanted:
        case Compare():
            return _test_sql(wanted, columns[wanted.field])
        case Not(part):
            inner = condition(part, columns)
            return Condition(f"(({inner.sql}) IS NOT TRUE)", inner.values)
        case AllOf(parts):
            return _join([condition(part, columns) for part in parts], " AND ", "1")
        case AnyOf(parts):
            return _join([condition(part, columns) for part in parts], " OR ", "0")


def _join(parts: Sequence[Condition], word: str, empty: str) -> Condition:
    if not parts:
        return Condition(empty)
    return Condition(
        "(" + word.join(part.sql for part in parts) + ")",
        tuple(value for part in parts for value in part.values),
    )


def _date_sql(op: str, spans: Sequence[Span], name: str) -> Condition:
    """A test of stored dates: those within a span, which are known as well, or beside it."""
    if op in _ORDER:
        [(low, high)] = [span.bounds for span in spans]
        bound = high if op in ("gt", "lte") else low
        return Condition(f"{name} {'>=' if op in ('gt', 'gte') else '<'} ?", (bound,))
    if len(spans) > 1:
        # halved, not chained: SQLite refuses an expression a thousand deep
        middle = len(spans) // 2
        parts = [_date_sql(op, some, name) for some in (spans[:middle], spans[middle:])]
        return _join(parts, " OR ", "0")
    if not spans:
        return Condition("0")
    known = f"({name} & {GRAINS:d}) >= ?"
    return Condition(
        f"({name} >= ? AND {name} < ? AND {known})", (*spans[0].bounds, spans[0].grain)
    )


def _test_sql(test: Compare, column: Column) -> Condition:
    values = test.value if isinstance(test.value, tuple) else (test.value,)
    marks = ", ".join("?" * len(values))
    if column.type == "str[]":
        chosen = "" if test.op == "exists" else f" AND value IN ({marks})"
        sql = f"row IN (SELECT row FROM lists WHERE field = {column.number:d}{chosen})"  # noqa: S608
        if test.op == "exists":
            return Condition(sql if test.value else f"NOT {sql}")
        return Condition(sql, values)
    if test.op == "exists":
        return Condition(f"{column.name} IS NOT NULL" if test.value else f"{column.name} IS NULL")
    if column.type == "date":
        return _date_sql(test.op, [parse_date(str(value)) for value in values], column.name)
    if test.op == "in":
        return Condition(f"{column.name} IN ({marks})", values)
    if test.op == "contains":
        return Condition(f"instr({column.name}, ?) > 0", values)
    operator = "=" if test.op == "eq" else _ORDER[test.op]
    return Condition(f"{column.name} {operator} ?", values)
