"""`verify --deep`: every kept version, every file, and what only looking inside can show."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clustered import fill, pictures, texts
from fakes import ColourEncoder
from indexes import NAMES, build, ids, opened, record

import indexer.format.version
from indexer.format.manifest import Head, read_manifest
from indexer.maintain.edit import Editor, delete_items
from indexer.maintain.optimize import OptimizeOptions, optimize
from indexer.maintain.purge import purge
from indexer.maintain.verify import verify_index

FINGERPRINT = ColourEncoder().fingerprint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three versions of content, the last of which is a deletion."""
    path = tmp_path / "x.index"
    build([record(f"p{i}", NAMES[i], f"{NAMES[i]} and 红 thing") for i in range(4)], path)
    build([record("p1", "white", "white"), record("p9", "black")], path)
    delete_items(path, ["p2"])
    return path


def flip(file: Path, at: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def reseal(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the current manifest and make every checksum right again."""
    version = read_manifest(path).version
    name = path / "manifests" / f"{version:08}.json"
    manifest = json.loads(name.read_bytes())
    change(manifest)
    for segment in manifest["segments"]:
        for file, entry in segment["files"].items():
            data = (path / "segments" / segment["id"] / file).read_bytes()
            entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    data = json.dumps(manifest).encode()
    name.write_bytes(data)
    head = Head(version, hashlib.sha256(data).hexdigest())
    (path / "CURRENT").write_bytes(head.encode())


def first(path: Path, modality: str) -> Path:
    return min((path / "segments").glob(f"*-{modality}-*"))


def test_a_sound_index_is_sound_in_every_version(path: Path) -> None:
    told: list[tuple[int, int]] = []
    report = verify_index(path, deep=True, on_bytes=lambda some, all_: told.append((some, all_)))
    assert report.problems == []
    assert report.orphans == []
    assert (report.version, report.versions) == (3, [3, 2, 1, 0])
    in_segments = sum(file.stat().st_size for file in (path / "segments").rglob("*.*"))
    assert sum(some for some, _ in told) == in_segments
    assert {all_ for _, all_ in told} == {report.bytes}
    shallow = verify_index(path)
    assert (shallow.versions, shallow.ok) == ([3], True)


def test_damage_in_an_older_version_only_is_found_deep(path: Path) -> None:
    build([record("p9", "red")], path)
    old = path / "tombstones" / "00000002.npy"
    current = read_manifest(path)
    assert current.tombstones is not None
    assert current.tombstones.file != old.name
    flip(old)
    assert verify_index(path).ok
    report = verify_index(path, deep=True)
    assert {one.file for one in report.problems} == {"tombstones/00000002.npy"}


def test_a_damaged_older_manifest_is_found_by_its_successor(path: Path) -> None:
    name = path / "manifests" / "00000001.json"
    name.write_bytes(name.read_bytes().replace(b'"created": "2', b'"created": "1'))
    assert verify_index(path).ok
    [problem] = verify_index(path, deep=True).problems
    assert problem.file == "manifests/00000001.json"
    assert "sha256" in problem.why


def test_a_damaged_current_still_lets_the_rest_be_checked(path: Path) -> None:
    (path / "CURRENT").write_bytes(b"garbage\n")
    flip(first(path, "text") / "vectors.npy")
    report = verify_index(path, deep=True)
    assert report.version is None
    assert report.versions == [3, 2, 1, 0]
    assert [one.file.split("/")[0] for one in report.problems] == ["CURRENT", "segments"]


def test_files_that_nothing_names_are_listed(path: Path) -> None:
    (path / "segments" / "note.txt").write_text("mine")
    (path / "scratch" / "left").write_text("x")
    (path / "manifests" / "00000009.json").write_text("{}")
    report = verify_index(path, deep=True)
    assert report.ok
    assert report.orphans == ["manifests/00000009.json", "scratch/left", "segments/note.txt"]


def test_an_erased_id_that_is_live_is_found(path: Path) -> None:
    reseal(path, lambda manifest: manifest.update(tombstones=None, live={"images": 6, "texts": 6}))
    whys = [one.why for one in verify_index(path, deep=True).problems]
    assert "id 'p2' is live and on the erasure list" in whys


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE words SET postings = x'0100' WHERE rowid_hack", "its words"),
        ("DELETE FROM words WHERE term = 'thing'", "rows are found by other words than they have"),
        ("UPDATE words_about SET rows = 3, lengths = x'000000000000'", "its words are of 3 rows"),
        ("DROP TABLE words", "no such table"),
    ],
)
def test_damaged_words_are_found(path: Path, statement: str, why: str) -> None:
    statement = statement.replace("rowid_hack", "term = 'thing'")
    database = first(path, "image") / "items.sqlite"
    db = sqlite3.connect(database)
    db.execute(statement)
    db.commit()
    db.close()
    reseal(path, lambda manifest: None)
    assert any(why in one.why for one in verify_index(path, deep=True).problems)


def test_many_bad_rows_are_told_briefly(path: Path) -> None:
    build([record(f"q{i}", "red") for i in range(40)], path)
    file = max((path / "segments").glob("*-image-*")) / "vectors.npy"
    rows = np.load(file)
    rows[:] = np.nan
    np.save(file, rows)
    reseal(path, lambda manifest: None)
    whys = [one.why for one in verify_index(path, deep=True).problems if one.file.endswith("npy")]
    assert len(whys) == 21
    assert whys[-1] == "and 20 more rows"


def test_it_runs_beside_a_writer_and_readers(path: Path) -> None:
    """Versions come and go, searches go on, and nothing is called damage."""
    stop = threading.Event()
    problems: list[object] = []
    checks = 0

    def check() -> None:
        nonlocal checks
        while not stop.is_set():
            problems.extend(verify_index(path, deep=True, threads=1).problems)
            checks += 1

    checker = threading.Thread(target=check)
    checker.start()
    try:
        for number in range(24):  # more than are kept, so that some are collected
            build([record("p1", NAMES[number % 8], str(number))], path, relevance=False)
            with opened(path) as snapshot:
                assert len(ids(snapshot, "red")) == 4
    finally:
        stop.set()
        checker.join()
    assert problems == []
    assert checks > 1


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("beside", ["purge", "optimize", "many puts"])
def test_what_a_writer_collects_meanwhile_is_no_damage(path: Path, deep: bool, beside: str) -> None:
    def write(_some: int, _all: int) -> None:
        if done:
            return
        done.append(1)
        if beside == "purge":
            purge(path)
            return
        if beside == "optimize":
            optimize(path)
        for number in range(17):  # more than are kept: what was current is collected
            Editor(path, ColourEncoder()).put([record("new", NAMES[number % 8])])

    done: list[int] = []
    report = verify_index(path, deep=deep, on_bytes=write, threads=1)
    assert done
    assert report.problems == []
    if beside == "purge":
        assert report.version == read_manifest(path).version


def test_damage_is_still_told_where_a_writer_collects_other_files(path: Path) -> None:
    def write(_some: int, _all: int) -> None:
        if not done:
            done.append(1)
            for number in range(17):
                Editor(path, ColourEncoder()).put([record("new", NAMES[number % 8])])
            flip(first(path, "text") / "vectors.npy")

    done: list[int] = []
    [problem] = verify_index(path, on_bytes=write, threads=1).problems
    assert problem.file == f"segments/{first(path, 'text').name}/vectors.npy"


def test_a_dry_run_looks_again_where_its_version_is_collected(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = indexer.format.version.read_tombstones

    def late(*given: Any, **more: Any) -> Any:
        if not done:
            done.append(1)
            purge(path)
        return read(*given, **more)

    done: list[int] = []
    monkeypatch.setattr(indexer.format.version, "read_tombstones", late)
    report = delete_items(path, ["p1"], dry_run=True)
    assert done
    assert report.removed_images == 1


def test_pictures_that_repeat_are_no_loss_of_recall(tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    fill(path, np.repeat(pictures(200), 15, axis=0), texts(400), segments=1)
    options = OptimizeOptions(structure="ivf", fewest=500, floor=0.9, gain=0.0)
    assert optimize(path, options).images.structure == "ivf"
    assert verify_index(path, deep=True).problems == []
