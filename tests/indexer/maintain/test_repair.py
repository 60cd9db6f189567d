"""`repair`: what is done without being asked, what waits for a yes, and what never comes back."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
from crashing import FailingFs
from fakes import ColourEncoder
from indexes import NAMES, build, ids, opened, record

from indexer.format.erasures import hashes_in, read_erasures
from indexer.format.manifest import manifest_path, read_manifest
from indexer.maintain.edit import delete_items, rollback
from indexer.maintain.repair import repair
from indexer.maintain.verify import verify_index
from indexer.search.holder import SnapshotHolder
from indexer.store.history import history
from indexer.store.writer import IndexWriter
from indexer.transfer.exports import export_index
from indexer.transfer.imports import import_index
from models.errors import DiptychError, IndexCorruptError, IndexLockedError, IndexNotFoundError

FINGERPRINT = ColourEncoder().fingerprint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Versions 1 to 3: four records, two more, one of the first four deleted."""
    path = tmp_path / "x.index"
    build([record(f"p{i}", NAMES[i], f"{NAMES[i]} thing") for i in range(4)], path)
    build([record("p4", "magenta", "magenta"), record("p5", "cyan")], path)
    delete_items(path, ["p1"])
    return path


def flip(file: Path, at: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def segment(path: Path, version: int, modality: str) -> Path:
    [found] = (path / "segments").glob(f"{version:08}-{modality}-*")
    return found


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(one.relative_to(path)): one.read_bytes()
        for one in sorted(path.rglob("*"))
        if one.is_file() and one.name != "LOCK"
    }


def all_ids(path: Path) -> tuple[list[str], list[str]]:
    with opened(path) as snapshot:
        return sorted(ids(snapshot, "red")), sorted(ids(snapshot, "red", target="texts"))


def sound(path: Path) -> None:
    assert verify_index(path, deep=True).problems == []


def test_a_sound_index_is_left_alone(path: Path) -> None:
    before = contents(path)
    report = repair(path, yes=True, drop_damaged=True)
    assert (report.ok, report.version, report.found, report.done) == (True, 3, [], [])
    assert contents(path) == before


@pytest.mark.parametrize("spoil", [b"", b"garbage", b"3 " + b"0" * 64 + b"\n", None])
def test_a_damaged_current_names_the_newest_version_again(path: Path, spoil: bytes | None) -> None:
    expected = all_ids(path)
    if spoil is None:
        (path / "CURRENT").unlink()
    else:
        (path / "CURRENT").write_bytes(spoil)
    with pytest.raises(DiptychError):
        opened(path)
    report = repair(path, yes=spoil is not None and spoil.startswith(b"3 "))
    if spoil is not None and spoil.startswith(b"3 "):
        # it vouches for another manifest: nothing tells which of the two is damaged
        assert report.version == 4
    else:
        assert report.done == ["CURRENT names the content of version 3"]
        assert (report.ok, report.version) == (True, 4)
        assert all_ids(path) == expected
    assert report.found
    sound(path)
    assert read_manifest(path).operation == "repair"


def test_going_back_waits_for_a_yes_and_nothing_deleted_returns(path: Path) -> None:
    flip(path / "manifests" / "00000003.json", 40)
    before = contents(path)
    report = repair(path)
    assert not report.ok
    assert "the newest sound version is 2" in report.needs[0]
    assert contents(path) == before, "asking changes nothing"
    report = repair(path, yes=True)
    assert (report.ok, report.version) == (True, 4)
    assert any("went back to version 2" in one for one in report.done)
    images, texts = all_ids(path)
    assert images == ["p0", "p2", "p3", "p4", "p5"], "p1 was deleted in the version that is lost"
    assert "p1#en/0" not in texts
    assert "p1" in read_erasures(path, read_manifest(path))
    assert not (path / "manifests" / "00000003.json").exists()
    sound(path)
    assert build([record("p1", "red")], path).images == 5, "nor does indexing it again"


def test_a_caption_deleted_alone_takes_its_picture_to_be_indexed_again(path: Path) -> None:
    delete_items(path, ["p2#en/0"])
    flip(path / "manifests" / "00000004.json", 40)
    report = repair(path, yes=True)
    assert report.lost == ["p2"]
    images, texts = all_ids(path)
    assert "p2" not in images
    assert "p2#en/0" not in texts
    sound(path)


