"""Files that look as when they were indexed are not read again, and no change is missed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes import ColourEncoder, solid
from indexes import ids, opened

import indexer.ingest.side_files
import models.sources.folder
from indexer.ingest.build import BuildOptions, BuildReport, build_index
from indexer.ingest.side_files import Stamps, stamps_path
from indexer.maintain.edit import delete_items
from indexer.maintain.purge import purge
from models.sources import open_source
from models.sources.records import Stamp


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Names of the files that were read."""
    names: list[bytes] = []
    real = models.sources.folder.read_regular

    def counted(name: bytes, **options: object) -> bytes:
        names.append(name)
        return real(name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(models.sources.folder, "read_regular", counted)
    return names


@pytest.fixture
def old_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files made by the test itself count as old: nothing but the margin depends on the clock."""
    monkeypatch.setattr(indexer.ingest.side_files, "MARGIN_NS", -(10**15))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("red", "green", "more/blue"):
        (folder / f"{name}.png").write_bytes(solid(Path(name).name, size=(8, 8)))
    (folder / "red.txt").write_text("red\n")
    return folder


def build(folder: Path, **options: object) -> BuildReport:
    settings = BuildOptions(**options)  # type: ignore[arg-type]
    out = folder.with_name("x.index")
    return build_index([open_source(str(folder))], out, ColourEncoder(), options=settings)


@pytest.mark.usefixtures("old_enough")
def test_a_second_build_reads_nothing(photos: Path, read: list[bytes]) -> None:
    assert build(photos).added == 3
    assert sorted(read) == [b"blue.png", b"green.png", b"red.png", b"red.txt"]
    read.clear()
    assert build(photos).unchanged == 3
    assert read == []
    assert build(photos, mirror=True).removed == 0
    assert read == []
    report = build(photos, rehash=True)
    assert (report.unchanged, len(read)) == (3, 4)


@pytest.mark.usefixtures("old_enough")
def test_every_change_is_noticed(photos: Path, read: list[bytes]) -> None:
    path = photos / "green.png"
    path.write_bytes(solid("green", size=(8, 8), fmt="BMP"))
    build(photos)
    # the same size, and the time set back: only ctime tells
    before = path.stat()
    path.write_bytes(solid("white", size=(8, 8), fmt="BMP"))
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (photos / "red.txt").write_text("scarlet\n")
    (photos / "more/blue.txt").write_text("blue\n")
    read.clear()
    report = build(photos)
    assert (report.updated, report.unchanged) == (3, 0)
    (photos / "red.txt").unlink()
    read.clear()
    report = build(photos)
    assert (report.updated, report.unchanged, read) == (1, 2, [b"red.png"])
    (photos / "more").rename(photos / "elsewhere")
    report = build(photos, mirror=True)
    assert (report.added, report.removed, report.unchanged) == (1, 1, 2)


def test_a_young_file_is_read_again(photos: Path, read: list[bytes]) -> None:
    build(photos)
    read.clear()
    report = build(photos)
    assert (report.unchanged, len(read)) == (3, 4)


@pytest.mark.usefixtures("old_enough")
def test_options_that_change_content_are_part_of_it(photos: Path, read: list[bytes]) -> None:
    build(photos)
    read.clear()
    assert build(photos, captions=False).updated == 1
    assert len(read) == 4
    source = open_source(str(photos), text_field="other")
    out = photos.with_name("x.index")
    assert build_index([source], out, ColourEncoder()).updated == 1


@pytest.mark.usefixtures("old_enough")
def test_what_is_refused_is_refused_each_time(photos: Path) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    (photos / "green.json").write_text("{")
    for _ in range(2):
        assert build(photos).rejected == 2


@pytest.mark.usefixtures("old_enough")
def test_a_cache_that_is_damaged_or_anothers_is_no_cache(photos: Path, read: list[bytes]) -> None:
    build(photos)
    path = stamps_path(photos.with_name("x.index"))
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert len(Stamps(path, "0" * 32, "")) == 0
    for data in (b"", whole[:-1], whole * 2):
        path.write_bytes(data)
        read.clear()
        assert build(photos).unchanged == 3
        assert len(read) == 4
    assert len(Stamps(path, "0" * 32, "")) == 0  # whole again, of another index


@pytest.mark.usefixtures("old_enough")
def test_deleted_items_stay_deleted_and_come_back_when_told_to(photos: Path) -> None:
    build(photos)
    out = photos.with_name("x.index")
    delete_items(out, ["red.png"])
    report = build(photos)
    assert (report.unchanged, report.erased) == (2, 1)
    purge(out)
    assert not stamps_path(out).exists()
    report = build(photos, allow_erased=True)
    assert (report.unchanged, report.added) == (2, 1)
    with opened(out) as snapshot:
        assert ids(snapshot, "red", 1) == ["red.png"]


def test_entries_survive_and_are_replaced(tmp_path: Path) -> None:
    path, index = tmp_path / "stamps", "ab" * 16
    stamps = Stamps(path, index, "o")
    for i in range(1000):
        stamps.note(f"key {i}", Stamp(i.to_bytes(16, "big"), 0), f"{i:064x}")
    stamps.note("young", Stamp(bytes(16), 2**62), "0" * 64)
    stamps.save()
    stamps = Stamps(path, index, "o")
    stamps.note("key 7", Stamp(b"x" * 16, 0), "ff" * 32)
    stamps.save()
    stamps = Stamps(path, index, "o")
    assert len(stamps) == 1000
    assert stamps.content("key 7", Stamp(b"x" * 16, 0)) == b"\xff" * 16
    assert stamps.content("key 7", Stamp((7).to_bytes(16, "big"), 0)) is None
    assert stamps.content("young", Stamp(bytes(16), 2**62)) is None
    for i in range(8, 1000):
        found = stamps.content(f"key {i}", Stamp(i.to_bytes(16, "big"), 0))
        assert found == bytes.fromhex(f"{i:064x}")[:16]
    assert len(Stamps(path, index, "other")) == len(Stamps(path, index, "o", rehash=True)) == 0
    assert list(tmp_path.iterdir()) == [path]
