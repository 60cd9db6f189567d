"""Damaged tombstones and erasure lists: made whole where that can be proved, never passed over."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from crashing import FailingFs
from indexes import NAMES, build, ids, opened, record

from indexer.format.erasures import read_erasures
from indexer.format.manifest import read_manifest
from indexer.format.version import read_tombstones
from indexer.maintain.edit import delete_items
from indexer.maintain.purge import purge
from indexer.maintain.repair import repair
from indexer.maintain.verify import verify_index
from models.errors import DiptychError

RECORDS = [record(f"k{n:02}", NAMES[n % 8], f"{NAMES[n % 8]} {n}") for n in range(24)]

Spoil = Callable[[bytes], bytes | None]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven versions: deleted pictures and captions, replaced, mirrored and let in again."""
    path = tmp_path_factory.mktemp("lived") / "x.index"
    build(RECORDS[:14], path)
    build(RECORDS[14:20], path)
    delete_items(path, ["k00", "k01#en/0", "k07", "k16"])
    build([record("k02", "cyan", "new words"), record("k05", "red")], path)
    build(RECORDS[:1], path, allow_erased=True)
    kept = [one for one in RECORDS if one.key not in ("k11", "k12")]
    build(kept, path, mirror=True, mirror_all=True)
    delete_items(path, ["k20", "k21", "k22"])
    return path


