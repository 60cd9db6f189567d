"""Opening while the index changes: a version collected meanwhile, a file swapped meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fakes import ColourEncoder
from indexes import build, ids, record

from indexer.format import segment as segment_module
from indexer.format.manifest import Head, Manifest, read_head, read_manifest
from indexer.format.segment import Segment
from indexer.format.version import open_version
from indexer.search import snapshot as snapshot_module
from indexer.search.snapshot import open_snapshot
from models.errors import IndexCorruptError

FINGERPRINT = ColourEncoder().fingerprint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.index"
    build([record("a", "red"), record("b", "blue")], path, relevance=False)
    return path


def replaced(path: Path) -> None:
    """What a writer does that keeps one version only: a new version, and the old one gone."""
    old = read_manifest(path)
    build([record("a", "green"), record("b", "black")], path, relevance=False)
    for number in range(old.version + 1):
        (path / "manifests" / f"{number:08}.json").unlink()
    for entry in old.segments:
        shutil.rmtree(path / "segments" / entry.id)


def test_a_version_collected_before_its_manifest_was_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def late(root: Path, head: Head) -> Manifest:
        seen.append(head.version)
        if len(seen) == 1:
            replaced(path)
        return read_manifest(root, head)

    monkeypatch.setattr(snapshot_module, "read_manifest", late)
    with open_snapshot(path, fingerprint=FINGERPRINT) as snapshot:
        assert ids(snapshot, "green", 1) == ["a"]
        assert seen == [1, snapshot.version]


def test_a_version_collected_before_its_segments_were_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = 0

    def late(root: Path, manifest: Manifest, **named: object) -> object:
        nonlocal opened
        opened += 1
        if opened == 1:
            replaced(path)
        return open_version(root, manifest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshot_module, "open_version", late)
    with open_snapshot(path, fingerprint=FINGERPRINT) as snapshot:
        assert ids(snapshot, "black", 1) == ["b"]
    assert opened == 2


def test_damage_that_no_newer_version_explains_is_raised_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = read_manifest(path).segments[0]
    (path / "segments" / entry.id / "vectors.npy").unlink()
    opened = 0

    def count(root: Path, manifest: Manifest, **named: object) -> object:
        nonlocal opened
        opened += 1
        return open_version(root, manifest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshot_module, "open_version", count)
    with pytest.raises(IndexCorruptError, match="missing"):
        open_snapshot(path, fingerprint=FINGERPRINT)
    assert opened == 1


def test_a_database_swapped_while_it_is_opened_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite opens by name; the file whose bytes were summed must be the one it opened."""
    manifest = read_manifest(path)
    name = path / "segments" / manifest.segments[0].id / "items.sqlite"

    def swap(*arguments: object, **named: object) -> object:
        reader = real(*arguments, **named)  # type: ignore[arg-type]
        shutil.copy(name, path / "other")
        (path / "other").replace(name)
        return reader

    real = segment_module.ItemsReader
    monkeypatch.setattr(segment_module, "ItemsReader", swap)
    with pytest.raises(IndexCorruptError, match="replaced while"):
        Segment(path, manifest.segments[0], manifest.dim)


def test_both_ways_of_verifying_open_the_same(path: Path) -> None:
    for verify in ("fast", "full"):
        with open_snapshot(path, fingerprint=FINGERPRINT, verify=verify) as snapshot:  # type: ignore[arg-type]
            assert sorted(ids(snapshot, "red")) == ["a", "b"]
            assert snapshot.info().degraded == []
    assert read_head(path).version == 1
