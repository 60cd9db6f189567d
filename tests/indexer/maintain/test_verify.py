"""`verify` looks inside: damage that the hashes vouch for, as a faulty writer would leave it."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexes import build, record

from indexer.format.manifest import Head
from indexer.format.npy import npy_header
from indexer.maintain.segment_checks import vector_problems
from indexer.maintain.verify import verify_index
from indexer.search.snapshot import open_snapshot
from models.errors import IndexCorruptError

Edit = Callable[[Path, dict[str, Any]], None]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    path = tmp_path / "x.index"
    build([record("a", "red", "red"), record("b", "blue", "blue"), record("c", "green")], path)
    build([record("a", "white"), record("d", "black")], path)
    return path


def reseal(index: Path, edit: Edit) -> None:
    """Edit files and manifest, then make all sizes and hashes right again."""
    name = index / "manifests" / "00000002.json"
    manifest = json.loads(name.read_bytes())
    edit(index, manifest)
    for segment in manifest["segments"]:
        for file, entry in segment["files"].items():
            data = (index / "segments" / segment["id"] / file).read_bytes()
            entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    if manifest["tombstones"]:
        data = (index / "tombstones" / manifest["tombstones"]["file"]).read_bytes()
        manifest["tombstones"].update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    data = json.dumps(manifest).encode()
    name.write_bytes(data)
    (index / "CURRENT").write_bytes(Head(2, hashlib.sha256(data).hexdigest()).encode())


def vectors(change: Callable[[Any], Any]) -> Edit:
    def edit(index: Path, manifest: dict[str, Any]) -> None:
        path = index / "segments" / manifest["segments"][0]["id"] / "vectors.npy"
        np.save(path, change(np.load(path)))

    return edit


def sql(statement: str, segment: int = 0) -> Edit:
    def edit(index: Path, manifest: dict[str, Any]) -> None:
        path = index / "segments" / manifest["segments"][segment]["id"] / "items.sqlite"
        db = sqlite3.connect(path)
        db.execute(statement)
        db.commit()
        db.close()

    return edit


def tombstones(pairs: list[list[int]], dtype: str = "<i8") -> Edit:
    def edit(index: Path, manifest: dict[str, Any]) -> None:
        manifest["tombstones"]["count"] = len(pairs)
        np.save(index / "tombstones" / "00000002.npy", np.array(pairs, dtype=dtype))

    return edit


def live(images: int) -> Edit:
    def edit(index: Path, manifest: dict[str, Any]) -> None:
        manifest["live"]["images"] = images

    return edit


def scribble(index: Path, manifest: dict[str, Any]) -> None:
    path = index / "segments" / manifest["segments"][0]["id"] / "items.sqlite"
    data = bytearray(path.read_bytes())
    data[4096:8192] = bytes(range(256)) * 16
    path.write_bytes(data)


def set_entry(row: int, value: float) -> Callable[[Any], Any]:
    def change(vectors_ND: Any) -> Any:
        vectors_ND[row, 0] = value
        return vectors_ND

    return change


FINDINGS: list[tuple[Edit, str]] = [
    (vectors(set_entry(1, np.nan)), "row 1 holds NaN"),
    (vectors(set_entry(2, np.inf)), "row 2 holds NaN or infinity"),
    (vectors(set_entry(0, 0.5)), "row 0 has length 0.5000"),
    (vectors(lambda v: v * 0), "has length 0.0000"),
    (vectors(lambda v: v[:2]), "is not an npy array <f2"),
    (vectors(lambda v: v[:, :8]), "is not an npy array <f2"),
    (vectors(lambda v: v.astype(np.float32)), "is not an npy array <f2"),
    (vectors(lambda v: np.asfortranarray(v)), "is not an npy array <f2"),
    (sql("DELETE FROM items WHERE row = 2"), "has 2 rows, the manifest says 3"),
    (sql("UPDATE items SET row = 7 WHERE row = 2"), "not numbered 0 to N-1"),
    (sql("UPDATE items SET id = 'd' WHERE row = 1"), "id 'd' is live twice"),
    (sql("UPDATE items SET content_hash = x'00' WHERE row = 1"), "no content hash"),
    (sql("DROP TABLE items"), "SQLite: no such table"),
    (sql("DELETE FROM fields WHERE row = 1"), "2 of 3 rows can be filtered"),
    (sql("UPDATE fields SET language = 'xx' WHERE row = 1"), "filtered by another"),
    (sql("DROP TABLE fields"), "SQLite: no such table"),
    (scribble, "SQLite"),
    (tombstones([[0, 0], [1, 5]]), "row out of range"),
    (tombstones([[9, 0]]), "segment out of range"),
    (tombstones([[-1, 0]]), "segment out of range"),
    (tombstones([[1, 0], [0, 0]]), "not sorted"),
    (tombstones([[0, 0], [0, 0]]), "repeats a row"),
    (tombstones([[0, 0]], dtype="<i4"), "is not an npy array <i8"),
    (tombstones([[0, 0], [2, 0]]), "which is not there"),
    (live(7), "counts 7 images"),
]


@pytest.mark.parametrize(("edit", "why"), FINDINGS, ids=[why for _, why in FINDINGS])
def test_damage_under_a_valid_hash_is_found(index: Path, edit: Edit, why: str) -> None:
    reseal(index, edit)
    report = verify_index(index)
    assert any(why in problem.why for problem in report.problems), report.problems
    # opening either refuses or works; it never fails in another way
    refusal = None
    try:
        open_snapshot(index, fingerprint=None).close()
    except IndexCorruptError as error:
        refusal = error
    assert refusal is None or refusal.file in {problem.file for problem in report.problems}


def test_resealing_alone_is_no_damage(index: Path) -> None:
    reseal(index, lambda path, manifest: None)
    report = verify_index(index)
    assert report.ok
    assert report.version == 2
    manifest = json.loads((index / "manifests" / "00000002.json").read_bytes())
    assert report.files == 2 * len(manifest["segments"]) + 1 + 1 + 2  # tombstones, background


def test_a_pickled_array_is_never_loaded(index: Path) -> None:
    def edit(path: Path, manifest: dict[str, Any]) -> None:
        stream = io.BytesIO()
        np.save(stream, np.array([[print, 0]], dtype=object), allow_pickle=True)
        (path / "tombstones" / "00000002.npy").write_bytes(stream.getvalue())

    reseal(index, edit)
    assert any("not an npy array" in problem.why for problem in verify_index(index).problems)


@pytest.mark.parametrize("shape", [(0, 1), (1, 1), (3, 512), (10**6, 2), (2**31, 1152)])
@pytest.mark.parametrize("descr", ["<f2", "<i8"])
def test_our_npy_header_is_numpys(shape: tuple[int, int], descr: Any) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    theirs = stream.getvalue()
    ours = npy_header(descr, shape)
    # numpy leaves room for the first axis to grow; the format does not ask for it
    assert ours[10:].rstrip() == theirs[10:].rstrip()
    assert len(ours) % 64 == 0
    stream = io.BytesIO(ours)
    assert np.lib.format.read_magic(stream) == (1, 0)
    assert np.lib.format.read_array_header_1_0(stream) == (shape, False, np.dtype(descr))


def test_numpy_reads_what_we_write(index: Path) -> None:
    for path in index.rglob("vectors.npy"):
        assert np.load(path, allow_pickle=False).dtype == np.float16
    assert np.load(index / "tombstones" / "00000002.npy").tolist() == [[0, 0], [1, 0]]


def test_honest_rounding_is_within_tolerance() -> None:
    rng = np.random.default_rng(0)
    for dim in (1, 2, 9, 512):
        rows = rng.standard_normal((2000, dim))
        rows /= np.sqrt((rows**2).sum(axis=1, keepdims=True))
        assert vector_problems(rows.astype(np.float16)) == []
