"""`indexer.files.fs`: durable writes, their errors, and opening only regular files."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from indexer.files.fs import Fs, open_regular
from models.errors import NoSpaceError, StorageError, StoreError
from service.cli.exits import exit_code


class Failing(Fs):
    """Fails one primitive with an errno."""

    def __init__(self, primitive: str, code: int) -> None:
        super().__init__()

        def fail(*arguments: object) -> None:
            raise OSError(code, os.strerror(code))

        setattr(self, primitive, fail)


class ShortWrites(Fs):
    def _write(self, fd: int, data: memoryview) -> int:
        return os.write(fd, data[:3])


def test_a_file_is_written_whole_and_hashed(tmp_path: Path) -> None:
    digest = Fs().write_file(tmp_path / "a", [b"one ", b"", b"two"])
    assert (tmp_path / "a").read_bytes() == b"one two"
    assert digest.size == 7
    assert digest.sha256 == hashlib.sha256(b"one two").hexdigest()
    assert Fs().seal_file(tmp_path / "a") == digest


def test_short_writes_are_continued(tmp_path: Path) -> None:
    digest = ShortWrites().write_file(tmp_path / "a", [bytes(range(200))])
    assert (tmp_path / "a").read_bytes() == bytes(range(200))
    assert digest.sha256 == hashlib.sha256(bytes(range(200))).hexdigest()


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(StoreError, match="EEXIST"):
        Fs().write_file(tmp_path / "a", [b"new"])
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("primitive", ["_create", "_write", "_fsync", "_rename", "_mkdir"])
@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOSPC, NoSpaceError), (errno.EDQUOT, NoSpaceError), (errno.EIO, StorageError)],
)
def test_errors_name_the_path_and_the_errno(
    tmp_path: Path, primitive: str, code: int, kind: type[StoreError]
) -> None:
    fs = Failing(primitive, code)
    (tmp_path / "from").touch()
    target = tmp_path / "target"
    act = {
        "_rename": lambda: fs.rename(tmp_path / "from", target),
        "_mkdir": lambda: fs.make_dir(target),
    }.get(primitive, lambda: fs.write_file(target, [b"x"]))
    with pytest.raises(kind) as caught:
        act()
    assert type(caught.value) is kind
    assert exit_code(caught.value) == (7 if code == errno.EIO else 6)
    assert str(tmp_path / "target") in caught.value.message
    assert errno.errorcode[code] in caught.value.message
    assert not (tmp_path / "target").exists()


def test_a_failed_fsync_stops_the_writer_for_good(tmp_path: Path) -> None:
    fs = Failing("_fsync", errno.EIO)
    with pytest.raises(StoreError):
        fs.write_file(tmp_path / "a", [b"x"])
    del fs._fsync  # the disk seems well again: that must not matter
    with pytest.raises(StoreError, match="stopped after a failed fsync"):
        fs.write_file(tmp_path / "b", [b"x"])
    assert not (tmp_path / "b").exists()


def test_removing_a_link_leaves_its_target(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    Fs().remove(tmp_path / "link")
    Fs().remove(tmp_path / "never there")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "kept" / "file").exists()


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "plain")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    fd = open_regular(tmp_path / "plain")
    assert os.read(fd, 10) == b"abc"
    os.close(fd)
    for name in ("link", "directory", "pipe", "missing"):
        with pytest.raises(OSError):
            open_regular(tmp_path / name)
