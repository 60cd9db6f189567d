"""Alignment scores, their memory, floors and filters, on pairs whose scores are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import COLOURS, ColourEncoder, halves, solid
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InputError, SourceError
from models.evaluation.captions import alignment
from models.evaluation.captions.alignment import Scored, ScoreMemory, score_pairs
from models.evaluation.captions.filter import filter_sources
from models.evaluation.captions.mixture import BestScores, best_floor, wrong_share
from models.sources import Record, Reject, Row, Source

NAMES = list(COLOURS)


class Listed(Source):
    kind = "list"
    name = "listed"

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def count(self) -> int:
        return len(self._rows)

    def plan(self) -> Any:
        raise AssertionError("nothing is planned")

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)


def record(key: str, image: bytes | None, **texts: tuple[str, ...]) -> Record:
    return Record(key, f"file:///{key}", image, texts)


def rows() -> list[Row]:
    return [
        record("red", solid("red"), en=("red", "blue"), zh=("红",)),
        record("half", halves("red", "green"), en=("red",)),
        Reject("listed", "bad", "bad-json", ""),
        record("silent", solid("white")),
        record("text", None, en=("red",)),
        record("broken", b"none", en=("red",)),
        record("wrong", solid("blue"), en=("yellow",)),
    ]


def scored(source: Listed, encoder: ColourEncoder, memory: ScoreMemory) -> list[Scored | Reject]:
    return list(score_pairs(source, encoder, memory))


def test_scores_are_the_cosines_known_by_construction_in_the_order_of_the_source() -> None:
    encoder = ColourEncoder()
    found = scored(Listed(rows()), encoder, ScoreMemory(encoder.fingerprint))
    assert [getattr(one, "key", None) for one in found] == ["red", "half", "bad", "broken", "wrong"]
    assert isinstance(found[3], Reject)
    scores = [
        [(c.language, c.text, round(c.score, 4)) for c in one.captions]
        for one in found
        if isinstance(one, Scored)
    ]
    assert scores == [
        [("en", "red", 1.0), ("en", "blue", 0.0), ("zh", "红", 1.0)],
        [("en", "red", round(math.sqrt(0.5), 4))],
        [("en", "yellow", 0.0)],
    ]


def test_other_pictures_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "_OTHERS", 3)  # most of the time without a place for its own
    encoder = ColourEncoder()
    pairs: list[Row] = [
        record(f"{at}", solid(name) + bytes([at]), en=(name,))
        for at, name in enumerate(NAMES[:4] * 3)
    ]
    same: list[Row] = [record(str(at), solid("red"), en=("red", f"{at}")) for at in range(2)]
    others = [
        caption.other
        for one in scored(Listed(pairs), encoder, ScoreMemory(encoder.fingerprint))
        if isinstance(one, Scored)
        for caption in one.captions
    ]
    assert set(others) <= {0.0, 1.0}
    assert others.count(0.0) >= 6  # of 11 other pictures, 9 have another colour
    for one in scored(Listed(same), encoder, ScoreMemory(encoder.fingerprint)):
        assert isinstance(one, Scored)
        assert all(math.isnan(caption.other) for caption in one.captions)


def test_what_is_remembered_is_not_embedded_again(tmp_path: Path) -> None:
    first, second = ColourEncoder(), ColourEncoder()
    source = Listed([row for row in rows() if getattr(row, "key", "") != "broken"])
    before = scored(source, first, ScoreMemory(first.fingerprint, tmp_path))
    assert (first.images_embedded, first.texts_embedded) == (3, 5)
    after = scored(source, second, ScoreMemory(second.fingerprint, tmp_path))
    assert after == before
    assert (second.images_embedded, second.texts_embedded) == (0, 0)
    # the content counts, not the name; a new caption of a known picture is scored alone
    renamed = Listed([record("new name", solid("red"), en=("red", "magenta"))])
    (one,) = scored(renamed, second, ScoreMemory(second.fingerprint, tmp_path))
    assert isinstance(one, Scored)
    assert [caption.score for caption in one.captions] == [1.0, 0.0]
    assert (second.images_embedded, second.texts_embedded) == (1, 1)
    # another encoder has a memory of its own
    other = ColourEncoder(name="another")
    assert len(ScoreMemory(other.fingerprint, tmp_path)) == 0


def test_vectors_are_handed_out_even_where_scores_are_known() -> None:
    encoder = ColourEncoder()
    memory = ScoreMemory(encoder.fingerprint)
    source = Listed([record(name, solid(name), en=(name,)) for name in NAMES])
    for _ in range(2):
        found = list(score_pairs(source, encoder, memory, vectors=True))
        vectors = [one.vector_D for one in found if isinstance(one, Scored)]
        assert np.array_equal(np.stack([v for v in vectors if v is not None]), np.eye(8, 9))


def test_order_holds_where_known_and_unknown_pairs_alternate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alignment, "_WAITING", 5)
    monkeypatch.setattr(alignment, "_BATCH", 3)
    encoder = ColourEncoder()
    memory = ScoreMemory(encoder.fingerprint)
    some: list[Row] = [
        record(f"{at}", solid(NAMES[at % 8]) + bytes([at]), en=(NAMES[at % 8],)) for at in range(40)
    ]
    scored(Listed(some[::3]), encoder, memory)
    found = scored(Listed(some), encoder, memory)
    assert [getattr(one, "key", None) for one in found] == [str(at) for at in range(40)]
    assert all(c.score == 1.0 for one in found if isinstance(one, Scored) for c in one.captions)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04nothing", None])
def test_a_damaged_memory_is_none(tmp_path: Path, damage: bytes | None) -> None:
    encoder = ColourEncoder()
    memory = ScoreMemory(encoder.fingerprint, tmp_path)
    for at in range(10):
        memory.put("a" * 64, f"caption {at}", (0.5, 0.25))
    memory.save()
    (path,) = tmp_path.iterdir()
    again = ScoreMemory(encoder.fingerprint, tmp_path)
    assert again.get("a" * 64, "caption 3") == (0.5, 0.25)
    assert again.get("a" * 64, "caption 11") is None
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    assert len(ScoreMemory(encoder.fingerprint, tmp_path)) == 0


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 30), st.floats(-1, 1, width=32)), max_size=80))
def test_memory_is_a_dictionary(puts: list[tuple[int, float]]) -> None:
    memory = ScoreMemory(ColourEncoder().fingerprint)
    reference: dict[int, float] = {}
    for at, (key, value) in enumerate(puts):
        memory.put(str(key) * 64, "c", (value, 0.0))
        reference[key] = value
        if at % 7 == 0:
            memory._merge()
    assert len(memory) == len(reference)
    for key, value in reference.items():
        assert memory.get(str(key) * 64, "c") == (value, 0.0)


def mixed(wrong: float, apart: float, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Normal scores: wrong ones around 0, right ones around `apart`, both of deviation 1."""
    rng = np.random.default_rng(1)
    is_wrong = rng.random(count) < wrong
    own = rng.normal(0, 1, count) + np.where(is_wrong, 0.0, apart)
    return own, rng.normal(0, 1, count)


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.3, 0.6, 1.0])
def test_the_share_of_wrong_captions_is_found(wrong: float) -> None:
    found = wrong_share(*mixed(wrong, apart=4.0))
    assert found == pytest.approx(wrong, abs=0.03)


