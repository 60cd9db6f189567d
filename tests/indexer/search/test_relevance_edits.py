"""The background of an index is that of its live rows after every kind of edit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from indexes import build, opened, record

from indexer.format.manifest import read_manifest
from indexer.maintain.edit import delete_items, rollback
from indexer.maintain.optimize import optimize
from indexer.maintain.purge import purge
from indexer.maintain.verify import verify_index
from indexer.search.relevance_file import measure_version, read_background

RECORDS = [
    record(f"{number}-{colour}", colour, f"{colour} thing", f"one {colour} {'red ' * number}")
    for number in range(4)
    for colour in ("red", "green", "blue", "white")
]


def assert_measured(path: Path) -> None:
    """What is stored is what measuring the current version from nothing gives."""
    manifest = read_manifest(path)
    stored = read_background(path, manifest)
    assert stored is not None
    fresh = measure_version(stored.queries_QD, path, manifest)
    assert stored.targets == fresh.targets
    for target in ("images", "texts"):
        np.testing.assert_array_equal(
            stored.mean_D[target], fresh.mean_D[target].astype(np.float32)
        )
    assert verify_index(path).ok


def test_a_background_follows_every_edit(tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    build(RECORDS, path, segment_rows=5)
    first = read_manifest(path)
    assert_measured(path)
    delete_items(path, [record.key for record in RECORDS if "red" in record.key])
    assert_measured(path)
    assert read_manifest(path).relevance != first.relevance
    optimize(path)
    assert_measured(path)
    build([*RECORDS, record("more", "cyan", "cyan")], path)
    assert_measured(path)
    rollback(path, first.version)
    assert_measured(path)
    assert read_manifest(path).live.images == 12  # what was deleted stays so
    purge(path)
    assert_measured(path)
    with opened(path) as snapshot:
        about = snapshot.info().relevance
    assert about is not None
    assert about["images"]["rows"] == 12


def test_a_large_index_measures_again_when_many_rows_were_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.search.relevance_file._ALWAYS", 0)  # every index counts as large
    path = tmp_path / "x.index"
    build(RECORDS, path)
    build([record(RECORDS[0].key, "black", "black", "night")], path)
    kept = read_manifest(path).relevance
    assert kept is not None
    assert kept.file == "00000001.npy"
    build([record(one.key, "black", "black", "night") for one in RECORDS[1:4]], path)
    measured = read_manifest(path).relevance
    assert measured is not None
    assert measured.file == "00000003.npy"
    assert measured.images.rows == kept.images.rows  # no count had changed
    assert_measured(path)


def test_the_first_captions_of_many_pictures_are_measured_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.search.relevance_file._ALWAYS", 0)  # every index counts as large
    path = tmp_path / "x.index"
    colours = ("red", "green", "blue", "white")
    build([record(f"{n}", colours[n % 4]) for n in range(100)], path, relevance=True)
    first = read_background(path, read_manifest(path))
    for number in range(4):
        build([record(f"t{number}", None, f"{colours[number]} thing")], path)
        manifest = read_manifest(path)
        stored = read_background(path, manifest)
        assert first is not None
        assert stored is not None
        fresh = measure_version(stored.queries_QD, path, manifest)
        assert stored.targets == fresh.targets
        np.testing.assert_array_equal(stored.mean_D["images"], first.mean_D["images"])
        assert stored.targets["texts"].rows == number + 1
        assert manifest.relevance is not None
        assert manifest.relevance.file == f"{number + 2:08}.npy"
