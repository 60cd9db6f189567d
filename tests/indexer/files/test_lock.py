"""The writer's lock: exclusive, honest about its holder, gone with it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from pathlib import Path

import pytest
from fakes import ColourEncoder
from indexes import build, record

from indexer.files.lock import WriterLock
from indexer.store.writer import IndexWriter
from models.errors import EncoderMismatchError, IndexLockedError, StoreError
from service.cli.exits import exit_code


def test_the_second_writer_is_told_who_has_the_lock(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path / "LOCK")
    about = json.loads((tmp_path / "LOCK").read_text())
    assert about["pid"] == os.getpid()
    with pytest.raises(IndexLockedError) as caught:
        WriterLock(tmp_path / "LOCK")
    for part in (f"process {os.getpid()}", about["host"], about["since"]):
        assert part in caught.value.message
    lock.release()
    lock.release()
    WriterLock(tmp_path / "LOCK").release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"pid": 1}'])
def test_an_unreadable_holder_is_still_a_holder(tmp_path: Path, content: bytes) -> None:
    lock = WriterLock(tmp_path / "LOCK")
    (tmp_path / "LOCK").write_bytes(content)
    with pytest.raises(IndexLockedError, match="another process"):
        WriterLock(tmp_path / "LOCK")
    lock.release()


def test_of_many_writers_exactly_one_proceeds(tmp_path: Path) -> None:
    build([record("a", "red")], tmp_path / "x.index")
    winners: list[IndexWriter] = []
    losers: list[IndexLockedError] = []
    gate = threading.Barrier(20)

    def attempt() -> None:
        gate.wait()
        try:
            winners.append(IndexWriter(tmp_path / "x.index", ColourEncoder().fingerprint))
        except IndexLockedError as error:
            losers.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(winners), len(losers)) == (1, 19)
    winners[0].close()
    assert build([record("b", "red")], tmp_path / "x.index").added == 1


def test_a_refused_writer_gives_the_lock_back(tmp_path: Path) -> None:
    build([record("a", "red")], tmp_path / "x.index")
    with pytest.raises(EncoderMismatchError):
        IndexWriter(tmp_path / "x.index", ColourEncoder(name="other").fingerprint)
    IndexWriter(tmp_path / "x.index", ColourEncoder().fingerprint).close()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused_clearly(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(fd: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(StoreError, match="has no file locks") as caught:
        WriterLock(tmp_path / "LOCK")
    assert not isinstance(caught.value, IndexLockedError)
    assert "local disk" in (caught.value.hint or "")
    assert exit_code(caught.value) == 7


def test_a_lock_file_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "LOCK").symlink_to(tmp_path / "target")
    with pytest.raises(StoreError, match="ELOOP"):
        WriterLock(tmp_path / "LOCK")
    assert (tmp_path / "target").read_text() == "precious"