@pytest.fixture(scope="module")
def purged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of whose erasure list nothing but the file itself knows."""
    path = tmp_path_factory.mktemp("purged") / "x.index"
    build(RECORDS, path)
    delete_items(path, [one.key for one in RECORDS[3:9]])
    purge(path)
    return path


def contents(path: Path) -> tuple[list[str], list[str]]:
    with opened(path) as snapshot:
        return sorted(ids(snapshot, "red")), sorted(ids(snapshot, "red", target="texts"))


def damage(path: Path, folder: str, spoil: Spoil) -> str:
    manifest = read_manifest(path)
    entry = manifest.erased if folder == "erased" else manifest.tombstones
    assert entry is not None
    file = path / folder / entry.file
    data = spoil(file.read_bytes())
    if data is None:
        file.unlink()
    else:
        file.write_bytes(data)
    return f"{folder}/{entry.file}"


def bit(number: int) -> Spoil:
    """The same bit of a hundred, wherever the file has it."""

    def spoil(data: bytes) -> bytes:
        at = number * len(data) // 100
        return data[:at] + bytes([data[at] ^ 1 << number % 8]) + data[at + 1 :]

    return spoil


SPOILS: dict[str, Spoil] = {
    "missing": lambda _: None,
    "empty": lambda _: b"",
    "cut short": lambda data: data[:-21],
    "longer": lambda data: data + b"junk",
    "a byte": lambda data: data[:-40] + bytes([data[-40] ^ 0x5A]) + data[-39:],
    "zeros": lambda data: data[:140] + bytes(48) + data[188:],
    "bytes lost": lambda data: data[:170] + data[173:],
    "bytes put in": lambda data: data[:170] + b"xyz" + data[170:],
    "another file": lambda data: random.Random(1).randbytes(len(data)),
}


@pytest.mark.parametrize("folder", ["erased", "tombstones"])
@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_a_damaged_list_is_put_together_again(
    lived: Path, tmp_path: Path, folder: str, spoil: Spoil
) -> None:
    path = Path(shutil.copytree(lived, tmp_path / "x.index"))
    before = contents(path), (path / "CURRENT").read_bytes()
    name = damage(path, folder, spoil)
    whole = (lived / name).read_bytes()
    report = repair(path)
    assert report.ok, "nothing is lost by it, so nothing is asked"
    assert report.done == [f"{name} is whole again, as its sum proves"]
    assert (path / name).read_bytes() == whole
    assert (contents(path), (path / "CURRENT").read_bytes()) == before
    assert verify_index(path, deep=True).problems == []


def test_both_lists_at_once(lived: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(lived, tmp_path / "x.index"))
    before = contents(path)
    for folder in ("erased", "tombstones"):
        damage(path, folder, lambda _: None)
    assert repair(path).ok
    assert contents(path) == before


@pytest.mark.parametrize("number", range(2, 100, 7))
def test_a_single_bit_is_found_without_any_clue(purged: Path, tmp_path: Path, number: int) -> None:
    path = Path(shutil.copytree(purged, tmp_path / "x.index"))
    damage(path, "erased", bit(number))
    assert repair(path).ok
    assert build(RECORDS, path).erased == 6


def test_a_list_that_every_version_shares(tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    build(RECORDS[:4], path)
    delete_items(path, ["k01"])
    for number in range(17):  # older versions, and their lists, are gone
        build([record(f"later{number}", "red")], path)
    for folder in ("erased", "tombstones"):
        damage(path, folder, lambda data: data[:-1] + b"\xff")
    report = repair(path)
    assert (report.ok, len(report.done)) == (True, 2)
    assert build(RECORDS[:4], path).erased == 1


# -- lists that nothing proves


def test_an_unproved_erasure_list_is_not_passed_over(purged: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(purged, tmp_path / "x.index"))
    before = contents(path)
    name = damage(path, "erased", lambda data: data[:-64] + bytes(64))
    files = {one: one.read_bytes() for one in path.rglob("*") if one.is_file()}
    for options in (
        {},
        {"yes": True},
        {"yes": True, "drop_damaged": True},
        {"without_lists": True},
    ):
        report = repair(path, **options)
        assert not report.ok
        assert report.version is None
        assert name in report.needs[0]
        assert "--without-lists --yes" in report.needs[0]
    assert {one: one.read_bytes() for one in path.rglob("*") if one.is_file()} == files
    report = repair(path, yes=True, without_lists=True)
    assert (report.ok, report.version) == (True, read_manifest(path).version)
    assert f"{name}: of 6 deletions 4 can be read" in report.forgotten[0]
    assert contents(path) == before
    assert verify_index(path, deep=True).problems == []
    assert build(RECORDS, path).erased == 4, "what could be read stays out"


def test_unproved_tombstones_bury_what_is_known(
    lived: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as releases before did: the version after a merge has tombstones of its own
    monkeypatch.setattr("indexer.store.writer._MERGING", frozenset())
    path = Path(shutil.copytree(lived, tmp_path / "x.index"))
    for file in (path / "manifests").iterdir():  # no other version tells
        if int(file.stem) != read_manifest(path).version:
            file.unlink()
    build([record("z", "red")], path)
    images, _ = contents(path)
    name = damage(path, "tombstones", lambda _: None)
    report = repair(path, yes=True)
    assert (report.ok, report.version) == (False, None)
    report = repair(path, yes=True, without_lists=True)
    assert report.ok
    back = set(contents(path)[0]) - set(images)
    assert back == {"k11", "k12"}, "mirrored away, which the erasure list does not know"
    assert name in report.forgotten[0]
    assert all(one in report.forgotten[0] for one in back)
    assert verify_index(path, deep=True).problems == []


def test_no_version_is_gone_back_to_for_a_list(purged: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(purged, tmp_path / "x.index"))
    build([record("z", "red")], path)
    damage(path, "erased", lambda _: None)
    newest = path / "manifests" / f"{read_manifest(path).version:08}.json"
    newest.write_bytes(newest.read_bytes()[:-30])
    report = repair(path, yes=True)
    assert not report.ok
    assert "--without-lists" in report.needs[0]


def test_a_later_list_without_its_manifest_is_looked_at(lived: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(lived, tmp_path / "x.index"))
    damage(path, "erased", lambda data: data[:-32])
    newest = path / "manifests" / f"{read_manifest(path).version:08}.json"
    newest.write_bytes(newest.read_bytes()[:-30])
    assert not repair(path, yes=True).ok, "what was deleted last would be back"
    report = repair(path, yes=True, without_lists=True)
    assert report.ok
    assert report.forgotten
    assert len({"k20", "k21", "k22"} & set(contents(path)[0])) == 1


def test_healing_that_fails_anywhere_can_be_run_again(lived: Path, tmp_path: Path) -> None:
    expected = contents(lived)
    for number in range(30):
        path = Path(shutil.copytree(lived, tmp_path / str(number)))
        damage(path, "erased", bit(90))
        fs = FailingFs(fail_at=number, code=errno.EIO)
        try:
            repair(path, fs=fs)
        except DiptychError:
            assert repair(path).ok
        assert contents(path) == expected
        assert verify_index(path, deep=True).problems == []
        if fs.calls <= number:
            return
    raise AssertionError("it never ran to its end")


# -- CURRENT


@pytest.mark.parametrize("at", [0, 2, 5, 30, 65])
@pytest.mark.parametrize("digit", [b"0", b"1", b"f", b"g"])
def test_one_wrong_digit_in_current_loses_nothing(
    lived: Path, tmp_path: Path, at: int, digit: bytes
) -> None:
    path = Path(shutil.copytree(lived, tmp_path / "x.index"))
    before = contents(path)
    current = (path / "CURRENT").read_bytes()
    if current[at : at + 1] == digit:
        digit = b"7"
    (path / "CURRENT").write_bytes(current[:at] + digit + current[at + 1 :])
    report = repair(path)
    assert report.ok
    assert report.found[0].startswith("CURRENT")
    assert "CURRENT names the content of version 7" in report.done
    assert contents(path) == before
    assert read_manifest(path).parent == 7
    assert verify_index(path, deep=True).problems == []


def test_a_digit_lost_from_current(lived: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(lived, tmp_path / "x.index"))
    current = (path / "CURRENT").read_bytes()
    (path / "CURRENT").write_bytes(current[:20] + current[21:])
    assert repair(path).ok
    assert contents(path) == contents(lived)


def test_what_was_never_committed_is_not_taken_for_what_current_names(
    lived: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(lived, tmp_path / "x.index"))
    current = (path / "CURRENT").read_bytes()
    build([record("z", "red")], path)
    (path / "CURRENT").write_bytes(current[:-9] + b"00000000\n")
    report = repair(path)
    assert "CURRENT names the content of version 7" in report.done
    assert contents(path) == contents(lived)
    assert verify_index(path, deep=True).problems == []


def test_the_lists_of_the_lived_index_are_not_trivial(lived: Path) -> None:
    manifest = read_manifest(lived)
    assert len(read_erasures(lived, manifest)) == 7 - 1
    assert len(read_tombstones(lived, manifest)) > 15
