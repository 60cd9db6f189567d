"""Search by words and vectors together, near-duplicates left out: on a small index of colours."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from fakes import ColourEncoder
from indexes import NAMES, build, opened, record

from indexer.filters.declared import parse_fields
from indexer.filters.language import parse_filter
from indexer.search.options import SearchOptions
from indexer.search.snapshot import Hit, Snapshot
from indexer.search.words import WordIndex
from models.errors import InputError
from models.sources.records import Record
from models.vectors import Vectors

ENCODER = ColourEncoder()
WORDS = ["bicycle", "harbour", "女孩", "滑板", "café", "IMG_2041", "the", "old"]


def vector(text: str) -> Vectors:
    return ENCODER.embed_texts([ENCODER.prepare_text(text)])


def search(
    snapshot: Snapshot, text: str, k: int = 10, words: str | None = None, **options: object
) -> list[Hit]:
    given = [text if words is None else words] if options.get("hybrid") else None
    return snapshot.search(vector(text), SearchOptions(k=k, **options), texts=given)[0]  # type: ignore[arg-type]


def ids(hits: list[Hit]) -> list[str]:
    return [hit.item.id for hit in hits]


def records(count: int, seed: int = 0) -> list[Record]:
    rng = random.Random(seed)
    return [
        record(
            f"p{number:03}",
            rng.choice(NAMES),
            *(" ".join(rng.choices(WORDS, k=3)) for _ in range(rng.randint(0, 3))),
            year=2000 + number % 5,
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several segments, superseded rows, a filterable field."""
    out = tmp_path_factory.mktemp("hybrid") / "index"
    options = {"segment_rows": 30, "fields": parse_fields(["year:int"])}
    build(records(100), out, **options)
    build([*records(100)[:80], *records(120, seed=5)[80:]], out, **options)
    return out


def expected_order(
    snapshot: Snapshot, text: str, words: str, weight: float, target: str, wanted: object
) -> list[str]:
    """Rank fusion by loop over all items: cosines and BM25 computed apart."""
    every = snapshot.search(vector(text), SearchOptions(k=1000, target=target, filter=wanted))[0]  # type: ignore[arg-type]
    cosine_order = ids(every)
    modality = {"images": "image", "texts": "text"}[target]
    version = snapshot.opened
    parts = [
        (segment, ~dead)
        for segment, dead in zip(version.segments, version.dead, strict=True)
        if segment.entry.modality == modality
    ]
    scores: dict[str, float] = {}
    found = WordIndex([(segment.items, live) for segment, live in parts]).search(words)
    for (segment, _), one in zip(parts, found, strict=True):
        names = segment.items.ids(one.rows_M.tolist())
        for row, score in zip(one.rows_M.tolist(), one.scores_M.tolist(), strict=True):
            if names[row] in cosine_order:
                scores[names[row]] = score
    word_order = sorted(scores, key=lambda name: (-scores[name], name))
    cosines = {hit.item.id: hit.score for hit in every}
    fused = {
        name: (1 - weight) / (61 + place)
        + (weight / (61 + word_order.index(name)) if name in scores else 0.0)
        for place, name in enumerate(cosine_order)
    }
    return sorted(fused, key=lambda name: (-fused[name], -cosines[name], name))


@pytest.mark.parametrize("target", ["images", "texts"])
@pytest.mark.parametrize("weight", [0.2, 0.5, 1.0])
def test_hybrid_equals_a_loop_with_and_without_a_filter(
    several: Path, target: str, weight: float
) -> None:
    wanted = parse_filter({"field": "year", "gte": 2002})
    with opened(several) as snapshot:
        for words in ("old bicycle", "女孩", "IMG_2041 café harbour", "nothing known", "?!"):
            for filter in (None, wanted):
                expected = expected_order(snapshot, "red blue", words, weight, target, filter)
                hits = search(
                    snapshot, "red blue", 1000, words, hybrid=weight, target=target, filter=filter
                )
                assert ids(hits) == expected
                assert all(hit.fused is not None for hit in hits)


def test_the_word_decides_where_the_colours_are_equal(tmp_path: Path) -> None:
    build([record(f"p{n}", "red", "a thing") for n in range(9)], tmp_path / "i")
    build([record("z", "red", "one 女孩 waves")], tmp_path / "i")
    with opened(tmp_path / "i") as snapshot:
        assert ids(search(snapshot, "red", 1)) == ["p0"]
        assert ids(search(snapshot, "red", 1, "女孩", hybrid=0.4)) == ["z"]
        # a text of the index in which the word does not occur changes nothing
        assert ids(search(snapshot, "red", 1, "women", hybrid=0.4)) == ["p0"]


def test_a_hit_by_words_alone_has_its_true_cosine(tmp_path: Path) -> None:
    rows = [record(f"p{n:03}", "red") for n in range(250)] + [record("far", "blue", "rarity")]
    build(rows, tmp_path / "i")
    with opened(tmp_path / "i") as snapshot:
        found = search(snapshot, "red", 3, "rarity", hybrid=0.6)
        assert found[0].item.id == "far"
        assert found[0].score == 0.0
        assert "far" not in ids(search(snapshot, "red", 200))


