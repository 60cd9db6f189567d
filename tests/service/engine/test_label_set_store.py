"""The store of label sets: what is on disk at every instant of a kill, and writers in turns."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from indexer.files.fs import Fs
from models.errors import InvalidLabelsError, LabelSetError, LabelSetNotFoundError
from models.vectors import unit_rows
from service.engine.label_set_store import LabelSetStore, check_name
from service.engine.label_sets import Examples, LabelSet, check_label_set

OLD = check_label_set(["red", "blue"], temperature=2.0, abstain=True)
NEW = check_label_set(["animal/cat", "animal/狗"], templates=["a {}"], abstain=0.25)


def test_everything_comes_back(tmp_path: Path) -> None:
    store = LabelSetStore(tmp_path / "deep" / "sets")
    vectors = unit_rows(np.random.default_rng(0).normal(size=(3, 7)))
    full = LabelSet(
        labels=("a", "b"), templates=("x {c}", "{c}"), multi_label=True, abstain=0.5,
        temperature=1.5, offset=-0.5, alpha=3.0, beta=4.0, examples=Examples(vectors, (0, 1, 0)),
        model="m", encoder="e", updated="2026-01-31T12:00:00Z",
    )  # fmt: skip
    assert store.put("full", full) is True
    assert store.put("tree", NEW) is True
    for reader in (store, LabelSetStore(tmp_path / "deep" / "sets")):
        found = reader.get("full")
        assert (found.examples.vectors_ND == vectors).all()
        assert found.examples.targets == (0, 1, 0)
        for name in ("labels", "templates", "multi_label", "temperature", "offset", "alpha", "beta",
                     "model", "encoder", "updated"):  # fmt: skip
            assert getattr(found, name) == getattr(full, name)
        assert reader.get("tree") == NEW
        assert reader.names() == ["full", "tree"]


def test_many_sets_are_read_without_keeping_them_all(tmp_path: Path) -> None:
    store = LabelSetStore(tmp_path)
    for number in range(40):
        store.put(f"s{number:02}", OLD)
    assert [name for name, found in store.entries() if found == OLD] == store.names()
    assert len(store._kept) <= 16


def test_another_process_sees_what_was_written(tmp_path: Path) -> None:
    reader, writer = LabelSetStore(tmp_path), LabelSetStore(tmp_path)
    writer.put("a", OLD)
    assert reader.get("a") == OLD
    writer.put("a", NEW)
    assert reader.get("a") == NEW
    writer.delete("a")
    with pytest.raises(LabelSetNotFoundError, match="no label set"):
        reader.get("a")


PRIMITIVES = ("_create", "_write", "_fsync", "_close", "_rename")


@pytest.mark.parametrize("at", range(8))
def test_a_kill_at_any_step_leaves_the_old_set_or_the_new(tmp_path: Path, at: int) -> None:
    store = LabelSetStore(tmp_path)
    store.put("a", OLD)
    pid = os.fork()
    if pid == 0:
        count = 0

        def wrap(name: str) -> None:
            real = getattr(Fs, name)

            def step(self: Fs, *arguments: object) -> object:
                nonlocal count
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return real(self, *arguments)

            setattr(Fs, name, step)

        for name in PRIMITIVES:
            wrap(name)
        try:
            LabelSetStore(tmp_path).put("a", NEW)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    died = os.WIFSIGNALED(status)
    # create, write, fsync, close, rename, fsync of the folder: the sixth is past the rename
    assert died == (at < 6)
    restarted = LabelSetStore(tmp_path)
    assert restarted.get("a") == (OLD if at <= 4 else NEW)
    assert restarted.names() == ["a"]
    restarted.put("b", OLD)
    assert not list(tmp_path.glob(".*.tmp")), "what the dead writer left is swept"


def test_writers_take_turns(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        store = LabelSetStore(tmp_path)
        try:
            for turn in range(8):
                store.put("shared", check_label_set([f"{number}", f"turn {turn}"]))
                store.put(f"own-{number}", OLD)
                store.get("shared")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert LabelSetStore(tmp_path).names() == [f"own-{n}" for n in range(4)] + ["shared"]


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LabelSetStore(tmp_path)
    store.put("a", OLD)

    def full(self: Fs, fd: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Fs, "_write", full)
    with pytest.raises(LabelSetError) as caught:
        store.put("a", NEW)
    assert caught.value.code == "label-sets-unwritable"
    monkeypatch.undo()
    assert store.get("a") == OLD
    assert not list(tmp_path.glob(".*.tmp"))


def test_matrices_are_bounded(tmp_path: Path) -> None:
    store = LabelSetStore(tmp_path)
    for number in range(70):
        store.keep_matrix(f"{number:064x}", np.full((2, 3), number, dtype=np.float32))
    assert len(list((tmp_path / "matrices").iterdir())) == 64
    kept = store.matrix(f"{69:064x}", 2, 3)
    assert kept is not None
    assert (kept == 69).all()
    assert store.matrix(f"{69:064x}", 3, 3) is None, "another shape is another matrix"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "A", "a.b", "a b", "\n", "a\n", "x" * 65])
def test_names(name: str) -> None:
    with pytest.raises(InvalidLabelsError) as caught:
        check_name(name)
    assert "'" not in caught.value.message, "the name is not repeated"
