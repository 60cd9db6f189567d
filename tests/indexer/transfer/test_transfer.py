"""Out of an index and back: the same ids, vectors bit for bit, texts, attributes and hits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import CHINESE, COLOURS, ColourEncoder, halves
from indexes import NAMES, ListSource, build, ids, opened, record

from indexer.filters.declared import parse_fields
from indexer.filters.language import parse_filter
from indexer.format.manifest import read_manifest
from indexer.format.version import open_version
from indexer.ingest.build import BuildOptions, build_index
from indexer.maintain.edit import delete_items
from indexer.maintain.purge import purge
from indexer.maintain.verify import verify_index
from indexer.search.options import SearchOptions
from indexer.transfer import exports as exporting_module
from indexer.transfer.clip_retrieval import write_folders
from indexer.transfer.exports import export_index
from indexer.transfer.imports import import_index
from indexer.transfer.parquet_files import write_parquet
from indexer.transfer.rows import live_rows, storable
from models.errors import (
    EncoderMismatchError,
    IndexCorruptError,
    InputError,
    InvalidVectorError,
    SourceError,
    StoreError,
)
from models.sources.records import Record

FINGERPRINT = ColourEncoder().fingerprint
DIM = ColourEncoder().dim
FORMS = ["parquet", "clip-retrieval"]


def records() -> list[Record]:
    """Pictures with none, one and two texts, and texts without a picture."""
    found = []
    for i, name in enumerate(NAMES):
        texts: dict[str, tuple[str, ...]] = {}
        if i % 3:
            texts["en"] = (f"a {name} thing, {i}", "naïve \u0000-free “quotes”")[: i % 3]
        if i == 4:
            texts["zh"] = (next(iter(CHINESE)),)
        attributes = {"year": 2000 + i, "tags": ["a", name], "deep": {"n": [1, None, "x"]}}
        picture = halves(name, NAMES[(i + 3) % 8], size=(24, 8))
        found.append(Record(f"p{i}", f"file:///p/{i}.png", picture, texts, name, attributes))
    found.append(Record("alone", "file:///alone.txt", None, {"en": ("red alone",)}))
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with dead rows, two generations, and declared fields."""
    path = tmp_path_factory.mktemp("transfer") / "x.index"
    options = BuildOptions(fields=parse_fields(["year:int,tags:str[]"]), segment_rows=3)
    build_index([ListSource(records())], path, ColourEncoder(), options=options)
    build([record("gone", "red", "red"), record("p7", "cyan", "cyan now", year=2050)], path)
    delete_items(path, ["gone"])
    return path


def everything(path: Path) -> dict[str, Any]:
    """Every live row: its vector's bytes and all that is stored of it."""
    version = open_version(path)
    found = {}
    for block in live_rows(version):
        for vector, row in zip(block.vectors_BD, block.rows, strict=True):
            found[f"{block.modality}/{row.item.id}"] = (vector.tobytes(), row)
    version.close()
    return found


def bring(source: Path, out: Path, encoder: ColourEncoder | None = None, **more: Any) -> Any:
    return import_index(source, out, lambda: encoder or ColourEncoder(), **more)


