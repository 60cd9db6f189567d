"""Tables that others wrote: each row is judged alone, and nothing becomes damage found later."""

from __future__ import annotations

import datetime
import decimal
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import ColourEncoder
from indexes import ListSource, opened, record

from indexer.filters.declared import parse_fields
from indexer.format.items import Item
from indexer.ingest.build import build_index
from indexer.maintain.verify import verify_index
from indexer.transfer.imports import import_index
from indexer.transfer.rows import TransferReport
from models.errors import InputError, NotFoundError, SourceError

DIM = ColourEncoder().dim
ROWS = 4


def vectors(count: int = ROWS) -> list[Any]:
    rows = np.random.default_rng(0).standard_normal((count, DIM)).astype(np.float32)
    return [list(map(float, row / np.linalg.norm(row))) for row in rows]


def bring(tmp_path: Path, **columns: Any) -> tuple[TransferReport, dict[str, Item]]:
    """Import a table with these columns, and ids and vectors if they have none."""
    whole = {"id": [f"i{n}" for n in range(ROWS)], "vector": vectors()} | columns
    pq.write_table(pa.table(whole), tmp_path / "mine.parquet", row_group_size=3)
    out = tmp_path / "x.index"
    report = import_index(tmp_path / "mine.parquet", out, ColourEncoder, relevance=False)
    assert verify_index(out).ok
    found = {}
    with opened(out) as snapshot:
        for name in {str(one) for one in whole["id"]}:
            with suppress(NotFoundError):
                found[name] = snapshot.item(name)
    return report, found


def test_a_row_without_a_usable_vector_costs_nobody_else(tmp_path: Path) -> None:
    rows: list[Any] = vectors(1200)
    rows[0], rows[500], rows[501] = None, rows[500][:4], [None, *rows[501][1:]]
    rows[502] = [float("nan"), *rows[502][1:]]
    report, _ = bring(tmp_path, id=[f"i{n}" for n in range(1200)], vector=rows)
    assert (report.images, report.rejected) == (1196, 4)
    assert report.reasons == [
        "i0: it has no vector, the model has 9",
        "i500: it has a vector of 4 dimensions, the model has 9",
        "i501: its vector has gaps",
        "i502: a vector holds NaN or infinity",
    ]


@pytest.mark.parametrize(
    ("name", "values", "attribute", "wanted"),
    [
        ("text", [1, 2, 3, 4], "text", "1"),
        ("text", [["a", None, "b"]] * 4, "text", "a"),
        ("label", [3.0, None, 1.0, 2.0], "label", "3"),
        ("label", [True] * 4, "label", "true"),
        ("uri", [7] * 4, "uri", "7"),
        ("uri", [None, "", "x", "y"], "uri", "i0"),
        ("attributes", [{"a": 1, "b": None}] * 4, "attributes", {"a": 1, "b": None}),
        ("attributes", ['{"a": NaN}'] * 4, "attributes", {"a": None}),
        ("attributes", [float("nan")] * 4, "attributes", {}),
        (
            "attributes",
            pa.array([[("k", 1)]] * 4, pa.map_(pa.string(), pa.int64())),
            "attributes",
            {"k": 1},
        ),
        ("picture", ["a.jpg"] * 4, "attributes", {"picture": "a.jpg"}),
        ("picture", [{"w": 1}] * 4, "attributes", {"picture": {"w": 1}}),
        ("thumbnail", ["a.jpg"] * 4, "attributes", {"thumbnail": "a.jpg"}),
        ("record", [1, 2, 3, 4], "attributes", {"record": 1}),
        ("image_id", [1, 2, 3, 4], "attributes", {"image_id": 1}),
        ("sha", [b"\xff\xfe"] * 4, "attributes", {"sha": "fffe"}),
        ("n", [decimal.Decimal("2.00")] * 4, "attributes", {"n": 2}),
        ("day", [datetime.date(2020, 1, 2)] * 4, "attributes", {"day": "2020-01-02"}),
    ],
)  # fmt: skip
def test_what_is_plain_is_converted(
    tmp_path: Path, name: str, values: Any, attribute: str, wanted: Any
) -> None:
    report, items = bring(tmp_path, **{name: values})
    assert (report.images, report.rejected) == (ROWS, 0)
    assert getattr(items["i0"], attribute) == wanted


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("id", [None, "b", "c", "d"], "row 0 of mine.parquet: it has no id"),
        ("id", ["", "b", "c", "d"], "row 0 of mine.parquet: it has no id"),
        ("id", ["x" * 3000, "b", "c", "d"], "row 0 of mine.parquet: its id has more than 2048"),
        ("id", [0.5, 1.0, 2.0, 3.0], "its id is 0.5, neither text nor a whole number"),
        ("text", [{"a": 1}, None, None, None], "i0: its text is an object, not text"),
        ("attributes", ["[1, 2]", "{}", "", None], "i0: its attributes are a list, not an object"),
        ("attributes", ["red", "{}", "", None], "i0: its attributes are not JSON"),
        ("attributes", ['{"a": "\\ud800"}', "{}", "", None], "its attributes is not Unicode"),
        ("modality", ["video", "image", None, "Image "], "i0: its modality is 'video'"),
        (
            "odd",
            pa.array([b"\xff", b"a", b"b", b"c"]).view(pa.string()),
            "i0: its odd cannot be read",
        ),
    ],
)  # fmt: skip
def test_what_is_not_is_left_out_with_its_reason(
    tmp_path: Path, name: str, values: Any, why: str
) -> None:
    report, items = bring(tmp_path, **{name: values})
    assert (report.images, report.rejected) == (ROWS - 1, 1)
    assert why in report.reasons[0]
    assert "None" not in items


