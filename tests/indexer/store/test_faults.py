"""Disks that are full, read-only or failing, and processes out of descriptors.

Whatever fails, the version before is byte for byte what it was, the message names the path and the
errno, and the same command succeeds once the cause is gone.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crashing import FailingFs
from fakes import ColourEncoder
from indexes import NAMES, ListSource, build, ids, opened, record

from indexer.files import fs as space
from indexer.files.fs import Fs
from indexer.format.manifest import read_manifest
from indexer.ingest.build import BuildOptions, build_index
from indexer.maintain.edit import delete_items, rollback
from indexer.maintain.optimize import optimize
from indexer.maintain.purge import purge
from indexer.maintain.verify import verify_index
from indexer.search.snapshot import open_snapshot
from indexer.transfer.exports import export_index
from indexer.transfer.imports import import_index
from models.errors import DiptychError, IndexCorruptError, NoSpaceError, StoreError
from service.cli.exits import exit_code

FINGERPRINT = ColourEncoder().fingerprint
Operation = Callable[[Path, Fs | None], object]


def imported(path: Path, fs: Fs | None) -> object:
    source, out = path.with_name("source"), path.with_name("new")
    return import_index(source, out, ColourEncoder, relevance=False, fs=fs)


OPERATIONS: dict[str, Operation] = {
    "build": lambda path, fs: _add(path, fs),
    "delete": lambda path, fs: delete_items(path, ["p1"], fs=fs),
    "rollback": lambda path, fs: rollback(path, 1, fs=fs),
    "optimize": lambda path, fs: optimize(path, fs=fs),
    "purge": lambda path, fs: purge(path, fs=fs),
    "import": imported,
}
EXPORTS: dict[str, Operation] = {
    form: lambda path, fs, form=form: export_index(path, path.with_name(f"out-{form}"), form)  # type: ignore[misc]
    for form in ("copy", "parquet", "clip-retrieval")
}


def _add(path: Path, fs: Fs | None) -> object:
    rows = ListSource([record(f"new{i}", NAMES[i], f"{NAMES[i]} new") for i in range(8)])
    return build_index([rows], path, ColourEncoder(), options=BuildOptions(batch_size=4), fs=fs)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an index of three versions, and an export of it."""
    folder = tmp_path_factory.mktemp("faults")
    build([record(f"p{i}", NAMES[i], f"{NAMES[i]} thing") for i in range(4)], folder / "x")
    build([record("p2", "white", "white"), record("p5", "cyan")], folder / "x")
    delete_items(folder / "x", ["p0"])
    export_index(folder / "x", folder / "source", "parquet")
    return folder


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "d")
    return tmp_path / "d" / "x"


@pytest.fixture
def small(original: Path, tmp_path: Path) -> Iterator[Path]:
    """The same on a file system of four megabytes."""
    where = tmp_path / "small"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(where)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("NOT CHECKED: full and read-only disks need root, to mount a small tmpfs")
    try:
        for name in ("x", "source"):
            shutil.copytree(original / name, where / name)
        yield where / "x"
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(one.relative_to(path)): one.read_bytes()
        for one in path.rglob("*")
        if one.is_file() and one.name != "LOCK"
    }


def untouched(path: Path, before: dict[str, bytes]) -> None:
    now = contents(path)
    assert {name: now.get(name) for name in before} == before
    with opened(path) as snapshot:
        assert sorted(ids(snapshot, "red")) == ["p1", "p2", "p3", "p5"]


def fill(where: Path, leave: int) -> Path:
    """Write until `leave` bytes are free."""
    filler = where / "filler"
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, shutil.disk_usage(where).free - leave))
    return filler


@pytest.mark.parametrize("name", [*OPERATIONS, *EXPORTS])
@pytest.mark.parametrize("leave", [0, 20_000, 90_000])
def test_a_full_disk_changes_nothing_and_the_next_try_succeeds(
    small: Path, monkeypatch: pytest.MonkeyPatch, name: str, leave: int
) -> None:
    monkeypatch.setattr(space, "_MARGIN", 0)  # the disk fills up although the estimate fitted
    run = (OPERATIONS | EXPORTS)[name]
    before = contents(small)
    filler = fill(small.parent, leave)
    told = ""
    try:
        run(small, None)
    except NoSpaceError as error:
        told = error.message
    if leave and not told:
        return  # what little was left was enough
    assert str(small.parent) in told
    untouched(small, before)
    assert not list(small.parent.glob("*.partial"))
    filler.unlink()
    run(small, None)
    assert verify_index(small, deep=True).problems == []
    if name == "import":
        assert verify_index(small.with_name("new"), deep=True).problems == []


