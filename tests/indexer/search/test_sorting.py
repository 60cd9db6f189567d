"""Sorting by fields against a loop over every item: filters, floors, pages, words, duplicates."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import ColourEncoder
from filtering import TYPES, documents, fill, holds, items, random_rows, span
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from indexes import build, opened, record

from indexer.filters.declared import parse_fields
from indexer.filters.language import parse_filter
from indexer.search.options import SearchOptions, SortKey
from indexer.search.snapshot import Snapshot, open_snapshot
from models.errors import InputError

ENCODER = ColourEncoder()
SORTABLE = sorted(name for name, kind in TYPES.items() if kind != "str[]")
KEYS = st.lists(
    st.builds(SortKey, st.sampled_from(SORTABLE), st.sampled_from(["asc", "desc"])),
    min_size=1, max_size=3, unique_by=lambda key: key.field,
)  # fmt: skip


def value_of(row: dict[str, Any], field: str) -> Any:
    value = row["a"]["b"] if field == "deep" else row.get(field)
    if value is not None and TYPES[field] == "date":
        return span(value)[0].timestamp()
    return value


def by_loops(
    rows: dict[int, dict[str, Any]], keys: list[SortKey], closeness: dict[int, Any]
) -> list[int]:
    """The order of numbered rows: sorted by the last thing that decides first, stably."""
    order = sorted(sorted(rows), key=lambda number: closeness[number])
    for key in reversed(keys):
        known = [number for number in order if value_of(rows[number], key.field) is not None]
        missing = [number for number in order if value_of(rows[number], key.field) is None]
        # a reversed sort keeps equal ones in their order, too
        known.sort(
            key=lambda number, field=key.field: value_of(rows[number], field),  # type: ignore[misc]
            reverse=key.order == "desc",
        )
        order = known + missing
    return order


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[dict[str, Any]], int, set[int]]:
    rows = draw(st.lists(items(), min_size=1, max_size=25))
    dead = draw(st.sets(st.integers(0, len(rows) - 1), max_size=len(rows) // 2))
    return rows, draw(st.integers(1, 3)), dead


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds(), st.none() | documents(), KEYS, st.sampled_from([None, -0.3, 0.2, 0.6]),
       st.integers(4, 15))  # fmt: skip
def test_sorting_is_what_a_loop_sorts(
    world: tuple[list[dict[str, Any]], int, set[int]],
    document: dict[str, Any] | None,
    keys: list[SortKey],
    floor: float | None,
    k: int,
) -> None:
    rows, segments, dead = world
    vectors_ND = random_rows(len(rows))
    vectors_ND[: len(rows) // 2] = vectors_ND[0]  # equal cosines, which ids decide
    query_D = random_rows(1, seed=3)[0]
    stored_ND = vectors_ND.astype(np.float16).astype(np.float64)
    scores = [float(np.float32(row_D @ query_D.astype(np.float64))) for row_D in stored_ND]
    fit = {
        number: row
        for number, row in enumerate(rows)
        if number not in dead
        and (document is None or holds(document, row))
        and (floor is None or scores[number] >= floor)
    }
    closeness = {number: (-scores[number], number) for number in fit}
    wanted = [f"i{number:06}" for number in by_loops(fit, keys, closeness)]
    folder = Path(tempfile.mkdtemp())
    try:
        fill(folder / "x", rows, vectors_ND, segments=segments, dead=dead)
        with open_snapshot(folder / "x", fingerprint=None) as snapshot:
            found: list[str] = []
            for offset in range(0, len(rows) + k, k):
                options = SearchOptions(
                    k=k,
                    offset=offset,
                    filter=None if document is None else parse_filter(document),
                    min_score=floor,
                    sort=tuple(keys),
                )
                [page] = snapshot.search(query_D[None], options)
                assert len(page) == k or offset + len(page) == len(wanted) or not page
                found += [hit.id for hit in page]
                for hit in page:
                    assert hit.score == pytest.approx(scores[int(hit.id[1:])], abs=1e-6)
            assert found == wanted
    finally:
        shutil.rmtree(folder)


# -- with what else orders and thins out ----------------------------------------------------------


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three colours in several segments, with captions, years and some without."""
    out = tmp_path_factory.mktemp("sorted") / "x.index"
    rows = [
        record(
            f"p{number:02}",
            ("red", "green", "blue")[number % 3],
            "harbour" if number % 4 else "old",
            **({} if number % 7 == 6 else {"year": 2000 + number % 5}),
        )
        for number in range(60)
    ]
    build(rows, out, segment_rows=20, fields=parse_fields(["year:int,tags:str[]"]))
    return out


