"""Random attributes and filters, what a filter means by a loop over an item, an index of such."""

from __future__ import annotations

import hashlib
import operator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from indexer.filters.declared import parse_fields, values_of
from indexer.format.items import Item, NewRow
from indexer.store.writer import IndexWriter
from models.encoder import Fingerprint
from models.vectors import Vectors, unit_rows

DIM = 8
FINGERPRINT = Fingerprint("t", "t", "t", "t", "t", "t", DIM)
DIGEST = hashlib.sha256(b"").hexdigest()
FIELDS = parse_fields(
    ["year:int,price:float,brand,sale:bool,tags:str[]", "deep=a.b:int", "taken:date"]
)
TYPES = {field.name: field.type for field in FIELDS} | {"label": "str", "language": "str"}
WORDS = ["a", "b", "ab", "Ab", "é", "红", "%", "'", ""]
DATES = [
    "2023", "2024", "2023-12", "2024-01", "2024-02", "2024-02-29", "2024-01-01", "2023-12-31",
    "2024-01-01T00:00:00Z", "2023-12-31T23:30:00-01:00", "2024-02-29T12:00:00.5Z",
]  # fmt: skip
ORDER = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}

_NUMBERS = st.integers(-3, 3) | st.sampled_from([-2.5, 0.0, 0.1, 2.5])
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-3, 3),
    "float": _NUMBERS,
    "str": st.sampled_from(WORDS),
    "bool": st.booleans(),
    "str[]": st.lists(st.sampled_from(WORDS), max_size=3),
    "date": st.sampled_from(DATES),
}
_OPS = {
    "int": ["eq", "in", "exists", *ORDER],
    "float": ["eq", "in", "exists", *ORDER],
    "str": ["eq", "in", "contains", "exists", *ORDER],
    "bool": ["eq", "in", "exists"],
    "str[]": ["contains", "in", "exists"],
    "date": ["eq", "in", "exists", *ORDER],
}


@st.composite
def items(draw: st.DrawFn) -> dict[str, Any]:
    """Attributes (with `label` and `language` beside them) of one item; anything may be missing."""
    item: dict[str, Any] = {}
    for name, kind in TYPES.items():
        value = draw(st.none() | _VALUES[kind])
        if name == "deep":
            item["a"] = {"b": value}
        elif value is not None or draw(st.booleans()):
            item[name] = value
    return item


@st.composite
def _leaf(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(sorted(TYPES)))
    kind = TYPES[name]
    one = _NUMBERS if kind in ("int", "float") else _VALUES["str" if kind == "str[]" else kind]
    leaf: dict[str, Any] = {"field": name}
    for op in draw(st.lists(st.sampled_from(_OPS[kind]), min_size=1, max_size=2, unique=True)):
        if op == "exists":
            leaf[op] = draw(st.booleans())
        else:
            leaf[op] = draw(st.lists(one, max_size=3) if op == "in" else one)
    return leaf


def documents() -> st.SearchStrategy[dict[str, Any]]:
    """Filters as JSON documents, within the limits."""

    def joined(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        several = st.lists(inner, max_size=3)
        return st.fixed_dictionaries(
            {}, optional={"all": several, "any": several, "not": inner}
        ).filter(bool)

    return st.recursive(_leaf(), joined, max_leaves=8).filter(lambda document: depth(document) < 7)


def depth(document: dict[str, Any]) -> int:
    below = [*document.get("all", []), *document.get("any", [])]
    below += [document["not"]] if "not" in document else []
    return 1 + max(map(depth, below), default=0)


def holds(document: dict[str, Any], item: dict[str, Any]) -> bool:
    """Whether an item meets a filter; written from the documentation, not from the code."""
    if "field" not in document:
        return (
            all(holds(part, item) for part in document.get("all", []))
            and ("any" not in document or any(holds(part, item) for part in document["any"]))
            and ("not" not in document or not holds(document["not"], item))
        )
    name = document["field"]
    value = (item.get("a") or {}).get("b") if name == "deep" else item.get(name)
    if value == []:
        value = None
    test = _date_test if name == "taken" else _test
    return all(test(op, given, value) for op, given in document.items() if op != "field")


def span(text: str) -> tuple[datetime, datetime, int]:
    """When a date of `DATES` begins and ends, and how many of year, month, day, time it names."""
    if "T" in text:
        start = datetime.fromisoformat(text).astimezone(UTC)
        width = timedelta(milliseconds=100) if "." in text else timedelta(seconds=1)
        return start, start + width, 4
    parts = [int(part) for part in text.split("-")]
    year, month, day = (*parts, 1, 1)[:3]
    start = datetime(year, month, day, tzinfo=UTC)
    if len(parts) == 3:
        return start, start + timedelta(days=1), 3
    if len(parts) == 2:
        return start, datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC), 2
    return start, datetime(year + 1, 1, 1, tzinfo=UTC), 1


def _date_test(op: str, given: Any, value: Any) -> bool:
    if op == "exists":
        return (value is not None) == given
    if value is None:
        return False
    if op == "in":
        return any(_date_test("eq", one, value) for one in given)
    (start, end, parts), (begins, _, known) = span(given), span(value)
    within = start <= begins < end
    if op == "eq":
        return within and known >= parts
    after, before = begins >= end, begins < start
    return {"gt": after, "lt": before, "gte": after or within, "lte": before or within}[op]


def _test(op: str, given: Any, value: Any) -> bool:
    if op == "exists":
        return (value is not None) == given
    if value is None:
        return False
    if isinstance(value, list):
        return given in value if op == "contains" else any(one in value for one in given)
    if op == "in":
        return value in given
    if op == "contains":
        return given in value
    return value == given if op == "eq" else bool(ORDER[op](value, given))


# -- an index of such items ----------------------------------------------------------------------


def random_rows(count: int, seed: int = 0) -> Vectors:
    return unit_rows(np.random.default_rng(seed).standard_normal((count, DIM)))


def fill(
    path: Path,
    attributes: list[dict[str, Any]],
    vectors_ND: Vectors,
    *,
    fields: Any = FIELDS,
    segments: int = 1,
    dead: set[int] = frozenset(),  # type: ignore[assignment]
    modality: Any = "image",
) -> None:
    """An index of these rows, in turn spread over segments, without any model."""
    with IndexWriter(path, FINGERPRINT, fields=fields) as writer:
        parts = [writer.new_segment(modality) for _ in range(segments)]
        where = []
        for number, (row, vector_D) in enumerate(zip(attributes, vectors_ND, strict=True)):
            part = parts[number % segments]
            where.append((number % segments, part.rows))
            item = Item(f"i{number:06}", modality, "", None, row.get("language"), None,
                        row.get("label"), {}, DIGEST)  # fmt: skip
            values, _ = values_of(row, fields)
            part.add(vector_D[None], [NewRow(item.id, item, values=values)])
        # in one commit: a second would merge segments as small as these
        manifest = writer.commit(parts, [where[number] for number in dead])
        assert len(manifest.segments) == min(segments, len(attributes))