@pytest.mark.parametrize("name", [*OPERATIONS, *EXPORTS])
def test_a_read_only_disk_is_searched_and_not_written(small: Path, name: str) -> None:
    run = (OPERATIONS | EXPORTS)[name]
    before = contents(small)
    where = str(small.parent)
    subprocess.run(["mount", "-o", "remount,ro", where], check=True)
    with pytest.raises(StoreError, match="EROFS") as caught:
        run(small, None)
    assert where in caught.value.message
    assert exit_code(caught.value) == 7
    untouched(small, before)
    assert verify_index(small, deep=True).problems == []
    subprocess.run(["mount", "-o", "remount,rw", where], check=True)
    run(small, None)


@pytest.mark.parametrize("name", ["delete", "optimize", "import"])
@pytest.mark.parametrize("code", [errno.EIO, errno.EDQUOT])
def test_any_call_of_an_operation_may_fail(
    path: Path, tmp_path: Path, name: str, code: int
) -> None:
    """As tests/indexer/store/test_crash.py has it for builds."""
    run, n = OPERATIONS[name], 0
    expected = {"delete": 3, "optimize": 4, "import": 4}[name]
    while True:
        shutil.copytree(path.parent, tmp_path / "copy")
        copy = tmp_path / "copy" / "x"
        target = copy.with_name("new") if name == "import" else copy
        fs = FailingFs(fail_at=n, code=code)
        failed: StoreError | None = None
        try:
            run(copy, fs)
        except StoreError as error:
            failed = error
        if failed is not None:
            assert errno.errorcode[code] in failed.message
            assert isinstance(failed, NoSpaceError) == (code == errno.EDQUOT)
        elif fs.calls <= n:
            break
        assert verify_index(copy).problems == []
        # an import whose very last fsync failed may stand, and is not run again
        stands = name == "import" and (target / "CURRENT").exists() and _images(target)
        if failed and not stands:
            run(copy, None)
        assert verify_index(target, deep=True).problems == []
        with opened(target) as snapshot:
            assert snapshot.info().images == expected
        shutil.rmtree(tmp_path / "copy")
        n += 7
    assert n > 20


def _images(path: Path) -> int:
    return read_manifest(path).live.images


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_short_writes_are_completed(path: Path, name: str) -> None:
    class ShortFs(Fs):
        def _write(self, fd: int, data: memoryview) -> int:
            return super()._write(fd, data[: 1 + len(data) // 3])

    OPERATIONS[name](path, ShortFs())
    target = path.with_name("new") if name == "import" else path
    assert verify_index(target, deep=True).problems == []


def test_out_of_descriptors_is_not_called_damage(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(one.name) for one in Path("/proc/self/fd").iterdir())
    held = [os.open("/dev/null", os.O_RDONLY)]
    while held[-1] < highest:  # no number below the limit is free
        held.append(os.open("/dev/null", os.O_RDONLY))
    refused: list[StoreError] = []
    try:
        for more in range(1, 60):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + more, hard))
            try:
                open_snapshot(path, fingerprint=FINGERPRINT).close()
                break
            except StoreError as error:
                refused.append(error)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
    assert len(refused) > 3
    for one in refused:
        assert not isinstance(one, IndexCorruptError), one.message
        assert "EMFILE" in one.message or "ulimit -n" in str(one.hint)
    untouched(path, contents(path))


def test_a_disk_that_is_clearly_too_small_is_refused_before_the_work(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    before = contents(path)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: usage(10**9, 0, 100))
    for name in ("optimize", "import", "copy", "parquet", "clip-retrieval"):
        with pytest.raises(NoSpaceError, match=r"bytes are needed in .* 100 are free"):
            (OPERATIONS | EXPORTS)[name](path, None)
        untouched(path, before)
    monkeypatch.undo()
    optimize(path)


def test_without_locks_nothing_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a network file system may be: reading works, writing is refused with the remedy."""

    def refuse(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    before = contents(path)
    monkeypatch.setattr("indexer.files.lock.fcntl.flock", refuse)
    for name in ("build", "delete", "rollback", "optimize", "purge"):
        with pytest.raises(DiptychError, match="has no file locks") as caught:
            OPERATIONS[name](path, None)
        assert caught.value.hint is not None
        assert "local disk" in caught.value.hint
        untouched(path, before)
    assert verify_index(path, deep=True).problems == []