def red(snapshot: Snapshot, **options: Any) -> Any:
    query = ENCODER.embed_texts([ENCODER.prepare_text("red")])
    words = [options.pop("words", None)] if options.get("hybrid") else None
    return snapshot.search(query, SearchOptions(**{"k": 1000, **options}), words)[0]


def years(hits: Any) -> list[int | None]:
    return [hit.item.attributes.get("year") for hit in hits]


def test_equal_values_are_ordered_as_hybrid_search_orders_them(colours: Path) -> None:
    with opened(colours) as snapshot:
        fused = red(snapshot, hybrid=0.7, words="old")
        place = {hit.id: number for number, hit in enumerate(fused)}
        for order in ("asc", "desc"):
            hits = red(snapshot, hybrid=0.7, words="old", sort=f"year:{order}")
            wanted = sorted(hits, key=lambda hit: place[hit.id])
            wanted.sort(key=lambda hit: hit.item.attributes.get("year", 0), reverse=order == "desc")
            wanted.sort(key=lambda hit: "year" not in hit.item.attributes)
            assert [hit.id for hit in hits] == [hit.id for hit in wanted]
            assert {hit.id: hit.fused for hit in hits} == {hit.id: hit.fused for hit in fused}
        plain = [hit.id for hit in red(snapshot, sort="year")]
        assert plain != [hit.id for hit in red(snapshot, hybrid=0.7, words="old", sort="year")]


def test_near_duplicates_of_an_earlier_one_are_left_out(colours: Path) -> None:
    with opened(colours) as snapshot:
        hits = red(snapshot, deduplicate=0.99, sort="year:desc")
        assert len(hits) == 3
        assert years(hits) == [2004] * 3
        assert sum(len(hit.duplicates) for hit in hits) == 57
        [second] = red(snapshot, deduplicate=0.99, sort="year:desc", k=1, offset=1)
        assert second.id == hits[1].id


def test_texts_are_sorted_by_fields_of_every_index(colours: Path) -> None:
    with opened(colours) as snapshot:
        hits = red(snapshot, target="texts", sort="language,year:desc", min_score=-1, k=4)
        assert years(hits) == [2004] * 4


@pytest.mark.parametrize("sort", ["size", "tags", "label:asc,nothing"])
def test_what_cannot_be_sorted_by_is_refused_with_what_can(colours: Path, sort: str) -> None:
    with opened(colours) as snapshot:
        with pytest.raises(InputError, match=r"year \(int\)|holds lists") as caught:
            red(snapshot, sort=sort)
        assert caught.value.code == "invalid-sort"


def test_ranks_are_read_once_and_forgotten_when_they_take_too_much(
    colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indexer.search import sorting

    read: list[str] = []
    real = sorting.column_values

    def noted(query: Any, column: Any) -> Any:
        read.append(column.name)
        return real(query, column)

    monkeypatch.setattr(sorting, "column_values", noted)
    with opened(colours) as snapshot:
        first = years(red(snapshot, sort="year"))
        once = len(read)
        assert years(red(snapshot, sort="year:desc", k=10)) == [2004] * 10
        assert len(read) == once
        monkeypatch.setattr(sorting, "_BUDGET", 1)
        red(snapshot, sort="label")
        assert years(red(snapshot, sort="year")) == first
        assert len(read) == 3 * once
