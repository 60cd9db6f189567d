"""Random attributes and filters, and what a filter means: a loop over one item's values."""

from __future__ import annotations

import operator
from typing import Any

from hypothesis import strategies as st

from indexer.filters.declared import parse_fields

FIELDS = parse_fields(["year:int,price:float,brand,sale:bool,tags:str[]", "deep=a.b:int"])
TYPES = {field.name: field.type for field in FIELDS} | {"label": "str", "language": "str"}
WORDS = ["a", "b", "ab", "Ab", "é", "红", "%", "'", ""]
ORDER = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}

_NUMBERS = st.integers(-3, 3) | st.sampled_from([-2.5, 0.0, 0.1, 2.5])
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-3, 3),
    "float": _NUMBERS,
    "str": st.sampled_from(WORDS),
    "bool": st.booleans(),
    "str[]": st.lists(st.sampled_from(WORDS), max_size=3),
}
_OPS = {
    "int": ["eq", "in", "exists", *ORDER],
    "float": ["eq", "in", "exists", *ORDER],
    "str": ["eq", "in", "contains", "exists", *ORDER],
    "bool": ["eq", "in", "exists"],
    "str[]": ["contains", "in", "exists"],
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
    return all(_test(op, given, value) for op, given in document.items() if op != "field")


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
