"""The data report against sets whose every figure is known, and the refusals it leads to."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import COLOURS, ColourEncoder, solid
from hypothesis import given
from hypothesis import strategies as st

from models.errors import SourceError
from models.sources import Record, Reject, Row, Source, open_source
from models.sources.report.checks import PROBE_FIELDS, check, named_fields, report_lines, warnings
from models.sources.report.counts import (
    LENGTH_BINS,
    DataReport,
    Frequent,
    Lengths,
    inspect,
    sampling,
)

NAMES = list(COLOURS)


class Listed(Source):
    """A source of given rows."""

    kind = "list"

    def __init__(self, rows: list[Row], name: str = "listed") -> None:
        self.name = name
        self._rows = rows

    def count(self) -> int:
        return len(self._rows)

    def plan(self) -> Any:
        raise AssertionError("a report plans nothing")

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)


def record(key: str, image: bytes | None, **texts: str | tuple[str, ...]) -> Record:
    by_language = {tag: (t,) if isinstance(t, str) else t for tag, t in texts.items()}
    return Record(key, f"file:///{key}", image, by_language)


def mixed() -> list[Row]:
    long = "red " * 100
    return [
        record("a", solid("red"), en=("a red wall", "red"), zh="红色的墙"),
        record("b", solid("green"), en=("a green wall", "red")),
        record("copy", solid("red"), en="again red"),
        record("long", solid("blue"), en=long),
        record("silent", solid("white")),
        record("text", None, en="no picture"),
        record("broken", b"no picture at all", en="lost"),
        Reject("listed", "bad", "bad-json", "not JSON"),
    ]


def test_every_figure_of_a_known_set() -> None:
    report = inspect([Listed(mixed())], prepare_text=ColourEncoder().prepare_text)
    assert report.to_dict() == {
        "sources": ["listed"],
        "records": 6,
        "pictures": 4,
        "pairs": 7,
        "captions": {"en": 6, "zh": 1},
        "duplicate_pictures": 1,
        "duplicate_captions": 1,
        "repeated_captions": [{"caption": "red", "at_least": 2}],
        "without_caption": 1,
        "without_picture": 1,
        "caption_lengths": {
            "en": {
                "median": 9,
                "p95": 400,
                "longest": 400,
                "histogram": {
                    "1-8": 2, "9-16": 3, "17-32": 0, "33-64": 0, "65-128": 0, "129-256": 0,
                    "257-512": 1, "513-1024": 0, "1025-": 0,
                },
            },
            "zh": {
                "median": 4,
                "p95": 4,
                "longest": 4,
                "histogram": {
                    "1-8": 1, "9-16": 0, "17-32": 0, "33-64": 0, "65-128": 0, "129-256": 0,
                    "257-512": 0, "513-1024": 0, "1025-": 0,
                },
            },
        },
        "checked_one_in": 1,
        "checked_pictures": 4,
        "checked_captions": 7,
        "truncated": 1,
        "undecodable": 1,
        "known_pictures": None,
        "rejected": 2,
        "rejects": {"bad-json": 1, "image-undecodable": 1},
    }  # fmt: skip
    assert report.duplicate_examples == ["copy"]
    assert report.without_caption_examples == ["silent"]
    json.dumps(report.to_dict())
    text = "\n".join(report_lines(report))
    for part in ("4 pictures, 7 captions (6 en, 1 zh)", "bad-json", "1 of 7 captions", "broken"):
        assert part in text


def test_pictures_of_the_training_set_are_found_in_the_validation_set() -> None:
    train = inspect([Listed([record(n, solid(n), en=n) for n in NAMES[:4]])])
    val = inspect([Listed([record(n, solid(n), en=n) for n in NAMES[3:6]])], against=train)
    assert val.known_pictures == 1
    assert "1 of its pictures are in the training set too" in warnings(val)[0]


def test_a_sample_is_decoded_and_everything_is_counted() -> None:
    rows: list[Row] = [record(f"k{at}", b"damaged", en=f"c{at}") for at in range(400)]
    report = inspect([Listed(rows)], one_in=4, prepare_text=ColourEncoder().prepare_text)
    assert report.rejects.total() + report.pictures == 400
    assert 60 < report.undecodable < 140
    assert report.checked_pictures == 0
    assert sampling([Listed(rows)], wanted=100) == 4
    assert sampling([Listed(rows)], wanted=1000) == 1


@given(st.lists(st.integers(0, 6000), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_quantiles_and_bins_are_those_of_the_sorted_list(values: list[int], share: float) -> None:
    lengths = Lengths()
    for value in values:
        lengths.add(value)
    ordered = sorted(min(value, 4096) for value in values)
    at_or_below = [sum(v <= one for v in ordered) >= share * len(ordered) for one in ordered]
    assert lengths.quantile(share) == ordered[at_or_below.index(True)]
    edges = [-1, *LENGTH_BINS, 10**9]
    assert lengths.histogram() == [
        sum(low < v <= high for v in ordered) for low, high in itertools.pairwise(edges)
    ]
    assert lengths.longest == max(values)


@given(st.lists(st.integers(0, 12), max_size=300), st.integers(1, 6))
def test_misra_gries_keeps_whatever_is_frequent(values: list[int], counters: int) -> None:
    frequent = Frequent(counters)
    for value in values:
        frequent.add(str(value))
    kept = dict(frequent.top(100, at_least=1))
    slack = len(values) / (counters + 1)
    for value, count in Counter(map(str, values)).items():
        assert count - slack <= kept.get(value, 0) <= count


def test_memory_does_not_grow_with_the_pictures() -> None:
    picture = bytes(50_000)

    def rows(count: int) -> Iterator[Row]:
        for at in range(count):
            yield record(f"k{at}", picture + str(at).encode(), en=f"caption number {at} " * 20)

    class Endless(Listed):
        def __iter__(self) -> Iterator[Row]:
            return rows(1000)

    tracemalloc.start()
    report = inspect([Endless([])], one_in=10**9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.pictures == 1000
    assert peak < 5e6  # 50 MB of pictures went by


COPIES = [record(f"k{at}", solid("red"), en=f"number {at}") for at in range(3)]
SAME = [record(n, solid(n), en="a photo", zh="一张照片") for n in NAMES]


@pytest.mark.parametrize(
    ("rows", "code", "says"),
    [
        ([], "empty-source", "no usable record"),
        ([Reject("s", "k", "bad-json", "")] * 3, "empty-source", "3 were refused, 3 of them as"),
        ([record("a", solid("red"))] * 2, "no-captions", "none of the 2 pictures"),
        ([record("a", None, en="x")], "no-pictures", "none of the 1 texts"),
        ([record("a", solid("red")), record("b", None, en="x")], "unpaired", "no picture that has"),
        ([record("a", solid("red"), en="x")], "too-few-pairs", "at least 2"),
        (
            [record("a", solid("red"), en="x"), record("b", b"none", en="y")],
            "too-few-pairs",
            "1 of them as image-undecodable",
        ),
        (COPIES, "pictures-identical", "one and the same file"),
        (SAME, "captions-identical", "same caption, 'a photo'"),
    ],
)
def test_what_teaches_nothing_is_refused(rows: list[Row], code: str, says: str) -> None:
    with pytest.raises(SourceError, match=says) as caught:
        check(inspect([Listed(rows)]))
    assert caught.value.code == code
    assert caught.value.hint


def test_two_different_pairs_pass() -> None:
    check(inspect([Listed([record(n, solid(n), en=n) for n in NAMES[:2]])]))


def test_the_fields_that_exist_are_named(tmp_path: Path) -> None:
    for name in NAMES[:3]:
        (tmp_path / f"{name}.png").write_bytes(solid(name))
        data = {"captions": {"en": [name], "zh": name}, "n": 3, "tags": [], "note": name}
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    (tmp_path / "red.txt").write_text("red")
    wrong = open_source(str(tmp_path), text_field="captions.fr")
    fields = named_fields(open_source(str(tmp_path), text_field=PROBE_FIELDS))
    assert fields == ["captions.en", "captions.zh", "note", "txt"]
    with pytest.raises(SourceError, match="none of the 3 pictures") as caught:
        check(inspect([wrong]), fields=fields)
    assert "captions.en, captions.zh, note, txt (--text-field captions.en)" in str(
        caught.value.hint
    )


def test_warnings_name_what_is_doubtful() -> None:
    assert warnings(DataReport(pictures=5000, pairs=5000, distinct_pictures=5000)) != []
    rng = np.random.default_rng(0)
    rows: list[Row] = [
        record(f"k{at}", solid(NAMES[int(rng.integers(8))]), en=f"{at % 7}") for at in range(1200)
    ]
    lines = "\n".join(warnings(inspect([Listed(rows)], one_in=50)))
    assert "only 7 different captions for 1200 pictures" in lines
    assert "1192 pictures are copies" in lines
    some: list[Row] = [
        record(f"k{at}", solid("red") + bytes([at]), en="stock photo" if at % 2 else f"c{at}")
        for at in range(60)
    ]
    lines = "\n".join(warnings(inspect([Listed(some)])))
    assert "'stock photo' occurs at least 30 times" in lines
    assert "60 pictures are few" in lines
