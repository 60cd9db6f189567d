"""Writes and reads the filterable values inside a segment's `items.sqlite`.

    fields(row, label, language, f0, f1, ...)   a column per field, named by its position
    lists(field, value, row)                    the entries of `str[]` fields

Every row of the segment has one in `fields`, apart from `items` so that a scan reads nothing else.
The names that users chose appear nowhere in SQL. This writes and reads the two tables through a
connection it is given; `indexer.filters.sql` makes the conditions, `indexer.search.facets`
the counts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from indexer.filters.declared import BUILT_IN, Field, Value
from indexer.filters.sql import Column, Condition

Query: TypeAlias = Callable[[str, Sequence[Any]], list[Any]]
"""Runs one SELECT; `indexer.format.items.ItemsReader` provides it."""

_SQL_TYPES: Final = {
    "int": "INTEGER",
    "float": "REAL",
    "bool": "INTEGER",
    "str": "TEXT",
    "date": "INTEGER",
}
_BLOCK: Final = 4096
_SCAN_BLOCK: Final = 65_536


def columns_of(fields: Sequence[Field]) -> dict[str, Column]:
    """Where each field's values are, built-in fields included."""
    columns = {one.name: Column("str", one.name, -1) for one in BUILT_IN}
    for number, declared in enumerate(fields):
        columns[declared.name] = Column(declared.type, f"f{number}", number)
    return columns


def _scalars(fields: Sequence[Field]) -> list[tuple[int, Column]]:
    """Position in a record's values and column, of the fields that have a column."""
    columns = columns_of(fields)
    return [
        (number, columns[declared.name])
        for number, declared in enumerate(fields)
        if declared.type != "str[]"
    ]


class FieldTableWriter:
    """Fills the two tables of a new `items.sqlite`; `finish` builds their indexes."""

    def __init__(self, db: sqlite3.Connection, fields: Sequence[Field]) -> None:
        self._db = db
        self._fields = tuple(fields)
        self._scalars = _scalars(fields)
        names = "".join(f", {column.name} {_SQL_TYPES[column.type]}" for _, column in self._scalars)
        db.execute(
            f"CREATE TABLE fields(row INTEGER PRIMARY KEY, label TEXT, language TEXT{names})"
        )
        db.execute(
            "CREATE TABLE lists(field INTEGER NOT NULL, value TEXT NOT NULL, row INTEGER NOT NULL, "
            "PRIMARY KEY(field, value, row)) WITHOUT ROWID"
        )
        marks = ", ".join("?" * (3 + len(self._scalars)))
        self._insert = f"INSERT INTO fields VALUES ({marks})"  # noqa: S608 - marks only

    def add(
        self, row: int, label: str | None, language: str | None, values: Sequence[Value]
    ) -> None:
        """One row; `values` in the order of the fields, or empty where none are known."""
        assert len(values) in (0, len(self._fields))
        given = [values[number] if values else None for number, _ in self._scalars]
        self._db.execute(self._insert, (row, label, language, *given))
        for number, entries in enumerate(values):
            if isinstance(entries, tuple):
                self._db.executemany(
                    "INSERT INTO lists VALUES (?, ?, ?)", [(number, one, row) for one in entries]
                )

    def finish(self) -> None:
        # after the rows: sorting once is cheaper than keeping an index in order
        for name in ["label", "language", *(column.name for _, column in self._scalars)]:
            self._db.execute(
                f"CREATE INDEX fields_{name} ON fields({name}) WHERE {name} IS NOT NULL"
            )


def rows_where(query: Query, where: Condition) -> npt.NDArray[np.int64]:
    """The rows that meet a condition, ascending, dead ones included."""
    found = query(f"SELECT row FROM fields WHERE {where.sql}", where.values)  # noqa: S608
    # sorted here: SQLite would leave an index it has walked, and sorts more slowly
    return np.sort(np.fromiter(chain.from_iterable(found), dtype=np.int64, count=len(found)))


def count_rows(query: Query) -> int:
    [(count,)] = query("SELECT count(*) FROM fields", ())
    return int(count)


def count_strays(query: Query) -> int:
    """Rows whose label or language is not that of their item."""
    [(count,)] = query(
        "SELECT count(*) FROM items JOIN fields USING (row) "
        "WHERE items.label IS NOT fields.label OR items.language IS NOT fields.language",
        (),
    )
    return int(count)


def value_counts(query: Query, column: Column) -> Iterator[tuple[Any, int]]:
    """(value, rows that have it) of a column or list, values ascending, a block in memory."""
    source, value, known = _source(column)
    last: list[Any] = []
    while True:
        after = f" AND {value} > ?" if last else ""
        block = query(
            f"SELECT {value}, count(*) FROM {source} WHERE {known}{after} "  # noqa: S608
            f"GROUP BY {value} ORDER BY {value} LIMIT {_BLOCK:d}",
            last,
        )
        yield from block
        if len(block) < _BLOCK:
            return
        last = [block[-1][0]]


def values_at(query: Query, column: Column, rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """(row, value) of some rows; a list gives several, a missing value none."""
    source, value, known = _source(column)
    for start in range(0, len(rows), _BLOCK):
        part = [int(row) for row in rows[start : start + _BLOCK]]
        marks = ", ".join("?" * len(part))
        yield from query(
            f"SELECT row, {value} FROM {source} WHERE {known} AND row IN ({marks})",  # noqa: S608
            part,
        )


def column_values(query: Query, column: Column) -> tuple[npt.NDArray[np.int64], list[Any]]:
    """Rows that have a value in a column, ascending, int64 [M], and their values [M]."""
    rows: list[int] = []
    values: list[Any] = []
    select = (
        f"SELECT row, {column.name} FROM fields "  # noqa: S608
        f"WHERE {column.name} IS NOT NULL AND row > ? ORDER BY row LIMIT {_SCAN_BLOCK:d}"
    )
    while block := query(select, (rows[-1] if rows else -1,)):
        more, found = zip(*block, strict=True)
        rows += more
        values += found
    return np.array(rows, dtype=np.int64), values


def count_present(query: Query, column: Column) -> int:
    """Rows with a value."""
    source, _, known = _source(column)
    rows = "DISTINCT row" if column.type == "str[]" else "*"
    [(count,)] = query(f"SELECT count({rows}) FROM {source} WHERE {known}", ())  # noqa: S608
    return int(count)


def extreme(
    query: Query, column: Column, dead: npt.NDArray[np.bool_], *, largest: bool
) -> float | int | None:
    """The smallest or largest value among the living rows of a numeric column."""
    order, sign = ("DESC", "<") if largest else ("ASC", ">")
    name = column.name
    last: list[Any] = []
    size = 16  # the first living one is nearly always among the first few
    while True:
        after = f" AND ({name}, row) {sign} (?, ?)" if last else ""
        block = query(
            f"SELECT {name}, row FROM fields WHERE {name} IS NOT NULL{after} "  # noqa: S608
            f"ORDER BY {name} {order}, row {order} LIMIT {size:d}",
            last,
        )
        for value, row in block:
            if not dead[row]:
                return value  # type: ignore[no-any-return]
        if len(block) < size:
            return None
        last, size = list(block[-1]), _BLOCK


def _source(column: Column) -> tuple[str, str, str]:
    """Table, column of the values, and the condition that there is one."""
    if column.type == "str[]":
        return "lists", "value", f"field = {column.number:d}"
    return "fields", column.name, f"{column.name} IS NOT NULL"
