"""Deleted items stay gone whatever is done afterwards: a random history against two sets.

Every step may be cut off in the middle. `gone` is what was deleted and not asked back; after each
step none of it may be live, in no version, and what was never deleted may not be lost.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import ColourEncoder
from indexes import NAMES, build, ids, opened, record

from indexer.format.manifest import read_manifest
from indexer.maintain.edit import Editor, delete_items, rollback
from indexer.maintain.optimize import optimize
from indexer.maintain.purge import purge
from indexer.maintain.verify import verify_index
from indexer.store.commit import Draft
from indexer.store.history import history
from indexer.store.sweep import Sweeper
from indexer.store.writer import IndexWriter


class CutOffError(BaseException):
    """Stands for a kill: nothing catches it, and nothing cleans up after it."""


class Life:
    """One index, and what it should hold."""

    def __init__(self, out: Path, rng: random.Random, size: int) -> None:
        self.out = out
        self.rng = rng
        self.keys = [f"k{i:04}" for i in range(size)]
        self.state = dict.fromkeys(self.keys, 0)
        self.gone: set[str] = set()
        self.going: set[str] = set()
        self.deleted = 0

    def sources(self) -> list[object]:
        return [
            record(key, NAMES[(hash_of(key) + state) % 8], f"text {key}", state=state)
            for key, state in self.state.items()
        ]

    def step(self) -> None:
        steps: list[Callable[[], object]] = [
            self.delete, self.delete, self.rerun, self.change, self.back, self.purge, self.move,
            self.put, self.optimize,
        ]  # fmt: skip
        self.rng.choice(steps)()

    def delete(self) -> None:
        live = sorted(set(self.keys) - self.gone)
        chosen = self.rng.sample(live, min(len(live), self.rng.randint(1, 1 + len(self.keys) // 9)))
        self.going = set(chosen)
        self.deleted += len(chosen)
        delete_items(self.out, chosen)
        self.acknowledge()

    def acknowledge(self) -> None:
        self.gone |= self.going
        self.going = set()

    def rerun(self) -> None:
        build(self.sources(), self.out, segment_rows=40, batch_size=16)  # type: ignore[arg-type]

    def change(self) -> None:
        for key in self.rng.sample(self.keys, len(self.keys) // 5):
            self.state[key] += 1
        self.rerun()

    def move(self) -> None:
        chosen = [record(key, "red", "elsewhere") for key in self.rng.sample(self.keys, 5)]
        build(chosen, self.out)

    def put(self) -> None:
        chosen = [record(key, "blue", "put") for key in self.rng.sample(self.keys, 5)]
        Editor(self.out, ColourEncoder()).put(chosen)

    def back(self) -> None:
        older = [one.version for one in history(self.out) if one.images and not one.current]
        if older:
            rollback(self.out, self.rng.choice(older))

    def optimize(self) -> None:
        optimize(self.out)

    def purge(self) -> None:
        assert purge(self.out).found == []


def hash_of(key: str) -> int:
    return int(key[1:])


def live(out: Path) -> set[str]:
    report = verify_index(out)
    assert report.ok, report.problems
    with opened(out) as snapshot:
        found = set(ids(snapshot, "red", 100_000))
        texts = {one.partition("#")[0] for one in ids(snapshot, "red", 100_000, "texts")}
    return found | texts


def cut_off(monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """The next commit dies at one of its steps, as a process would."""
    owner, name = rng.choice(
        [(Draft, "add_segments"), (Draft, "write_array"), (Draft, "publish"), (Sweeper, "collect")]
    )
    real = getattr(owner, name)
    after = rng.random() < 0.5

    def dying(*arguments: object, **named: object) -> object:
        if after:
            real(*arguments, **named)
        raise CutOffError

    monkeypatch.setattr(owner, name, dying)
    # a dead process takes nothing back, and its lock goes with it
    monkeypatch.setattr(Draft, "__exit__", lambda *_: None)
    monkeypatch.setattr(IndexWriter, "close", lambda self: self._lock.release())


def live_a_life(
    out: Path, monkeypatch: pytest.MonkeyPatch, *, seed: int, size: int, steps: int
) -> int:
    rng = random.Random(seed)
    life = Life(out, rng, size)
    life.rerun()
    cuts = 0
    for _ in range(steps):
        with monkeypatch.context() as patched:
            if rng.random() < 0.3:
                cut_off(patched, rng)
            try:
                life.step()
            except CutOffError:
                cuts += 1
        assert not life.gone & live(out)
        if life.going:  # cut off before it was acknowledged: all of it happened, or none did
            assert life.going & live(out) in (set(), life.going)
            delete_items(out, sorted(life.going))
            life.acknowledge()
        life.rerun()
        now = live(out)
        assert now == set(life.keys) - life.gone
    assert cuts
    for one in reversed(history(out)):  # the oldest first: every rollback collects one version
        if not one.current and one.images:
            rollback(out, one.version)
            assert not life.gone & live(out), "no kept version brings it back"
    assert read_manifest(out).erased is not None
    return life.deleted


def test_deleted_items_stay_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deleted = live_a_life(tmp_path / "x.index", monkeypatch, seed=1, size=60, steps=12)
    assert deleted > 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_of_ten_thousand_deleted_items_none_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted, seed = 0, 0
    while deleted < 10_000:
        seed += 1
        out = tmp_path / f"{seed}.index"
        deleted += live_a_life(out, monkeypatch, seed=seed, size=3000, steps=30)
