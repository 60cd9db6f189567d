"""`SearchOptions`: what it refuses, what its switches stand for, what reading it costs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace

import pytest

from indexer.filters.language import parse_filter
from indexer.search.options import (
    DEFAULTS,
    HYBRID,
    MAX_K,
    MAX_OFFSET,
    NEAR_DUPLICATE,
    SearchOptions,
    SortKey,
)
from models.errors import InputError

EVERY = SearchOptions(
    k=3,
    offset=2,
    target="texts",
    filter=parse_filter({"field": "year", "gte": 2000}),
    min_score=0.5,
    hybrid=0.25,
    deduplicate=0.75,
    exact=True,
    effort=9,
    include=frozenset({"embedding"}),
    sort=(SortKey("taken", "desc"),),
)


@pytest.mark.parametrize(
    "values",
    [
        {"k": 0}, {"k": -1}, {"offset": -1}, {"target": "all"}, {"effort": 0},
        {"hybrid": 1.1}, {"hybrid": -0.1}, {"hybrid": float("nan")},
        {"deduplicate": 0.0}, {"deduplicate": 1.5}, {"deduplicate": float("nan")},
        {"sort": "taken:down"}, {"sort": 7}, {"sort": [7]}, {"sort": [{"order": "asc"}]},
        {"sort": [{"field": "taken", "by": "size"}]}, {"sort": [{"field": 7}]}, {"sort": "a,b,a"},
        {"sort": ",".join(f"f{n}" for n in range(9))}, {"sort": [{"field": "a", "order": ["asc"]}]},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_index_can_answer_cannot_be_asked(values: dict[str, object]) -> None:
    with pytest.raises(InputError):
        SearchOptions(**values)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        replace(EVERY, **values)  # type: ignore[arg-type]


def test_switches_stand_for_their_numbers() -> None:
    on, off = SearchOptions(hybrid=True, deduplicate=True), SearchOptions(hybrid=False)
    assert (on.hybrid, on.deduplicate) == (HYBRID, NEAR_DUPLICATE)
    assert replace(on, deduplicate=False) == replace(off, hybrid=True)
    assert off == DEFAULTS
    # a number is not a switch
    assert (SearchOptions(hybrid=1).hybrid, SearchOptions(deduplicate=1).deduplicate) == (1, 1)


def test_a_page_of_a_surface_has_bounds_the_ranking_code_has_not() -> None:
    SearchOptions(k=MAX_K, offset=MAX_OFFSET).check_page()
    for large in (SearchOptions(k=MAX_K + 1), SearchOptions(offset=MAX_OFFSET + 1)):
        with pytest.raises(InputError, match="must be between"):
            large.check_page()


def test_every_field_is_spelt_and_some_are_the_answers_alone() -> None:
    assert all(getattr(EVERY, one.name) != getattr(DEFAULTS, one.name) for one in fields(EVERY))
    asked = EVERY.ranking(7, 1)
    changed = {one.name for one in fields(EVERY) if getattr(asked, one.name) != getattr(EVERY, one.name)}  # noqa: E501  # fmt: skip
    assert changed == {"k", "offset", "include"}
    assert hash(asked) == hash(replace(EVERY, include=frozenset()).ranking(7, 1))
    alone = EVERY.by_cosine()
    assert (alone.hybrid, alone.deduplicate, alone.min_score, alone.sort) == (0.0, None, None, ())
    again = replace(alone, hybrid=0.25, deduplicate=0.75, min_score=0.5, sort="taken:desc")  # type: ignore[arg-type]
    assert again == EVERY


def test_reading_them_loads_nothing_heavy() -> None:
    code = "import sys, indexer.search.options; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"numpy", "faiss", "torch", "pydantic"}.isdisjoint(done.stdout.split())


def test_fields_to_sort_by_are_spelt_as_it_suits() -> None:
    wanted = (SortKey("taken", "desc"), SortKey("price"))
    for spelt in (
        "taken:desc, price",
        ["taken:desc", "price:asc"],
        [{"field": "taken", "order": "desc"}, {"field": "price"}],
        [SortKey("taken", "desc"), "price"],
        wanted,
    ):
        assert SearchOptions(sort=spelt).sort == wanted  # type: ignore[arg-type]
    assert SearchOptions(sort="price").sort == (SortKey("price"),)  # type: ignore[arg-type]
    assert hash(SearchOptions(sort=wanted)) is not None
    assert EVERY.ranking(5, 0).sort == EVERY.sort
