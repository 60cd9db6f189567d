"""Relevance end to end: kept in the index, carried by every answer, and honest where unknown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import COLOURS, ColourEncoder, halves, solid
from indexes import build, opened, record
from starlette.testclient import TestClient

from indexer.format.manifest import read_manifest
from indexer.maintain.verify import verify_index
from indexer.search.options import SearchOptions
from models.errors import IndexCorruptError
from service.engine.engine import Engine
from service.engine.queries import (
    ComposedQuery,
    EmbeddingQuery,
    ImageQuery,
    ItemQuery,
    SearchAnswer,
    SearchQuery,
    TextQuery,
    Weighted,
)
from service.engine.retrieval import GATE
from service.http.app import create_app

THERE = ("red", "green", "blue")
RECORDS = [record(f"{i}-{colour}", colour, colour) for i in range(4) for colour in THERE]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("relevance") / "x.index"
    build(RECORDS, path)
    return path


@pytest.fixture(scope="module")
def engine(index: Path) -> Iterator[Engine]:
    with opened(index) as snapshot:
        yield Engine(ColourEncoder(), snapshot)


def answer_to(engine: Engine, query: SearchQuery, **options: object) -> SearchAnswer:
    return engine.search(query, SearchOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("colour", [*COLOURS, "gibberish"])
@pytest.mark.parametrize("target", ["images", "texts"])
def test_what_is_there_is_relevant_and_what_is_not_is_not(
    engine: Engine, colour: str, target: str
) -> None:
    answer = answer_to(engine, TextQuery(colour), k=12, target=target)
    assert answer.no_good_match is (colour not in THERE)
    assert answer.relevance_K is not None
    named = [
        colour in str(hit.item.id) and relevance > GATE
        for hit, relevance in zip(answer.hits, answer.relevance_K, strict=True)
    ]
    assert sum(named) == (4 if colour in THERE else 0)
    # and nothing of another colour passes
    assert sum(relevance > GATE for relevance in answer.relevance_K) == sum(named)


@pytest.mark.parametrize("colour", list(COLOURS))
def test_pictures_are_judged_by_the_collections_own_neighbours(engine: Engine, colour: str) -> None:
    answer = answer_to(engine, ImageQuery(solid(colour)))
    assert answer.relevance_K is not None
    assert (answer.relevance_K[0] > GATE) == (colour in THERE)
    assert answer.no_good_match is (colour not in THERE)


def test_composed_queries_are_judged(engine: Engine) -> None:
    def composed(word: str) -> SearchAnswer:
        parts = (Weighted(TextQuery(word)), Weighted(ImageQuery(solid("red"))))
        return answer_to(engine, ComposedQuery(parts))

    assert composed("red").no_good_match is False
    assert composed("gibberish").no_good_match is True


def test_more_like_this_is_judged_as_a_picture(engine: Engine) -> None:
    answer = answer_to(engine, ItemQuery("0-red"))
    assert answer.relevance_K is not None
    assert answer.hits[0].item.id == "1-red"
    assert answer.relevance_K[0] > GATE > answer.relevance_K[-1]


def test_an_embedding_of_unknown_origin_is_not_judged(engine: Engine) -> None:
    answer = answer_to(engine, EmbeddingQuery([1.0] + [0.0] * 8))
    assert answer.relevance_K is None
    assert answer.no_good_match is None


def test_words_that_are_found_exactly_are_no_misfit(tmp_path: Path) -> None:
    """A word no model knows, in a caption or in the name of a file, is an answer."""
    path = tmp_path / "x.index"
    named = replace(record("shots/IMG_2041.jpg", "blue"), uri="file:///a%20b/IMG_2041.jpg")
    build([*RECORDS, record("zeppelin", "red", "a zoltan"), named], path)
    with opened(path) as snapshot:
        engine = Engine(ColourEncoder(), snapshot)
        for words, first, misfit in (
            ("zoltan", "zeppelin", False),
            ("IMG_2041", "shots/IMG_2041.jpg", False),
            ("img_2041 at the harbour", None, True),  # mostly of other things
            ("img 2041 harbour", "shots/IMG_2041.jpg", False),
            ("a harbour", None, True),  # one word of two is in a caption
            ("gibberish", None, True),
        ):
            answer = answer_to(engine, TextQuery(words), hybrid=0.5, k=3)
            assert answer.no_good_match is misfit, words
            assert first is None or answer.hits[0].item.id == first
            assert answer_to(engine, TextQuery(words), hybrid=0.5, offset=5).no_good_match is misfit
            assert answer_to(engine, TextQuery(words)).no_good_match is True


def test_a_later_page_is_judged_by_the_best_hit(engine: Engine) -> None:
    answer = answer_to(engine, TextQuery("red"), k=3, offset=6)
    assert answer.relevance_K is not None
    assert max(answer.relevance_K) < GATE
    assert answer.no_good_match is False
    assert answer_to(engine, TextQuery("cyan"), k=3, offset=6).no_good_match is True
    # and so is one that is empty because nothing reaches the score
    none = answer_to(engine, TextQuery("cyan"), min_score=0.999)
    assert (none.hits, none.no_good_match) == ((), True)


def test_each_version_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    build(RECORDS, path)
    build([record("0-red", "cyan", "cyan")], path)
    first = json.loads((path / "manifests" / "00000001.json").read_text())["relevance"]
    second = read_manifest(path).relevance
    assert second is not None
    assert second.file == "00000002.npy" != first["file"]
    assert second.sha256 != first["sha256"]
    with opened(path) as snapshot:
        assert (
            answer_to(Engine(ColourEncoder(), snapshot), TextQuery("cyan")).no_good_match is False
        )
        about = snapshot.info().relevance
    assert about is not None
    assert about["images"] == {"rows": 12, "queries": 313, "kinds": ["text", "image", "mixed"]}
    assert verify_index(path).ok


def test_a_large_index_keeps_a_background_that_is_still_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.search.relevance_file._ALWAYS", 0)  # every index counts as large
    path = tmp_path / "x.index"
    build(RECORDS, path)
    build([record("new", "red", "red")], path)
    kept = read_manifest(path).relevance
    assert kept is not None
    assert kept.file == "00000001.npy"
    assert kept.images.rows == 12
    build([record(f"more-{i}", "green", "green") for i in range(3)], path)
    measured = read_manifest(path).relevance
    assert measured is not None
    assert (measured.file, measured.images.rows) == ("00000003.npy", 16)
    assert verify_index(path).ok
    # the writer sweeps what nothing names; older versions still name both
    assert sorted(file.name for file in (path / "relevance").iterdir()) == [
        "00000001.npy",
        "00000003.npy",
    ]


def test_background_queries_are_embedded_once(tmp_path: Path) -> None:
    encoder = ColourEncoder()
    build(RECORDS, tmp_path / "x.index", encoder, segment_rows=2)
    assert encoder.texts_embedded == 12 + 313
    build([record("new", "cyan", "cyan")], tmp_path / "x.index", encoder)
    assert encoder.texts_embedded == 12 + 313 + 1


def test_without_a_background_relevance_is_null(tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    build(RECORDS, path, relevance=False)
    assert read_manifest(path).relevance is None
    with (
        opened(path) as snapshot,
        TestClient(create_app(Engine(ColourEncoder(), snapshot))) as http,
    ):
        answer = http.post("/v1/search", json={"query": {"text": "red"}}).json()
        assert snapshot.info().relevance is None
    assert answer["no_good_match"] is None
    assert {hit["relevance"] for hit in answer["hits"]} == {None}


def test_too_few_items_are_not_judged(tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    build([record("one", "red", "red")], path)
    with opened(path) as snapshot:
        answer = answer_to(Engine(ColourEncoder(), snapshot), TextQuery("red"))
    assert (answer.relevance_K, answer.no_good_match) == (None, None)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_background_is_found(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.index"
    build(RECORDS, path)
    file = path / "relevance" / "00000001.npy"
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.unlink()
    if damage != "gone":
        file.write_bytes(bytes(data) if damage == "flip" else bytes(data[:-4]))
    with pytest.raises(IndexCorruptError, match=r"relevance/00000001\.npy"):
        opened(path)
    report = verify_index(path)
    assert [problem.file for problem in report.problems] == ["relevance/00000001.npy"]


def test_http_carries_it(engine: Engine) -> None:
    with TestClient(create_app(engine)) as http:
        good = http.post("/v1/search/text-to-image", json={"text": "red", "k": 12}).json()
        bad = http.post("/v1/search/text-to-image", json={"text": "qwerty"}).json()
        pixels = {"image": ("x.png", halves("red", "blue"))}
        seen = http.post("/v1/search/image-to-text", files=pixels).json()
    relevance = [hit["relevance"] for hit in good["hits"]]
    assert relevance == sorted(relevance, reverse=True)
    assert (good["no_good_match"], bad["no_good_match"]) == (False, True)
    assert isinstance(seen["no_good_match"], bool)
    assert all(0 <= hit["relevance"] <= 1 for hit in seen["hits"])