def test_whole_numbers_are_ids_of_pictures_and_of_their_texts(tmp_path: Path) -> None:
    table = {
        "id": [10.0, 11.0, 0.0, 1.0],  # texts first, numbers as pandas has them beside gaps
        "modality": ["text", "text", "image", "image"],
        "image_id": [0, 9, None, None],
        "text": ["of 0", "of nobody", None, None],
    }
    report, _ = bring(tmp_path, **table)
    assert (report.images, report.texts, report.rejected) == (2, 1, 1)
    assert report.reasons == ["11: its picture '9' is not there"]
    with opened(tmp_path / "x.index") as snapshot:
        assert [one.text for one in snapshot.captions("0")] == ["of 0"]
    with_list = {"modality": ["text"] * 4, "text": [["a"], ["b", "c"], [], None]}
    (tmp_path / "second").mkdir()
    report, _ = bring(tmp_path / "second", **with_list)
    assert (report.texts, report.rejected) == (1, 3)
    assert "several texts, and one vector" in report.reasons[0]


@pytest.mark.parametrize("claimed", ["not hex", "d41d8cd98f00b204e9800998ecf8427e", "ab" * 40])
def test_a_hash_of_another_kind_is_no_content_hash(tmp_path: Path, claimed: str) -> None:
    report, items = bring(tmp_path, content_hash=[claimed] * ROWS)
    assert report.rejected == 0
    assert items["i0"].attributes == {"content_hash": claimed}
    assert len(items["i0"].content_hash) == 64


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (pa.list_(pa.int32()), 1),
        (pa.list_(pa.float64(), DIM), 0.5),
        (pa.large_list(pa.float32()), 2.0),
        (pa.list_(pa.decimal128(5, 1)), decimal.Decimal(2)),
    ],
)
def test_vectors_of_any_numbers(tmp_path: Path, kind: pa.DataType, number: Any) -> None:
    rows = [None if n == 1 else [number] * DIM for n in range(ROWS)]
    report, _ = bring(tmp_path, vector=pa.array(rows, kind))
    assert (report.images, report.rejected, report.scaled) == (3, 1, 3)


def test_a_table_that_is_none_of_ours_is_refused_whole(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds string, not lists of numbers"):
        bring(tmp_path, vector=["[1, 2]"] * ROWS)
    with pytest.raises(InputError, match="vectors have 4 dimensions, the model has 9"):
        bring(tmp_path, vector=[[1.0] * 4] * ROWS)
    report, _ = bring(tmp_path, vector=pa.nulls(ROWS))
    assert report.rejected == ROWS


def test_declared_fields_of_the_wrong_type_are_told(tmp_path: Path) -> None:
    table = pa.table({"id": list("abcd"), "vector": vectors(), "year": ["1", "2", "3", "4"]})
    pq.write_table(table, tmp_path / "mine.parquet")
    fields = parse_fields(["year:int"])
    out = tmp_path / "y.index"
    report = import_index(tmp_path / "mine.parquet", out, ColourEncoder, fields=fields)
    assert report.notes == {"year: expected a whole number, found text; it counts as missing": ROWS}


def test_an_imported_index_is_built_on(tmp_path: Path) -> None:
    bring(tmp_path, id=["a", "b", "c", "d"])
    report = build_index([ListSource([record("e", "red")])], tmp_path / "x.index", ColourEncoder())
    assert report.added == 1
