"""Every kind of damage is found when the index is opened, and named; nothing crashes or hangs."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from indexes import NAMES, build, opened, record

from indexer.format.manifest import read_manifest
from indexer.maintain.verify import verify_index
from indexer.search.options import SearchOptions
from indexer.search.snapshot import open_snapshot, read_fingerprint
from models.errors import IndexCorruptError, IndexNotFoundError, StoreError


def populate(path: Path) -> None:
    rows = [record(f"p{i}", NAMES[i % 8], NAMES[i % 8]) for i in range(12)]
    build(rows, path, segment_rows=6)
    build([record("p0", "black", "black")], path)


def named_files(path: Path) -> list[str]:
    """Every file the current version consists of, relative to the index."""
    manifest = read_manifest(path)
    return ["CURRENT", f"manifests/{manifest.version:08d}.json", *sorted(manifest.files())]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pristine") / "x.index"
    populate(path)
    return path


@pytest.fixture
def index(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "x.index")
    return tmp_path / "x.index"


def flip(data: bytes, rng: random.Random) -> bytes:
    position = rng.randrange(len(data))
    changed = data[position] ^ (1 << rng.randrange(8))
    return data[:position] + bytes([changed]) + data[position + 1 :]


def zero(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + bytes(min(4096, len(data) - start)) + data[start + 4096 :]


DAMAGE: list[tuple[Callable[[bytes, random.Random], bytes], int]] = [
    (flip, 500),
    (lambda data, rng: data[: rng.randrange(len(data))], 100),
    (zero, 60),
    (lambda data, rng: data + rng.randbytes(rng.randint(1, 9)), 30),
    (lambda data, rng: b"", 15),
]


def test_flipped_bits_and_cuts_are_found_and_the_file_is_named(index: Path) -> None:
    rng = random.Random(11)
    files = named_files(index)
    tried = 0
    for damage, times in DAMAGE:
        for number in range(times):
            name = files[number % len(files)]
            original = (index / name).read_bytes()
            damaged = damage(original, rng)
            if damaged == original:
                continue
            (index / name).write_bytes(damaged)
            started = time.monotonic()
            with pytest.raises(IndexCorruptError) as caught:
                open_snapshot(index, fingerprint=None)
            assert time.monotonic() - started < 2
            # CURRENT vouches for the manifest: when the two disagree, the manifest is named
            allowed = {name, files[1]} if name == "CURRENT" else {name}
            assert caught.value.file in allowed or (
                name == "CURRENT" and caught.value.file.startswith("manifests/")
            )
            assert caught.value.why
            assert caught.value.hint
            tried += 1
            (index / name).write_bytes(original)
    assert tried > 650
    with opened(index) as snapshot:  # the negative control: restored, it opens
        assert snapshot.info().images == 12


def swap(index: Path, one: str, other: str) -> None:
    (index / one).rename(index / "kept")
    (index / other).rename(index / one)
    (index / "kept").rename(index / other)


def of_kind(index: Path, name: str) -> list[str]:
    return [file for file in named_files(index) if file.endswith(name)]


def replace_with_directory(index: Path, name: str) -> None:
    (index / name).unlink()
    (index / name).mkdir()


def replace_with_pipe(index: Path, name: str) -> None:
    (index / name).unlink()
    os.mkfifo(index / name)


def replace_with_link(index: Path, name: str) -> None:
    (index / name).rename(index / "elsewhere")
    (index / name).symlink_to(index / "elsewhere")


@pytest.mark.parametrize(
    "act",
    [
        lambda index, name: (index / name).unlink(),
        replace_with_directory,
        replace_with_pipe,
        replace_with_link,
    ],
    ids=["missing", "directory", "pipe", "link"],
)
def test_a_file_that_is_no_longer_a_file(
    pristine: Path, tmp_path: Path, act: Callable[[Path, str], None]
) -> None:
    for number, name in enumerate(named_files(pristine)):
        index = tmp_path / str(number)
        shutil.copytree(pristine, index)
        act(index, name)
        with pytest.raises(IndexCorruptError) as caught:
            open_snapshot(index, fingerprint=None)
        assert caught.value.file == name
        if name != "CURRENT":
            report = verify_index(index)
            assert [problem.file for problem in report.problems] == [name]


@pytest.mark.parametrize("name", ["vectors.npy", "items.sqlite"])
def test_files_swapped_between_segments(index: Path, name: str) -> None:
    first, _, second, *_ = of_kind(index, name)  # pictures of two different batches
    swap(index, first, second)
    with pytest.raises(IndexCorruptError) as caught:
        open_snapshot(index, fingerprint=None)
    assert caught.value.file in (first, second)


def test_segments_swapped_whole(index: Path) -> None:
    first, second = (str(Path(name).parent) for name in of_kind(index, "vectors.npy")[:2])
    swap(index, first, second)
    with pytest.raises(IndexCorruptError):
        open_snapshot(index, fingerprint=None)


def test_a_segment_of_another_index(index: Path, tmp_path: Path) -> None:
    build([record("x", "red")], tmp_path / "other.index")
    theirs = of_kind(tmp_path / "other.index", "vectors.npy")[0]
    ours = of_kind(index, "vectors.npy")[0]
    shutil.copy(tmp_path / "other.index" / theirs, index / ours)
    with pytest.raises(IndexCorruptError):
        open_snapshot(index, fingerprint=None)


def test_an_older_manifest_in_place_of_the_newest(index: Path) -> None:
    newest = f"manifests/{read_manifest(index).version:08d}.json"
    shutil.copy(index / "manifests" / "00000001.json", index / newest)
    for call in (read_fingerprint, lambda path: open_snapshot(path, fingerprint=None)):
        with pytest.raises(IndexCorruptError) as caught:
            call(index)
        assert caught.value.file == newest


def test_going_back_by_current_is_an_older_version_not_damage(index: Path) -> None:
    import hashlib

    data = (index / "manifests" / "00000001.json").read_bytes()
    (index / "CURRENT").write_text(f"1 {hashlib.sha256(data).hexdigest()}\n")
    with opened(index) as snapshot:
        assert (snapshot.version, snapshot.info().images) == (1, 6)


NOISE = random.Random(5).randbytes(100)


@pytest.mark.parametrize("garbage", [b"\0" * 200, NOISE, b"<html>", b"1" * 100_000])
def test_garbage_in_current(index: Path, garbage: bytes) -> None:
    (index / "CURRENT").write_bytes(garbage)
    for call in (read_fingerprint, verify_problem, lambda path: build([], path)):
        with pytest.raises(IndexCorruptError) as caught:
            call(index)
        assert caught.value.file == "CURRENT"


def verify_problem(path: Path) -> None:
    [problem] = verify_index(path).problems
    raise IndexCorruptError(problem.file, problem.why)


def test_verify_lists_all_damage_not_the_first(index: Path) -> None:
    assert verify_index(index).ok
    names = [*of_kind(index, "vectors.npy")[:2], of_kind(index, "items.sqlite")[2]]
    rng = random.Random(3)
    for name in names:
        (index / name).write_bytes(flip((index / name).read_bytes(), rng))
    [tombstones] = [name for name in named_files(index) if name.startswith("tombstones/")]
    (index / tombstones).unlink()
    report = verify_index(index)
    assert not report.ok
    assert sorted(problem.file for problem in report.problems) == sorted([*names, tombstones])
    assert report.to_dict()["ok"] is False
    with pytest.raises(IndexNotFoundError):
        verify_index(index / "nothing here")


def test_the_writer_refuses_a_damaged_index_and_changes_nothing(index: Path) -> None:
    name = of_kind(index, "items.sqlite")[0]
    (index / name).write_bytes(flip((index / name).read_bytes(), random.Random(1)))
    before = {path: path.stat().st_mtime_ns for path in index.rglob("*") if path.name != "LOCK"}
    with pytest.raises(IndexCorruptError) as caught:
        build([record("new", "red")], index)
    assert caught.value.file == name
    after = {path: path.stat().st_mtime_ns for path in index.rglob("*") if path.name != "LOCK"}
    assert set(before) == set(after)
    assert all(before[path] == after[path] for path in before if path.is_file())


@pytest.fixture
def forbidden(index: Path) -> Iterator[Path]:
    path = index / of_kind(index, "vectors.npy")[0]
    path.chmod(0)
    yield index
    path.chmod(0o644)


def test_a_file_that_may_not_be_read_is_not_called_damaged(forbidden: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    with pytest.raises(StoreError, match="EACCES") as caught:
        open_snapshot(forbidden, fingerprint=None)
    assert not isinstance(caught.value, IndexCorruptError)


def test_an_open_snapshot_survives_the_deletion_of_its_directory(index: Path) -> None:
    with opened(index) as snapshot:
        shutil.rmtree(index)
        assert snapshot.item("p1").text == NAMES[1]
        assert snapshot.thumbnail("p1")
        assert snapshot.info().images == 12
        assert snapshot.vector("p1") is not None
        assert len(snapshot.search(snapshot.vector("p1")[None], SearchOptions(k=12))[0]) == 12


def test_a_read_only_directory_can_be_searched(index: Path) -> None:
    for path in [index, *index.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with opened(index) as snapshot:
            assert snapshot.info().images == 12
        assert verify_index(index).ok
    finally:
        for path in [index, *index.rglob("*")]:
            path.chmod(0o755)