def test_what_was_let_in_again_is_not_taken_for_deleted(path: Path) -> None:
    build([record("p1", "white")], path, allow_erased=True)
    build([record("p6", "red")], path)
    flip(path / "manifests" / "00000005.json", 40)
    repair(path, yes=True)
    assert "p1" in all_ids(path)[0]
    sound(path)


@pytest.mark.parametrize("name", ["tombstones", "erased"])
def test_without_its_deletions_a_version_cannot_stand(path: Path, name: str) -> None:
    """So they are put together again; no older version takes its place, see test_deletions."""
    expected = all_ids(path)
    flip(path / name / "00000003.npy")
    report = repair(path)
    assert (report.ok, report.version) == (True, 3)
    assert report.done == [f"{name}/00000003.npy is whole again, as its sum proves"]
    assert all_ids(path) == expected
    sound(path)
    assert build([record("p1", "red")], path).erased == 1


@pytest.mark.parametrize("file", ["vectors.npy", "items.sqlite"])
def test_a_damaged_picture_segment_is_dropped_only_when_asked(path: Path, file: str) -> None:
    flip(segment(path, 1, "image") / file)
    before = contents(path)
    for options in ({}, {"drop_damaged": True}):
        report = repair(path, **options)
        assert not report.ok
        assert report.needs
        assert contents(path) == before
    report = repair(path, yes=True, drop_damaged=True)
    assert report.ok
    assert report.lost == ["p0", "p2", "p3"], "p1 was dead already"
    assert report.unknown == (3 if file == "items.sqlite" else 0)
    assert all_ids(path) == (["p4", "p5"], ["p4#en/0"])
    sound(path)
    again = build([record(f"p{i}", NAMES[i], f"{NAMES[i]} thing") for i in (0, 2, 3)], path)
    assert (again.added, again.images) == (3, 5), "the same source brings it all back"
    sound(path)


@pytest.mark.parametrize("file", ["vectors.npy", "items.sqlite"])
def test_a_damaged_text_segment_takes_its_records(path: Path, file: str) -> None:
    (segment(path, 1, "text") / file).unlink()
    report = repair(path, yes=True, drop_damaged=True)
    assert report.lost == ["p0", "p2", "p3"]
    assert all_ids(path) == (["p4", "p5"], ["p4#en/0"]), "a picture without its texts goes too"
    sound(path)
    build([record(f"p{i}", NAMES[i], f"{NAMES[i]} thing") for i in (0, 2, 3)], path)
    assert len(all_ids(path)[1]) == 4


@pytest.mark.parametrize("together", [False, True])
def test_pictures_that_had_no_captions_stay(tmp_path: Path, together: bool) -> None:
    """Built without captions, a picture still carries its text: that is no trace of a lost one."""
    path = tmp_path / "x.index"
    plain = [record(f"p{n}", NAMES[n], f"{NAMES[n]} thing") for n in range(4)]
    told = [record("words", None, "only words"), record("more", None, "more words")]
    build(plain, path, captions=False)
    build(told, path)
    if together:  # as a purge, a merge or an import writes them
        copy = tmp_path / "y.index"
        export_index(path, tmp_path / "rows", "parquet")
        import_index(tmp_path / "rows", copy, ColourEncoder)
        path = copy
    [texts] = path.glob("segments/*-text-*")
    flip(texts / "items.sqlite", 5000)
    report = repair(path, yes=True, drop_damaged=True)
    assert (report.ok, report.lost, report.unknown) == (True, [], 2)
    assert any("kept 4 pictures" in one for one in report.done)
    assert all_ids(path) == (["p0", "p1", "p2", "p3"], [])
    sound(path)
    if not together:
        assert build([*plain, *told], path, captions=False).updated == 4
        assert build(plain, path, captions=False).unchanged == 4
    sound(path)


def test_a_picture_that_did_lose_its_captions_gets_them_again(path: Path) -> None:
    build([record(f"q{n}", "red", "red thing") for n in range(5)], path, captions=False)
    (segment(path, 2, "text") / "items.sqlite").unlink()
    report = repair(path, yes=True, drop_damaged=True)
    assert report.ok
    images, texts = all_ids(path)
    assert set(images) >= {"q0", "q4", "p0"}
    rows = [record("p4", "magenta", "magenta"), record("p5", "cyan")]
    assert "p4" in report.lost or build(rows, path).updated == 1
    build(rows, path)
    assert "p4#en/0" in all_ids(path)[1]
    assert set(texts) == {"p0#en/0", "p2#en/0", "p3#en/0"}
    sound(path)