@pytest.mark.parametrize(
    "options",
    [
        {"hybrid": 0.4},
        {"deduplicate": 0.9},
        {"hybrid": 0.4, "deduplicate": 0.9},
        {"hybrid": 0.7, "filter": parse_filter({"field": "year", "gt": 2001})},
    ],
)
@pytest.mark.parametrize("target", ["images", "texts"])
def test_pages_neither_overlap_nor_leave_out(
    several: Path, target: str, options: dict[str, object]
) -> None:
    with opened(several) as snapshot:
        whole = search(snapshot, "red green", 1000, "old café", target=target, **options)
        pages: list[Hit] = []
        for offset in range(0, len(whole) + 7, 7):
            pages += search(
                snapshot, "red green", 7, "old café", target=target, offset=offset, **options
            )
        assert ids(pages) == ids(whole)
        assert [hit.fused for hit in pages] == [hit.fused for hit in whole]


def test_queries_of_a_batch_are_answered_as_if_alone(several: Path) -> None:
    texts = ["old bicycle", None, "女孩"]
    queries = np.concatenate([vector("red"), vector("blue"), vector("red white")])
    with opened(several) as snapshot:
        together = snapshot.search(
            queries, SearchOptions(k=9, hybrid=0.5, deduplicate=0.99), texts=texts
        )
        for number, text in enumerate(texts):
            alone = snapshot.search(
                queries[number][None],
                SearchOptions(k=9, hybrid=0.5, deduplicate=0.99),
                texts=[text],
            )
            assert alone == [together[number]]
        assert together[1][0].fused is None


@pytest.mark.parametrize(
    "words",
    ['"', "a OR b", "NEAR(x y)", "text: *", "' OR 1=1 --", "{}()^-+", "AND NOT", "old" * 5000,
     "的" * 10_000, "🐶🐶", "\0", " ", ""],
)  # fmt: skip
def test_any_text_is_a_query_and_none_is_syntax(several: Path, words: str) -> None:
    with opened(several) as snapshot:
        assert len(search(snapshot, "red", 5, words, hybrid=0.5)) == 5


def test_superseded_words_find_nothing(tmp_path: Path) -> None:
    colours = [record(f"p{n}", "red", "plain") for n in range(5)]
    build([*colours, record("z", "red", "zebra")], tmp_path / "i")
    with opened(tmp_path / "i") as snapshot:
        assert ids(search(snapshot, "red", 1, "zebra", hybrid=0.5)) == ["z"]
    build([*colours, record("z", "red", "horse")], tmp_path / "i")
    with opened(tmp_path / "i") as snapshot:
        assert ids(search(snapshot, "red", 1, "zebra", hybrid=0.5)) == ["p0"]
        assert ids(search(snapshot, "red", 1, "horse", hybrid=0.5)) == ["z"]
        assert ids(search(snapshot, "red", 9, "zebra", hybrid=0.5, target="texts"))[-1] == "z#en/0"


def test_near_duplicates_are_named_by_the_best_and_the_page_is_filled(tmp_path: Path) -> None:
    rows = [record(f"red{n:02}", "red") for n in range(40)]
    rows += [record("w", "white"), record("b1", "blue"), record("b2", "blue")]
    build(rows, tmp_path / "i")
    with opened(tmp_path / "i") as snapshot:
        hits = search(snapshot, "red red red blue blue white", 3, deduplicate=0.95)
        assert ids(hits) == ["red00", "b1", "w"]
        assert hits[0].duplicates == tuple(f"red{n:02}" for n in range(1, 40))
        assert hits[1].duplicates == ("b2",)
        assert hits[2].duplicates == ()
        # the control: without it the first three are copies
        assert ids(search(snapshot, "red red red blue blue white", 3)) == [
            "red00", "red01", "red02",
        ]  # fmt: skip
        assert len(search(snapshot, "red", 50, deduplicate=0.95)) == 3  # no more exist


@pytest.mark.parametrize(
    "options",
    [
        {"hybrid": 1.1, "texts": ["a"]},
        {"hybrid": -0.1, "texts": ["a"]},
        {"hybrid": float("nan"), "texts": ["a"]},
        {"hybrid": 0.5},
        {"hybrid": 0.5, "texts": []},
        {"deduplicate": 0.0},
        {"deduplicate": 1.5},
        {"deduplicate": float("nan")},
    ],
)
def test_numbers_out_of_range_are_refused(several: Path, options: dict[str, object]) -> None:
    texts = options.get("texts")
    options = {name: value for name, value in options.items() if name != "texts"}
    with opened(several) as snapshot, pytest.raises(InputError):
        snapshot.search(vector("red"), SearchOptions(k=3, **options), texts=texts)  # type: ignore[arg-type]


def test_min_score_is_applied_before_the_page_is_cut(several: Path) -> None:
    with opened(several) as snapshot:
        options = {"hybrid": 0.9, "words": "harbour old", "min_score": 0.5}
        every = search(snapshot, "red", 1000, **options | {"min_score": None})  # type: ignore[arg-type]
        fit = [hit for hit in every if hit.score >= 0.5]
        assert len(fit) > 6
        assert every[: len(fit)] != fit, "words put some below the floor before some above"
        pages = [
            search(snapshot, "red", 3, offset=at, **options)  # type: ignore[arg-type]
            for at in range(0, len(fit) + 3, 3)
        ]
        full = len(fit) // 3
        assert [len(page) for page in pages[:full]] == [3] * full
        assert [hit for page in pages for hit in page] == fit, "fused scores are the same, too"
        alike = search(snapshot, "red", 3, deduplicate=0.99, **options)  # type: ignore[arg-type]
        assert ids(alike) == ids(fit[:1])
        assert set(alike[0].duplicates) == set(ids(fit[1:]))
