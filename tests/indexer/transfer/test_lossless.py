"""Nothing is lost on the way: words, thumbnails, fields, origins, and what was deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clustered import fill, pictures, texts
from fakes import ColourEncoder
from indexes import PICTURES, ListSource, build, ids, opened, record

from indexer.filters.declared import parse_fields
from indexer.format.erasures import read_erasures
from indexer.format.manifest import read_manifest
from indexer.format.version import open_version
from indexer.ingest.build import BuildOptions, build_index
from indexer.maintain.edit import delete_items
from indexer.maintain.optimize import OptimizeOptions, optimize
from indexer.maintain.purge import purge
from indexer.maintain.verify import verify_index
from indexer.store.copies import load_rows
from indexer.transfer.exports import export_index
from indexer.transfer.imports import import_index
from indexer.transfer.rows import BLOCK, TransferReport
from models.errors import SourceError
from models.sources.records import Record

FORMS: list[Any] = ["parquet", "clip-retrieval"]


def rec(
    key: str, colour: str | None, texts: dict[str, tuple[str, ...]], **attributes: Any
) -> Record:
    image = None if colour is None else PICTURES[colour]
    origin = "" if key == "e" else f"file:///{key}.jsonl"
    return Record(key, f"file:///{key}.png", image, texts, None, attributes, origin)


RECORDS = [
    rec("a", "red", {"en": ("a red one", "zeppelin over Ulm"), "de": ("rot",)}, year=2001),
    rec("b", "blue", {}, year=2002),
    rec("c", "green", {"zh-CN": ("绿 色",), "en": ("a green one",)}),
    rec("d", None, {"en": ("two texts", "of one record"), "fr": ("deux",)}),
    rec("e", "white", {"de": ("weiß",)}),
]


def bring(source: Path, out: Path, **more: Any) -> TransferReport:
    return import_index(source, out, ColourEncoder, **more)


def stored(path: Path) -> dict[tuple[str, str], Any]:
    """Everything that an index keeps of each live row, the words it is found by included."""
    assert verify_index(path).ok
    found = {}
    with open_version(path) as version:
        for segment, dead in zip(version.segments, version.dead, strict=True):
            words: dict[int, set[str]] = {}
            for term, postings in segment.items.all_postings():
                for row in postings.rows_M.tolist():
                    words.setdefault(row, set()).add(term)
            alive = np.flatnonzero(~dead).tolist()
            rows = load_rows(segment, alive, version.manifest.declared)
            for row, new in zip(alive, rows, strict=True):
                vector = segment.vectors_ND[row].tobytes()
                key = (segment.entry.modality, new.item.id)
                found[key] = (new, words.get(row), vector)
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options", [{}, {"captions": False}, {"languages": ("en",)}, {"thumbnails": False}], ids=str
)
def test_an_index_comes_back_as_it_was(tmp_path: Path, form: Any, options: dict[str, Any]) -> None:
    path, back = tmp_path / "x.index", tmp_path / "back.index"
    given = BuildOptions(fields=parse_fields(["year:int"]), **options)
    build_index([ListSource(RECORDS)], path, ColourEncoder(), options=given)
    export_index(path, tmp_path / "out", form)
    report = bring(tmp_path / "out", back)
    assert (report.rejected, report.erased, report.notes) == (0, 0, {})
    assert stored(back) == stored(path)
    assert read_manifest(back).fields == read_manifest(path).fields
    again = build(RECORDS, back, **options)
    assert (again.added, again.updated, again.moved, again.rejected) == (0, 0, 0, 0)


def test_an_export_that_left_something_out_does_not_claim_to_be_complete(tmp_path: Path) -> None:
    """As earlier releases wrote it: a build from the source brings back what is missing."""
    path, back = tmp_path / "x.index", tmp_path / "back.index"
    build(RECORDS[:3], path)
    export_index(path, tmp_path / "out", "clip-retrieval")
    [file] = (tmp_path / "out" / "metadata").iterdir()
    lost = ("origin", "thumbnail", "texts", "picture", "own_text", "own_language")
    table = pq.read_table(file).drop_columns([f"diptych_{name}" for name in lost])
    pq.write_table(table.replace_schema_metadata(None), file)
    report = bring(tmp_path / "out", back)
    assert [count for what, count in report.notes.items() if "build again" in what] == [1]
    assert "zeppelin" in stored(back)["image", "a"][1], "the rows of a picture have its words"
    assert build(RECORDS[:3], back).updated == 3
    assert stored(back).keys() == stored(path).keys()
    for key, one in stored(path).items():
        assert stored(back)[key] == one


def test_a_picture_has_the_words_of_all_its_rows(tmp_path: Path) -> None:
    """Rows of others, which repeat a picture for each caption, over the edge of a block."""
    count = BLOCK + 2
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((count, ColourEncoder().dim)).astype(np.float32)
    rows[BLOCK - 1 :] = rows[BLOCK - 1]
    names = [str(min(n, BLOCK - 1)) for n in range(count)]
    words = [f"word{n}" for n in range(count)]
    for side in ("img_emb", "text_emb", "metadata"):
        (tmp_path / "emb" / side).mkdir(parents=True)
    np.save(tmp_path / "emb" / "img_emb" / "img_emb_0.npy", rows)
    np.save(tmp_path / "emb" / "text_emb" / "text_emb_0.npy", rows[::-1])
    told = pa.table({"image_path": names, "caption": words})
    pq.write_table(told, tmp_path / "emb" / "metadata" / "metadata_0.parquet")
    report = bring(tmp_path / "emb", tmp_path / "x.index", relevance=False)
    assert (report.images, report.texts, report.rejected) == (BLOCK, BLOCK, 2)
    found = stored(tmp_path / "x.index")
    assert found["image", str(BLOCK - 1)][1] == {
        str(BLOCK - 1), *(f"word{BLOCK - 1 + n}" for n in range(3))
    }  # fmt: skip
    assert found["image", "0"][1] == {"0", "word0"}


@pytest.mark.parametrize("form", FORMS)
def test_texts_that_nobody_kept_travel_too(tmp_path: Path, form: Any) -> None:
    rows = np.eye(ColourEncoder().dim, dtype=np.float32)[:2]
    for side in ("img_emb", "text_emb"):
        (tmp_path / "emb" / side).mkdir(parents=True)
        np.save(tmp_path / "emb" / side / f"{side}_0.npy", rows)
    bring(tmp_path / "emb", tmp_path / "x.index", relevance=False)
    export_index(tmp_path / "x.index", tmp_path / "out", form)
    report = bring(tmp_path / "out", tmp_path / "back.index", relevance=False)
    assert (report.images, report.texts, report.rejected) == (2, 2, 0)
    assert stored(tmp_path / "back.index") == stored(tmp_path / "x.index")


def test_what_an_export_leaves_behind_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    fill(path, pictures(600), texts(100))
    optimize(path, OptimizeOptions(structure="hnsw", fewest=500, floor=0.8, gain=0.0))
    report = export_index(path, tmp_path / "out", "parquet")
    assert any("search structures are not exported" in what for what in report.notes)
    assert export_index(path, tmp_path / "copy", "copy").notes == {}


# -- what was deleted


def erased(path: Path) -> int:
    return len(read_erasures(path, read_manifest(path)))


@pytest.mark.parametrize("form", FORMS)
def test_what_was_deleted_does_not_come_back_with_an_old_export(tmp_path: Path, form: Any) -> None:
    path = tmp_path / "x.index"
    build(RECORDS, path)
    export_index(path, tmp_path / "out", form)
    delete_items(path, ["a", "c#en/0", "b", "c", "d", "e"])
    purge(path)
    count = erased(path)
    report = bring(tmp_path / "out", path)
    assert (report.images, report.texts, report.rejected) == (0, 0, 0)
    assert report.erased == 4 + 9
    assert (erased(path), verify_index(path).ok) == (count, True)
    report = bring(tmp_path / "out", path, allow_erased=True)
    assert (report.images, report.texts, report.erased) == (4, 9, 0)
    assert erased(path) == 0
    assert build(RECORDS, path).unchanged == len(RECORDS)


@pytest.mark.parametrize("form", FORMS)
def test_the_words_of_a_deleted_caption_stay_out_of_its_picture(tmp_path: Path, form: Any) -> None:
    path = tmp_path / "x.index"
    build(RECORDS, path)
    export_index(path, tmp_path / "out", form)
    delete_items(path, ["a#en/0", "d#fr/0"])
    export_index(path, tmp_path / "later", form)
    (tmp_path / "out" / "_erased.npy").write_bytes(
        (tmp_path / "later" / "_erased.npy").read_bytes()
    )
    report = bring(tmp_path / "out", tmp_path / "back.index")
    assert (report.erased, report.rejected) == (2, 0)
    assert stored(tmp_path / "back.index") == stored(path)


@pytest.mark.parametrize("form", FORMS)
def test_an_export_carries_what_was_deleted(tmp_path: Path, form: Any) -> None:
    path, back = tmp_path / "x.index", tmp_path / "back.index"
    build(RECORDS, path)
    delete_items(path, ["a", "c#en/0"])
    export_index(path, tmp_path / "out", form)
    bring(tmp_path / "out", back)
    assert erased(back) == erased(path) > 0
    report = build(RECORDS, back)
    assert (report.erased, report.unchanged, report.added) == (1, 4, 0)
    with opened(back) as snapshot:
        assert "a" not in ids(snapshot, "red")
        assert [one.id for one in snapshot.captions("c")] == ["c#zh-CN/0"]
    (tmp_path / "out" / "_erased.npy").write_bytes(b"spoilt")
    with pytest.raises(SourceError, match="is no erasure list"):
        bring(tmp_path / "out", tmp_path / "other.index")


def test_one_file_of_an_export_has_its_list_beside_it(tmp_path: Path) -> None:
    path, back = tmp_path / "x.index", tmp_path / "back.index"
    build(RECORDS, path)
    delete_items(path, ["a"])
    export_index(path, tmp_path / "out", "parquet")
    bring(tmp_path / "out" / "part-00000.parquet", back)
    assert build([record("a", "red")], back).erased == 1