def test_the_floor_is_where_the_two_densities_cross() -> None:
    for wrong, apart in ((0.3, 3.0), (0.5, 2.0), (0.1, 4.0)):
        # p phi(t) = (1 - p) phi(t - a), solved for t
        expected = apart / 2 + math.log(wrong / (1 - wrong)) / apart
        floor = best_floor(*mixed(wrong, apart), share=wrong)
        assert floor == pytest.approx(expected, abs=0.2)


def test_a_clean_set_loses_next_to_nothing() -> None:
    own, other = mixed(0.0, apart=4.0)
    floor = best_floor(own, other)
    assert floor is not None
    assert (own < floor).mean() < 0.01
    assert best_floor(own, other, share=0.0) == float("-inf")
    assert wrong_share(own[:49], other[:49]) is None
    assert best_floor(own[:49], other) is None


def noisy() -> tuple[list[Row], set[str]]:
    """240 pictures of eight colours with a right caption each, a third of which is replaced."""
    built: list[Row] = []
    wrong = set()
    for at in range(240):
        name, claimed = NAMES[at % 8], NAMES[at % 8]
        if at % 3 == 0:
            claimed = NAMES[(at + 1 + at // 24 % 7) % 8]
            wrong.add(str(at))
        # a right caption fits to 0.7, as a real one would, and not perfectly
        built.append(record(str(at), solid(name) + bytes([at]), en=(f"{claimed} and more",)))
    return built, wrong


@pytest.mark.parametrize("floor", [0.5, "auto"])
def test_filtering_drops_exactly_the_wrong_captions(floor: Any, tmp_path: Path) -> None:
    built, wrong = noisy()
    encoder = ColourEncoder()
    memory = ScoreMemory(encoder.fingerprint, tmp_path)
    (source,), report = filter_sources([Listed(built)], encoder, floor, memory)
    kept = [row.key for row in source if isinstance(row, Record)]
    assert kept == [row.key for row in built if getattr(row, "key", "") not in wrong]
    assert report.dropped == {"en": len(wrong)}
    assert report.dropped_pictures == len(wrong)
    assert report.to_dict()["captions"] == {"en": 240}
    assert report.wrong["en"] == pytest.approx(1 / 3, abs=0.1)
    assert "80 of 240 left out (33.3 %)" in report.lines()[0]
    # a second reading needs no encoder
    embedded = encoder.images_embedded
    assert [row.key for row in source if isinstance(row, Record)] == kept
    assert encoder.images_embedded == embedded == 240


def test_only_the_bad_caption_goes_and_the_rest_passes_through() -> None:
    encoder = ColourEncoder()
    memory = ScoreMemory(encoder.fingerprint)
    (source,), report = filter_sources([Listed(rows())], encoder, 0.5, memory)
    left = {row.key: getattr(row, "texts", None) for row in source}
    assert left == {
        "red": {"en": ("red",), "zh": ("红",)},
        "half": {"en": ("red",)},
        "bad": None,
        "silent": {},
        "text": {"en": ("red",)},
        "broken": {"en": ("red",)},
    }
    assert (report.pictures, report.dropped_pictures) == (3, 1)


def test_floors_that_leave_nothing_or_mean_nothing_are_refused() -> None:
    encoder = ColourEncoder()
    memory = ScoreMemory(encoder.fingerprint)
    wrong: list[Row] = [record(name, solid(name), en=("nothing",)) for name in NAMES]
    with pytest.raises(SourceError, match="every caption scores below") as caught:
        filter_sources([Listed(wrong)], encoder, 0.9, memory)
    assert caught.value.code == "all-filtered"
    with pytest.raises(SourceError, match="at least 50"):
        filter_sources([Listed(wrong)], encoder, "auto", memory)
    with pytest.raises(InputError, match="not a cosine"):
        filter_sources([Listed(wrong)], encoder, 1.5, memory)
    piped = Listed(wrong)
    piped.rereadable = False
    with pytest.raises(InputError, match="standard input"):
        filter_sources([piped], encoder, 0.1, memory)


def test_pictures_without_a_caption_left_are_counted_over_languages() -> None:
    best = BestScores()
    best.add([("en", 0.1), ("en", 0.6)])
    best.add([("zh", 0.1)])
    best.add([("en", 0.1), ("zh", 0.9)])
    best.add([("en", 0.1)])
    assert best.all_below({"en": 0.5, "zh": 0.5}) == 2
    assert best.all_below({"en": 0.05, "zh": 0.5}) == 1
    assert best.all_below({"en": float("-inf"), "zh": float("-inf")}) == 0