@pytest.mark.parametrize("form", FORMS)
def test_what_was_exported_comes_back_the_same(path: Path, tmp_path: Path, form: str) -> None:
    told: list[int] = []
    exported = export_index(path, tmp_path / "out", form, on_rows=lambda n, _: told.append(n))  # type: ignore[arg-type]
    assert (exported.images, exported.texts) == (8, 9)
    assert exported.files == len([one for one in (tmp_path / "out").rglob("*") if one.is_file()])
    fields = parse_fields(["year:int,tags:str[]"]) if form == "clip-retrieval" else None
    report = bring(tmp_path / "out", tmp_path / "back.index", fields=fields)
    assert (report.images, report.texts, report.rejected, report.scaled) == (8, 9, 0, 0)
    before, after = everything(path), everything(tmp_path / "back.index")
    assert after.keys() == before.keys()
    for key, (vector, row) in before.items():
        assert after[key][0] == vector, "bit for bit"
        again = after[key][1]
        assert (again.item, again.record, again.values) == (row.item, row.record, row.values)
        if form == "parquet":
            assert (again.thumbnail, again.picture) == (row.thumbnail, row.picture)
    with opened(path) as old, opened(tmp_path / "back.index") as new:
        wanted = parse_filter({"field": "year", "gte": 2003})
        for query in (*COLOURS, "nothing"):
            vector = ColourEncoder().embed_texts([ColourEncoder().prepare_text(query)])
            for target in ("images", "texts"):
                assert new.search(vector, SearchOptions(k=20, target=target)) == old.search(
                    vector, SearchOptions(k=20, target=target)
                )
            assert new.search(vector, SearchOptions(k=5, filter=wanted)) == old.search(
                vector, SearchOptions(k=5, filter=wanted)
            )
        assert new.info().relevance is not None
    assert verify_index(tmp_path / "back.index", deep=True).problems == []
    manifest = read_manifest(tmp_path / "back.index")
    assert manifest.operation == "import"
    assert [one.kind for one in manifest.sources] == [form]


@pytest.mark.parametrize("form", FORMS)
def test_a_build_after_an_import_embeds_nothing_again(
    path: Path, tmp_path: Path, form: str
) -> None:
    export_index(path, tmp_path / "out", form)  # type: ignore[arg-type]
    bring(tmp_path / "out", tmp_path / "back.index")
    encoder = ColourEncoder()
    report = build(records()[:6], tmp_path / "back.index", encoder)
    assert (report.unchanged, report.added, report.updated) == (6, 0, 0)
    assert encoder.images_embedded == 0


@pytest.mark.parametrize("form", [*FORMS, "copy"])
def test_an_empty_index_travels_too(tmp_path: Path, form: str) -> None:
    build([], tmp_path / "none.index")
    export_index(tmp_path / "none.index", tmp_path / "out", form)  # type: ignore[arg-type]
    report = bring(tmp_path / "out", tmp_path / "back.index")
    assert (report.images, report.texts) == (0, 0)
    assert verify_index(tmp_path / "back.index").ok


def test_many_files_pair_up_in_lexicographic_order(path: Path, tmp_path: Path) -> None:
    for form in ("parquet", "folders"):
        out = tmp_path / form
        out.mkdir()
        version = open_version(path)
        if form == "parquet":
            write_parquet(out, version.manifest, live_rows(version), rows_a_file=2)
        else:
            write_folders(out, version, rows_a_file=1)
        version.close()
        bring(out, tmp_path / f"{form}.index")
        assert {key: one[0] for key, one in everything(tmp_path / f"{form}.index").items()} == {
            key: one[0] for key, one in everything(path).items()
        }
    names = sorted(one.name for one in (tmp_path / "folders" / "img_emb").iterdir())
    assert names[:3] == ["img_emb_00.npy", "img_emb_01.npy", "img_emb_02.npy"], "padded"


# -- what others wrote


def folders(out: Path, rows: int, **columns: list[Any]) -> np.ndarray:
    """A folder as clip-retrieval's inference leaves it: rows of unit length, no column of ours."""
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((rows, DIM)).astype(np.float32)
    vectors /= np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    for side in ("img_emb", "text_emb", "metadata"):
        (out / side).mkdir(parents=True)
    for number, at in enumerate(range(0, rows, 4)):
        part = slice(at, at + 4)
        np.save(out / "img_emb" / f"img_emb_{number}.npy", vectors[part].astype(np.float16))
        np.save(out / "text_emb" / f"text_emb_{number}.npy", vectors[part][:, ::-1])
        told = {name: values[part] for name, values in columns.items()}
        pq.write_table(pa.table(told), out / "metadata" / f"metadata_{number}.parquet")
    return vectors