def test_a_damaged_background_is_left_out(path: Path) -> None:
    entry = read_manifest(path).relevance
    assert entry is not None
    expected = all_ids(path)
    flip(path / "relevance" / entry.file)
    with pytest.raises(IndexCorruptError):
        opened(path)
    report = repair(path)
    assert report.done == ["the background is left out; the next build measures another"]
    assert all_ids(path) == expected
    with opened(path) as snapshot:
        assert snapshot.info().relevance is None
    build([record("p7", "red")], path)
    with opened(path) as snapshot:
        assert snapshot.info().relevance is not None


def test_a_damaged_older_version_is_forgotten_only_with_a_yes(path: Path) -> None:
    flip(path / manifest_path(1), 40)
    report = repair(path)
    assert not report.ok
    assert "versions 1 are damaged" in report.needs[0]
    report = repair(path, yes=True)
    assert report.ok
    assert not (path / manifest_path(1)).exists()
    sound(path)


def test_an_index_with_nothing_sound_says_so(path: Path) -> None:
    for file in (path / "manifests").iterdir():
        file.write_bytes(file.read_bytes()[:-20])
    report = repair(path, yes=True, drop_damaged=True)
    assert (report.ok, report.version) == (False, None)
    assert "no kept version is sound" in report.needs[0]


def test_no_index_or_a_writer_at_work(path: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexNotFoundError):
        repair(tmp_path)
    with IndexWriter(path, FINGERPRINT), pytest.raises(IndexLockedError):
        repair(path)


def test_a_repair_that_fails_anywhere_can_be_run_again(path: Path, tmp_path: Path) -> None:
    """Crash-safe: after a fault at any call it is damaged as before, or repaired."""

    def spoilt(number: int) -> Path:
        copy = tmp_path / f"copy{number}"
        shutil.copytree(path, copy)
        flip(copy / "manifests" / "00000003.json", 40)
        return copy

    n = 0
    while True:
        copy = spoilt(n)
        fs = FailingFs(fail_at=n, code=errno.EIO)
        try:
            repair(copy, yes=True, fs=fs)
        except DiptychError:
            pass
        else:
            if fs.calls <= n:
                break
        report = repair(copy, yes=True)
        assert report.version is not None
        assert all_ids(copy)[0] == ["p0", "p2", "p3", "p4", "p5"]
        sound(copy)
        n += 1
    assert n > 10


def test_hashes_of_an_unvouched_list(path: Path, tmp_path: Path) -> None:
    [name] = (path / "erased").iterdir()
    assert len(hashes_in(name)) == 1
    for data in (b"", b"x" * 96, name.read_bytes()[:-1], np.zeros(3).tobytes()):
        (tmp_path / "odd").write_bytes(data)
        assert hashes_in(tmp_path / "odd") == set()
    assert hashes_in(tmp_path / "missing") == set()


def test_the_holder_takes_up_what_was_repaired(path: Path) -> None:
    with SnapshotHolder(path, fingerprint=FINGERPRINT) as held:
        flip(path / "manifests" / "00000003.json", 40)
        assert held.refresh() is False
        repair(path, yes=True)
        assert held.refresh() is True
        assert held.version == 4


# -- the chain of versions after a repair


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """Versions 1 to 5."""
    path = tmp_path / "long.index"
    for number, name in enumerate(NAMES[:5], 1):
        build([record(f"k{number}", name, name)], path)
    return path


def test_versions_before_a_forgotten_one_can_be_gone_back_to(long: Path) -> None:
    flip(long / manifest_path(3), 200)
    with pytest.raises(IndexCorruptError):
        rollback(long, 2)
    assert repair(long, yes=True).ok
    sound(long)
    assert [(one.version, one.problem) for one in history(long)] == [
        (number, None) for number in (5, 4, 2, 1, 0)
    ]
    report = delete_items(long, ["never-was"])
    assert (report.erased, report.version) == (0, 5), "no damaged version can have known it"
    for to in (4, 2, 1):
        assert rollback(long, to).images == to


def test_a_forgotten_version_does_not_vouch_for_another_manifest(long: Path) -> None:
    """Without a voucher a manifest stands for itself; one that has a voucher is held to it."""
    flip(long / manifest_path(3), 200)
    repair(long, yes=True)
    path = long / manifest_path(1)
    path.write_text(path.read_text().replace('"created": "2', '"created": "1'))
    assert [one.version for one in history(long) if one.problem] == [1]
    with pytest.raises(IndexCorruptError, match="successor"):
        rollback(long, 1)
    assert rollback(long, 2).images == 2
