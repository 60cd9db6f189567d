"""Filtered search and facets against brute force, over segments, tombstones and both modalities."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import ColourEncoder
from filtering import (
    TYPES,
    documents,
    fill,
    holds,
    items,
    random_rows,
    span,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from indexes import build, opened, record, rejects_of

from indexer.filters.declared import parse_fields
from indexer.filters.language import parse_filter
from indexer.format.manifest import read_manifest
from indexer.maintain.verify import verify_index
from indexer.search import facets as facets_module
from indexer.search.options import SearchOptions
from indexer.search.scanners import RowScan
from indexer.search.snapshot import Snapshot, open_snapshot
from models.errors import InputError, InvalidFilterError
from models.vectors import Vectors


def brute_force(
    vectors_ND: Vectors, wanted: list[int], query_D: Vectors, k: int
) -> list[tuple[str, float]]:
    """The k best of some rows, by a float64 loop over what is stored, ties by id."""
    stored_ND = vectors_ND.astype(np.float16).astype(np.float64)
    scored = [(float(np.float32(stored_ND[n] @ query_D.astype(np.float64))), n) for n in wanted]
    scored.sort(key=lambda pair: (-pair[0], pair[1]))
    return [(f"i{n:06}", score) for score, n in scored[:k]]


def found(snapshot: Snapshot, query_D: Vectors, k: int, document: Any, **more: Any) -> Any:
    hits = snapshot.search(
        query_D[None], SearchOptions(k=k, filter=parse_filter(document), **more)
    )[0]
    return [(hit.item.id, pytest.approx(hit.score, abs=1e-6)) for hit in hits]


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[dict[str, Any]], int, set[int]]:
    rows = draw(st.lists(items(), min_size=1, max_size=25))
    dead = draw(st.sets(st.integers(0, len(rows) - 1), max_size=len(rows)))
    return rows, draw(st.integers(1, 3)), dead


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds(), st.lists(documents(), min_size=1, max_size=4), st.integers(1, 8))
def test_random_filters_find_what_brute_force_finds(
    world: tuple[list[dict[str, Any]], int, set[int]], wanted: list[dict[str, Any]], k: int
) -> None:
    rows, segments, dead = world
    folder = Path(tempfile.mkdtemp())
    try:
        vectors_ND = random_rows(len(rows), seed=k)
        fill(folder / "x", rows, vectors_ND, segments=segments, dead=dead)
        query_D = random_rows(1, seed=99)[0]
        with open_snapshot(folder / "x", fingerprint=None) as snapshot:
            for document in [*wanted, *wanted]:  # the second time from what was kept
                chosen = [n for n, row in enumerate(rows) if n not in dead and holds(document, row)]
                expected = brute_force(vectors_ND, chosen, query_D, k)
                assert found(snapshot, query_D, k, document) == expected
                assert (
                    found(snapshot, query_D, k, document, offset=2)
                    == brute_force(vectors_ND, chosen, query_D, k + 2)[2:]
                )
    finally:
        shutil.rmtree(folder)


ROWS = 20_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Snapshot, Vectors, set[int]]]:
    path = tmp_path_factory.mktemp("large") / "x"
    vectors_ND = random_rows(ROWS)
    # the rank of a row is unrelated to its vector, its segment and its being alive
    order = np.random.default_rng(5).permutation(ROWS)
    dead = set(np.random.default_rng(6).choice(ROWS, ROWS // 10, replace=False).tolist())
    rows = [{"rank": int(rank)} for rank in order]
    fill(path, rows, vectors_ND, fields=parse_fields(["rank:int"]), segments=3, dead=dead)
    with open_snapshot(path, fingerprint=None) as snapshot:
        yield snapshot, vectors_ND, dead


@pytest.mark.parametrize("share", [0.5, 0.01, 0.0005, 0.0001, 0.0])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_k_hits_come_back_whenever_k_exist(
    large: tuple[Snapshot, Vectors, set[int]], share: float, k: int
) -> None:
    snapshot, vectors_ND, dead = large
    order = np.random.default_rng(5).permutation(ROWS)
    document = {"field": "rank", "lt": int(ROWS * share)}
    chosen = [n for n in range(ROWS) if n not in dead and order[n] < int(ROWS * share)]
    for seed in range(3):
        query_D = random_rows(1, seed=1000 + seed)[0]
        expected = brute_force(vectors_ND, chosen, query_D, k)
        assert len(expected) == min(k, len(chosen))
        assert found(snapshot, query_D, k, document) == expected


def test_few_rows_are_scored_one_by_one_and_many_inside_faiss(
    large: tuple[Snapshot, Vectors, set[int]],
) -> None:
    snapshot, _, _ = large
    kinds = {}
    for share in (0.5, 0.0005):
        wanted = parse_filter({"field": "rank", "lt": int(ROWS * share)})
        kinds[share] = {
            type(scanner)
            for scanner in snapshot.searcher.selections.scanners(
                wanted, snapshot.searcher.segments["image"]
            )
        }
    assert RowScan not in kinds[0.5]
    assert kinds[0.0005] == {RowScan}


def test_ties_are_broken_by_id_however_few_or_many_are_selected(tmp_path: Path) -> None:
    vectors_ND = np.repeat(random_rows(1), 3000, axis=0)
    fill(tmp_path / "x", [{"rank": i} for i in range(3000)], vectors_ND,
         fields=parse_fields(["rank:int"]), segments=2)  # fmt: skip
    with open_snapshot(tmp_path / "x", fingerprint=None) as snapshot:
        for low in (0, 2000, 2995):
            hits = found(snapshot, vectors_ND[0], 4, {"field": "rank", "gte": low})
            assert [name for name, _ in hits] == [f"i{n:06}" for n in range(low, low + 4)]


def test_what_was_worked_out_is_kept_within_a_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "x", [{"rank": i} for i in range(50)], random_rows(50),
         fields=parse_fields(["rank:int"]))  # fmt: skip
    with open_snapshot(tmp_path / "x", fingerprint=None) as snapshot:
        asked: list[str] = []
        reader = snapshot.searcher.segments["image"][0].segment.items
        monkeypatch.setattr(
            type(reader), "query",
            lambda self, sql, values=(): asked.append(sql) or self._all(sql, values),
        )  # fmt: skip

        def count(low: int) -> int:
            before = len(asked)
            found(snapshot, random_rows(1)[0], 3, {"field": "rank", "gte": low})
            return len(asked) - before

        assert [count(1), count(1), count(2), count(1)] == [1, 0, 1, 0]
        monkeypatch.setattr("indexer.search.scanners._BUDGET", 10_000)  # two entries' worth
        assert [count(3), count(4), count(4), count(1)] == [1, 1, 0, 1]
        assert snapshot.searcher.selections.kept_bytes <= 10_000


def test_many_threads_ask_at_once(
    large: tuple[Snapshot, Vectors, set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, vectors_ND, dead = large
    monkeypatch.setattr("indexer.search.scanners._BUDGET", 30_000)  # kept and dropped all the time
    order = np.random.default_rng(5).permutation(ROWS)
    query_D = random_rows(1, seed=77)[0]
    bounds = [1, 5, 40, 500, 3000]
    expected = {
        bound: brute_force(
            vectors_ND, [n for n in range(ROWS) if n not in dead and order[n] < bound], query_D, 5
        )
        for bound in bounds
    }

    def ask(turn: int) -> None:
        bound = bounds[turn % len(bounds)]
        document = {"field": "rank", "lt": bound}
        assert found(snapshot, query_D, 5, document) == expected[bound]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(200)))


# -- declared when an index is built ---------------------------------------------------------------


def test_a_build_stores_what_it_declares_and_texts_share_their_pictures_values(
    tmp_path: Path,
) -> None:
    out = tmp_path / "x.index"
    rows = [
        record("a", "red", "red thing", year=2001, tags=["x", "y"]),
        record("b", "red", "red stuff", year=2010),
        record("c", "red"),
    ]
    build(rows, out, fields=parse_fields(["year:int,tags:str[]"]))
    red_D = ColourEncoder().embed_texts([ColourEncoder().prepare_text("red")])[0]
    with opened(out) as snapshot:
        names = [name for name, _ in found(snapshot, red_D, 9, {"field": "year", "gt": 2005})]
        assert names == ["b"]
        assert [hit for hit, _ in found(snapshot, red_D, 9, {"field": "tags", "contains": "y"},
                                        target="texts")] == ["a#en/0"]  # fmt: skip
        assert [hit for hit, _ in found(snapshot, red_D, 9, {"field": "language", "eq": "en"})] == [
            "a", "b",
        ]  # fmt: skip
        with pytest.raises(InvalidFilterError, match="year"):
            found(snapshot, red_D, 9, {"field": "brand", "eq": "x"})
    assert verify_index(out).ok


def test_a_value_of_the_wrong_type_is_reported_and_its_item_indexed(tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    report = build(
        [record("a", "red", "one", "two", year="2001"), record("b", "red", year=5)],
        out,
        fields=parse_fields(["year:int"]),
    )
    assert (report.images, report.texts, report.rejected) == (2, 2, 1)
    (line,) = rejects_of(out)
    assert (line["key"], line["code"]) == ("a", "invalid-field")
    assert line["detail"] == "year: expected a whole number, found text"
    red_D = ColourEncoder().embed_texts([ColourEncoder().prepare_text("red")])[0]
    with opened(out) as snapshot:
        missing = found(snapshot, red_D, 9, {"field": "year", "exists": False})
        assert [name for name, _ in missing] == ["a"]


def test_later_builds_keep_the_fields_and_may_not_change_them(tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    fields = parse_fields(["year:int,brand"])
    build([record("a", "red", year=1)], out, fields=fields)
    build([record("a", "red", year=2), record("b", "red", year=3)], out)
    build([record("c", "blue", year=4)], out, fields=fields)
    build([record("d", "blue", year=4)], out, fields=tuple(reversed(fields)))
    assert read_manifest(out).declared == fields
    version = read_manifest(out).version
    for other in ("year:float,brand", "year:int", "year=x:int,brand", ""):
        with pytest.raises(InputError, match=r"declares other .*year \(int\), brand \(str\)"):
            build([record("e", "red")], out, fields=parse_fields([other] if other else []))
    assert read_manifest(out).version == version
    with opened(out) as snapshot:
        (year, *_) = snapshot.facets()
        assert (year.low, year.high, year.images) == (2, 4, 4), "the old value of a is buried"


def test_an_index_without_rows_takes_new_declarations(tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    build([], out, fields=parse_fields(["year:int"]))
    assert read_manifest(out).declared == parse_fields(["year:int"])
    build([record("a", "red", brand="x")], out, fields=parse_fields(["brand"]))
    assert read_manifest(out).declared == parse_fields(["brand"])


# -- facets ---------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds())
def test_facets_count_what_a_loop_counts(
    world: tuple[list[dict[str, Any]], int, set[int]],
) -> None:
    rows, segments, dead = world
    folder = Path(tempfile.mkdtemp())
    try:
        fill(folder / "x", rows, random_rows(len(rows)), segments=segments, dead=dead)
        with open_snapshot(folder / "x", fingerprint=None) as snapshot:
            facets = {facet.name: facet for facet in snapshot.facets()}
            assert snapshot.facets() is snapshot.facets(), "counted once"
    finally:
        shutil.rmtree(folder)
    alive = [row for number, row in enumerate(rows) if number not in dead]
    for name, kind in TYPES.items():
        if name == "deep":
            values = [row["a"]["b"] for row in alive if row.get("a", {}).get("b") is not None]
        else:
            values = [row[name] for row in alive if row.get(name) not in (None, [])]
        if name in ("label", "language") and not values:
            assert name not in facets
            continue
        facet = facets[name]
        assert (facet.type, facet.images, facet.texts) == (kind, len(values), 0)
        if kind in ("int", "float"):
            assert (facet.low, facet.high) == (min(values, default=None), max(values, default=None))
            assert facet.values is facet.distinct is facet.months is None
            continue
        if kind == "date":
            values.sort(key=lambda text: span(text)[0])
            moments = [facet.low, facet.high] if values else []
            assert [span(str(one))[0] for one in moments] == [
                span(one)[0] for one in (values[:1] + values[-1:])
            ]
            starts = [(f"{span(one)[0]:%Y-%m}", span(one)[2]) for one in values]
            years = Counter(month[:4] for month, _ in starts)
            assert {one.value: one.images for one in facet.values or ()} == years
            assert {one.value: one.images for one in facet.months or ()} == Counter(
                month for month, known in starts if known > 1
            )
            assert facet.distinct == len(years)
            continue
        single = [one for v in values for one in (dict.fromkeys(v) if kind == "str[]" else [v])]
        counts = sorted(Counter(single).items(), key=lambda pair: (-pair[1], pair[0]))
        assert facet.values is not None
        assert [(one.value, one.images) for one in facet.values] == counts
        assert facet.distinct == len(counts)


def test_facets_list_the_fifty_most_frequent_over_blocks_and_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.format.field_table._BLOCK", 7)
    rng = np.random.default_rng(3)
    rows: list[dict[str, Any]] = [
        {"brand": f"b{int(rng.zipf(1.4)) % 90:02}", "year": int(rng.integers(10_000))}
        for _ in range(900)
    ]
    dead = set(range(0, 900, 3)) | {n for n, row in enumerate(rows) if row["year"] > 9_000}
    fill(tmp_path / "x", rows, random_rows(900), segments=4, dead=dead)
    with open_snapshot(tmp_path / "x", fingerprint=None) as snapshot:
        facets = {facet.name: facet for facet in snapshot.facets()}
    alive = [row for number, row in enumerate(rows) if number not in dead]
    counts = Counter(row["brand"] for row in alive)
    brand, year = facets["brand"], facets["year"]
    assert brand.distinct == len(counts) > facets_module.TOP_VALUES
    assert brand.values is not None
    assert [(one.value, one.images) for one in brand.values] == sorted(
        counts.items(), key=lambda pair: (-pair[1], pair[0])
    )[:50]
    assert (year.low, year.high) == (
        min(row["year"] for row in alive),
        max(row["year"] for row in alive),
    )


def test_facets_tell_pictures_from_texts(tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    build([record("a", "red", "one", "two", sale=True), record("b", "red", sale=False)], out,
          fields=parse_fields(["sale:bool"]))  # fmt: skip
    with opened(out) as snapshot:
        sale, language = snapshot.facets()
    assert sale.values is not None
    assert [(one.value, one.images, one.texts) for one in sale.values] == [
        (True, 1, 2),
        (False, 1, 0),
    ]
    assert sale.values[0].value is True
    assert (language.name, language.images, language.texts) == ("language", 1, 2)