def test_folders_of_others_are_read(tmp_path: Path) -> None:
    paths = [f"/data/{i}.jpg" for i in range(6)]
    captions = ["red", "a green thing", None, "", "blue", "red"]
    vectors = folders(
        tmp_path / "emb", 6, image_path=paths, caption=captions,
        NSFW=["UNLIKELY"] * 6, width=[1, 2, 3, 4, 5, 6], score=[0.5, float("nan")] * 3,
    )  # fmt: skip
    report = bring(tmp_path / "emb", tmp_path / "x.index", fields=parse_fields(["width:int"]))
    assert (report.images, report.texts, report.rejected, report.scaled) == (6, 6, 0, 0)
    with opened(tmp_path / "x.index") as snapshot:
        for i, name in enumerate(paths):
            item = snapshot.item(name)
            assert item.uri == name
            assert item.attributes["width"] == i + 1
            assert item.attributes["score"] == (None if i % 2 else 0.5)
            np.testing.assert_allclose(snapshot.vector(name), vectors[i], atol=2e-3)
            [caption] = snapshot.captions(name)
            assert caption.id == f"{name}#und/0"
            np.testing.assert_allclose(snapshot.vector(caption.id), vectors[i][::-1], atol=1e-3)
        # rows of one file order by cosine as brute force says
        best = [hit.item.id for hit in snapshot.search(vectors[2:3], SearchOptions(k=6))[0]]
        assert best == [paths[i] for i in np.argsort(-(vectors @ vectors[2]))]
        few = snapshot.search(
            vectors[:1], SearchOptions(k=9, filter=parse_filter({"field": "width", "gte": 5}))
        )
        assert {hit.item.id for hit in few[0]} == set(paths[4:])


def test_only_pictures_and_no_metadata_will_do(tmp_path: Path) -> None:
    vectors = folders(tmp_path / "emb", 5, image_path=["x"] * 5)
    shutil.rmtree(tmp_path / "emb" / "text_emb")
    shutil.rmtree(tmp_path / "emb" / "metadata")
    report = bring(tmp_path / "emb", tmp_path / "x.index")
    assert (report.images, report.texts) == (5, 0)
    with opened(tmp_path / "x.index") as snapshot:
        assert snapshot.search(vectors[3:4], SearchOptions(k=1))[0][0].item.id == "row-000000000003"


def test_vectors_of_any_length_are_scaled_and_those_without_direction_left_out(
    tmp_path: Path,
) -> None:
    vectors = folders(tmp_path / "emb", 4, image_path=list("abcd"), caption=["red"] * 4)
    image = np.stack([vectors[0] * 7, vectors[1], np.full(DIM, np.nan), vectors[3] * 1e-3])
    np.save(tmp_path / "emb" / "img_emb" / "img_emb_0.npy", image.astype(np.float32))
    report = bring(tmp_path / "emb", tmp_path / "x.index")
    assert (report.images, report.texts, report.scaled, report.rejected) == (3, 3, 2, 2)
    assert report.reasons[0] == "c: a vector holds NaN or infinity"
    assert "its picture 'c' is not there" in report.reasons[1]
    with opened(tmp_path / "x.index") as snapshot:
        np.testing.assert_allclose(snapshot.vector("a"), vectors[0], atol=1e-3)
    assert verify_index(tmp_path / "x.index").ok


def test_parquet_of_others_needs_id_and_vector_only(tmp_path: Path) -> None:
    vectors = np.eye(DIM, dtype=np.float32)[:3]
    table = pa.table(
        {"id": ["a", "b", "a"], "vector": [list(row) for row in vectors], "year": [1, 2, 3]}
    )
    pq.write_table(table, tmp_path / "mine.parquet")
    report = bring(tmp_path / "mine.parquet", tmp_path / "x.index", relevance=False)
    assert (report.images, report.rejected) == (2, 1)
    assert report.reasons == ["a: the id is taken by another image"]
    with opened(tmp_path / "x.index") as snapshot:
        assert snapshot.item("b").attributes == {"year": 2}
        assert snapshot.info().relevance is None


# -- what is refused


def test_another_model_or_dimension_is_refused(path: Path, tmp_path: Path) -> None:
    export_index(path, tmp_path / "out", "parquet")
    with pytest.raises(EncoderMismatchError, match="built with colours, not with others"):
        bring(tmp_path / "out", tmp_path / "x.index", ColourEncoder(name="others"))
    assert not (tmp_path / "x.index").exists()
    vectors = folders(tmp_path / "emb", 4, image_path=list("abcd"))
    np.save(tmp_path / "emb" / "img_emb" / "img_emb_0.npy", vectors[:, :-1])
    with pytest.raises(InputError, match="8 dimensions, the model has 9"):
        bring(tmp_path / "emb", tmp_path / "x.index")
    np.save(tmp_path / "emb" / "img_emb" / "img_emb_0.npy", vectors)
    assert bring(tmp_path / "emb", tmp_path / "x.index").images == 4, "the same command succeeds"


def spoil_pickle(emb: Path) -> None:
    np.save(emb / "img_emb" / "img_emb_0.npy", np.array([{}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (spoil_pickle, "is no array"),
        (lambda emb: (emb / "img_emb" / "img_emb_0.npy").write_bytes(b"NUMPY"), "is no array"),
        (lambda emb: np.save(emb / "img_emb" / "img_emb_0.npy", np.ones((4, 9), int)), "int64"),
        (lambda emb: np.save(emb / "img_emb" / "img_emb_0.npy", np.ones((3, 9))), r"\[3, 4\] rows"),
        (lambda emb: (emb / "img_emb" / "img_emb_1.npy").unlink(), "has 1 files, not 2"),
        (lambda emb: (emb / "metadata" / "metadata_1.parquet").unlink(), "has 1 files, not 2"),
        (lambda emb: (emb / "metadata" / "metadata_0.parquet").write_text("x"), "is not Parquet"),
        (lambda emb: (shutil.rmtree(emb), emb.mkdir()), "is no index, no Parquet"),
    ],
)
def test_a_damaged_source_is_refused_and_the_next_try_succeeds(
    tmp_path: Path, spoil: Any, why: str
) -> None:
    folders(tmp_path / "good", 8, image_path=list("abcdefgh"), caption=["x"] * 8)
    shutil.copytree(tmp_path / "good", tmp_path / "emb")
    spoil(tmp_path / "emb")
    with pytest.raises(SourceError, match=why):
        bring(tmp_path / "emb", tmp_path / "x.index")
    assert bring(tmp_path / "good", tmp_path / "x.index").images == 8


def test_what_is_there_is_not_written_over(path: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    for form in ("parquet", "clip-retrieval", "copy"):
        with pytest.raises(StoreError, match="exists already"):
            export_index(path, tmp_path / "full", form)  # type: ignore[arg-type]
    export_index(path, tmp_path / "out", "parquet")
    for out, why in ((tmp_path / "full", "is not an index"), (path, "exists already")):
        with pytest.raises(StoreError, match=why):
            bring(tmp_path / "out", out)
    assert (tmp_path / "full" / "mine").read_text() == "keep"


# -- copies


def test_a_copy_is_the_index(path: Path, tmp_path: Path) -> None:
    report = export_index(path, tmp_path / "copy", "copy")
    assert report.version == read_manifest(path).version
    assert (tmp_path / "copy" / "CURRENT").read_bytes() == (path / "CURRENT").read_bytes()
    assert everything(tmp_path / "copy") == everything(path)
    assert verify_index(tmp_path / "copy", deep=True).problems == []
    build([record("new", "red")], tmp_path / "copy")
    assert verify_index(tmp_path / "copy", deep=True).problems == []
    bring(tmp_path / "copy", tmp_path / "restored")
    assert everything(tmp_path / "restored") == everything(tmp_path / "copy")


def test_a_copy_under_writes_is_one_committed_version(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is copied, the version is replaced and its files are collected."""
    shutil.copytree(path, tmp_path / "live")
    real, copied = exporting_module._copy_file, 0

    def copy_file(*arguments: Any) -> None:
        nonlocal copied
        copied += 1
        if copied == 3:
            for number in range(17):
                build([record("p1", NAMES[number % 8])], tmp_path / "live", relevance=False)
            delete_items(tmp_path / "live", ["p2", "p3"])
            purge(tmp_path / "live")
        real(*arguments)

    monkeypatch.setattr(exporting_module, "_copy_file", copy_file)
    report = export_index(tmp_path / "live", tmp_path / "copy", "copy")
    assert report.version == read_manifest(tmp_path / "live").version
    assert everything(tmp_path / "copy") == everything(tmp_path / "live")
    assert not (tmp_path / "copy.partial").exists()


def test_a_tampered_copy_is_refused_by_name(path: Path, tmp_path: Path) -> None:
    export_index(path, tmp_path / "copy", "copy")
    file = min((tmp_path / "copy" / "segments").glob("*/vectors.npy"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 4
    file.write_bytes(data)
    with pytest.raises(IndexCorruptError, match=r"vectors\.npy: sha256"):
        bring(tmp_path / "copy", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    assert not (tmp_path / "restored.partial").exists()


def test_what_a_killed_export_left_is_no_obstacle(path: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.partial" / "segments").mkdir(parents=True)
    (tmp_path / "copy.partial" / "segments" / "half").write_bytes(b"x" * 100)
    (tmp_path / "copy.partial" / ".diptych-export").touch()
    export_index(path, tmp_path / "copy", "copy")
    assert everything(tmp_path / "copy") == everything(path)
    (tmp_path / "other.partial").mkdir()  # it was killed before it could write anything
    export_index(path, tmp_path / "other", "parquet")
    assert not list(tmp_path.rglob(".diptych-export"))
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("form", ["copy", "parquet", "clip-retrieval"])
def test_what_only_has_the_name_of_a_cut_off_export_is_left_alone(
    path: Path, tmp_path: Path, form: Any
) -> None:
    theirs = tmp_path / "backup.partial"
    theirs.mkdir()
    (theirs / "letters.txt").write_text("mine")
    (tmp_path / "linked.partial").symlink_to(theirs)
    (tmp_path / "file.partial").write_text("mine")
    for name in ("backup", "linked", "file"):
        with pytest.raises(StoreError, match="is in the way") as caught:
            export_index(path, tmp_path / name, form)
        assert caught.value.hint is not None
        assert "--out" in caught.value.hint
        assert not (tmp_path / name).exists()
    assert (theirs / "letters.txt").read_text() == "mine"
    assert (tmp_path / "file.partial").read_text() == "mine"


def test_the_directory_we_are_in_is_not_made_anew(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "empty" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    for name in (".", "./", "..", str(here), "/"):
        with pytest.raises(StoreError, match="cannot be made anew"):
            export_index(path, Path(name), "copy")
    assert list(tmp_path.rglob("empty/*")) == [here]


# -- vectors


def test_unit_rows_of_any_precision_are_left_as_they_are() -> None:
    rows = np.random.default_rng(3).standard_normal((50, 64)).astype(np.float32)
    unit = (rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))).astype(np.float16)
    kept, scaled = storable(unit, 64)
    assert scaled == 0
    assert kept.tobytes() == unit.tobytes()
    mixed = np.concatenate([unit[:2].astype(np.float32), rows[2:4] * 1e20])
    kept, scaled = storable(mixed, 64)
    assert scaled == 2
    assert kept.astype(np.float16).tobytes() == unit[:4].tobytes()
    with pytest.raises(InvalidVectorError):
        storable(np.zeros((1, 64), dtype=np.float16), 64)


def test_attributes_are_json(path: Path, tmp_path: Path) -> None:
    """What another tool finds in the file."""
    export_index(path, tmp_path / "out", "parquet")
    table = pq.read_table(tmp_path / "out")
    assert table.schema.field("vector").type == pa.list_(pa.float16(), DIM)
    [row] = [one for one in table.to_pylist() if one["id"] == "p4" and one["modality"] == "image"]
    assert json.loads(row["attributes"])["deep"] == {"n": [1, None, "x"]}
    assert sorted(row["texts"]) == ["a magenta thing, 4", "红"]
    with opened(path) as snapshot:
        assert ids(snapshot, "red", 1, "texts") == ["alone#en/0"]
