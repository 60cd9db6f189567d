"""Kill -9 and power loss at any point of every operation: build, delete, optimize, rollback, purge.

A model says what the index holds before and after each step. Whatever interrupts the step, the
index opens at one or the other (a build may stop between its commits), nothing acknowledged is
lost, and running the step again finishes it.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crashing import Disk, Event, PowerLossFs, Step, perform
from fakes import ColourEncoder
from indexes import opened, scratch
from ramdisk import in_memory
from victims import State, Victims, contents, expected

from indexer.format.erasures import read_erasures
from indexer.format.manifest import (
    CURRENT,
    LOCK,
    Manifest,
    manifest_path,
    parse_manifest,
    read_manifest,
)
from indexer.store.commit import Draft
from indexer.store.history import history
from indexer.store.merge import Merged, merge
from indexer.store.sweep import manifest_numbers
from indexer.store.writer import IndexWriter
from models.errors import IndexCorruptError, IndexNotFoundError, StoreError

STEPS = ("build", "delete", "delete", "optimize", "rollback", "purge")


class Model:
    """What an index holds after each finished step.

    Attributes:
        state: the live pictures.
        erased: ids that were deleted; nothing but a caller's express wish brings one back.
    """

    def __init__(self, rng: random.Random, size: int) -> None:
        self.state: State = {}
        self.erased: set[str] = set()
        self._rng = rng
        self._size = size
        self._generation = 0
        self._finished: dict[int, State] = {}

    def choose(self, kept: list[int]) -> Step:
        """The next step; `kept` are the versions a rollback can go to."""
        kind = self._rng.choice(STEPS) if self._generation else "build"
        known = [version for version in kept[:-1] if version in self._finished]
        if kind == "rollback" and known:
            return [kind, self._rng.choice(known)]
        if kind == "delete" and self.state:
            return [kind, self._rng.sample(sorted(self.state), min(2, len(self.state)))]
        if kind in ("optimize", "purge"):
            return [kind]
        self._generation += 1
        return ["build", self._generation]

    def after(self, step: Step) -> State:
        """What the index will hold when the step is done."""
        match step:
            case ["build", number]:
                new = {k: v for k, v in self._records(number).items() if k not in self.erased}
                return self.state | new
            case ["delete", ids]:
                return {key: value for key, value in self.state.items() if key not in ids}
            case ["rollback", version]:
                old = self._finished[version]
                return {key: value for key, value in old.items() if key not in self.erased}
        return self.state

    def finish(self, step: Step, version: int) -> None:
        self.state = self.after(step)
        if step[0] == "delete":
            self.erased |= set(step[1])
        if step[0] == "purge":
            self._finished.clear()
        self._finished[version] = self.state

    def between(self, now: State, step: Step) -> bool:
        """Whether an index that holds `now` may be one in which the step was cut off."""
        after = self.after(step)
        if step[0] != "build":
            return now in (self.state, after)
        return set(now) >= set(self.state) and all(
            value in (self.state.get(key), after.get(key)) for key, value in now.items()
        )

    def _records(self, number: int) -> State:
        return dict(list(expected(number).items())[: self._size])


def version_of(path: Path) -> int:
    with opened(path) as snapshot:
        return snapshot.version


def kill_through_steps(
    home: Path, victims: Victims, rng: random.Random, span: float, kills: int
) -> tuple[int, float]:
    """Ten steps, each killed again and again until it is done -> (kills, waiting span)."""
    out, done, embedded = (home / name for name in ("x.index", "acknowledged", "embedded"))
    model = Model(rng, size=24)
    killed, newest = 0, 0
    for _ in range(10):
        kept = [about.version for about in history(out)] if (out / "CURRENT").exists() else []
        step = model.choose(sorted(kept))
        while True:
            seconds = rng.uniform(0.0, span) if killed < kills else None
            code = victims.run([out, step, done, embedded], seconds)
            assert code in (0, -9), step
            killed += code != 0
            # wait as long as makes both outcomes common, however slow the machine is today
            span *= 0.85 if code == 0 else 1.06
            if (out / "CURRENT").exists():
                now = contents(out)
                assert model.between(now, step), step
                assert not set(now) & model.erased, "deleted, and back"
                version = version_of(out)
                acknowledged = [int(line) for line in done.read_text().split() or [0]]
                assert version >= max(newest, *acknowledged)
                newest = version
            if code == 0:
                break
        model.finish(step, newest)
        assert contents(out) == model.state, step
    assert scratch(out) == []
    return killed, span


def kill_many(tmp_path: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    killed, span, lives = 0, 0.1, 0
    victims = Victims()
    try:
        while killed < kills:
            lives += 1
            home = tmp_path / str(lives)
            home.mkdir()
            (home / "acknowledged").touch()
            more, span = kill_through_steps(home, victims, rng, span, kills - killed)
            killed += more
            shutil.rmtree(home)
    finally:
        victims.close()


def test_kill_9_at_random_moments_of_every_operation(tmp_path: Path) -> None:
    kill_many(tmp_path, kills=200, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(4))
def test_kill_9_at_random_moments_of_every_operation_many_times(tmp_path: Path, seed: int) -> None:
    kill_many(tmp_path, kills=500, seed=100 + seed)


HISTORY: list[Step] = [
    ["build", 1],
    ["delete", ["p01"]],
    ["build", 2],
    ["optimize"],
    ["delete", ["p03", "p04"]],
    ["rollback", 0],
    ["purge"],
]
SIZE = 6


def broken_promises(path: Path, version: int) -> list[str]:
    """Kept manifests that are damaged, and files they name that are not there."""
    broken = []
    for number in manifest_numbers(path):
        name = manifest_path(number)
        if number <= version:
            try:
                files = parse_manifest(name, (path / name).read_bytes()).files()
            except IndexCorruptError:
                broken.append(name)
            else:
                broken += [file for file in files if not (path / file).is_file()]
    return broken


class Outage:
    """A history whose power can be cut after any event, and what may then be found."""

    def __init__(
        self, tmp_path: Path, *, skip: int = -1, steps: list[Step] = HISTORY, size: int = SIZE
    ) -> None:
        self._tmp_path = tmp_path
        self._disk = tmp_path / "disk"
        shutil.rmtree(self._disk, ignore_errors=True)
        self._disk.mkdir()
        self.journal: list[Event] = []
        self._model = Model(random.Random(0), size)
        fs = PowerLossFs(self.journal, skip)
        path = self._disk / "x.index"
        # per step: where its events end, the step, and what the index holds before and after
        self._ends: list[int] = []
        # per commit: where its events end, and its version
        self._acknowledged: list[tuple[int, int]] = []
        self._states: list[State] = [{}]
        self._versions: list[int] = [-1]
        self._steps: list[Step] = []
        for step in steps:
            if step[0] == "rollback":  # to the version after the first build
                step = ["rollback", self._versions[1]]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(IndexWriter, "_commit", self._noting(IndexWriter._commit))
                perform(path, step, ColourEncoder(), fs=fs, size=size)
            self._ends.append(len(self.journal))
            version = version_of(path)
            self._model.finish(step, version)
            self._steps.append(step)
            self._states.append(self._model.state)
            self._versions.append(version)
            assert contents(path) == self._model.state
        self.synced = fs.synced

    def _noting(self, commit: Callable[..., Manifest]) -> Callable[..., Manifest]:
        """The commit, acknowledged at the event after which it may be."""

        def publish(draft: Draft, manifest: Manifest) -> object:
            head = real(draft, manifest)
            self._acknowledged.append((len(self.journal), manifest.version))
            return head

        real = Draft.publish

        def noted(*args: object, **named: object) -> Manifest:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Draft, "publish", publish)
                return commit(*args, **named)

        return noted

    def violation(self, until: int, rng: random.Random, luck: float, *, deep: bool) -> str | None:
        """What is wrong after losing power after `until` events, or None."""
        where = self._tmp_path / "after"
        shutil.rmtree(where, ignore_errors=True)
        Disk(self._disk, self.journal[:until]).survive(where, rng, luck)
        done = sum(until >= end for end in self._ends)
        promised = max((v for end, v in self._acknowledged if until >= end), default=-1)
        try:
            version = version_of(where / "x.index")
            read_erasures(where / "x.index", read_manifest(where / "x.index"))  # writers need it
            now = contents(where / "x.index") if deep else None
        except IndexNotFoundError:
            return "acknowledged, then gone" if promised >= 0 else None
        except StoreError as error:
            return str(error)
        if version < promised:
            return f"version {promised} was acknowledged, {version} found"
        if now is not None and now != self._states[done]:
            after = self._states[min(done + 1, len(self._steps))]
            building = done < len(self._steps) and self._steps[done][0] == "build"
            allowed = all(v in (self._states[done].get(k), after.get(k)) for k, v in now.items())
            if now != after and not (building and allowed and set(now) >= set(self._states[done])):
                return f"wrong content in step {done}: {now}"
        if broken := broken_promises(where / "x.index", version):
            return f"a kept version lacks {broken}"
        if done == len(self._steps) and self._steps[-1] == ["purge"]:
            left = {str(p.relative_to(where / "x.index")) for p in where.rglob("*") if p.is_file()}
            manifest = read_manifest(where / "x.index")
            named = {*manifest.files(), manifest_path(manifest.version), CURRENT, LOCK}
            if left - named:
                return f"purged, and still there: {sorted(left - named)}"
        return None


def lose_power(states: int, seed: int, *, steps: list[Step] = HISTORY, size: int = SIZE) -> None:
    with in_memory() as home:
        outage = Outage(home, steps=steps, size=size)
        rng = random.Random(seed)
        points = len(outage.journal) + 1
        for number in range(max(states, points)):
            until = number % points
            luck = (0.0, 1.0, 0.5, rng.random())[number // points % 4]
            # reading every item back costs ten times as much as opening
            deep = number % 5 == 0
            assert outage.violation(until, rng, luck, deep=deep) is None, (until, luck)


def test_power_loss_in_2000_states_of_a_history() -> None:
    lose_power(2000, seed=2)


def test_power_loss_at_every_point_of_commits_that_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of twelve commits three rows each: every fourth takes in those before it."""
    merges = []

    def noting(*args: Any, **named: Any) -> Merged:
        found = merge(*args, **named)
        merges.append(len(found.moved))
        return found

    monkeypatch.setattr("indexer.store.writer.merge", noting)
    steps: list[Step] = [["build", 1], ["delete", ["p02"]], ["build", 2], ["delete", ["p05"]]]
    lose_power(0, seed=4, steps=steps, size=12)
    assert max(merges) > 1


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_power_loss_in_100000_states_of_a_history() -> None:
    lose_power(100_000, seed=3)


def unnoticed_syncs(tmp_path: Path, steps: list[Step]) -> tuple[list[Path], int]:
    """Leave out one fsync after the other -> (those that no state tells of, how many there are)."""
    rng = random.Random(6)
    unnoticed = []
    skip, syncs = 0, 1
    while skip < syncs:
        outage = Outage(tmp_path, skip=skip, steps=steps)
        syncs = len(outage.synced)
        # a missing name or a torn file shows when CURRENT has reached the disk and it has not; a
        # lost acknowledgement shows when nothing unsynced survives
        published = [
            until
            for until, event in enumerate(outage.journal, 1)
            if event.kind == "rename" and event.data.endswith(b"/CURRENT")
        ]
        tries = [(until, 0.0) for until in range(len(outage.journal), 0, -1)]
        tries += [(until, 0.7) for until in published for _ in range(40)]
        # what is removed shows only after the last version stands
        last = range(published[-1], len(outage.journal) + 1)
        tries += [(until, 0.7) for until in last for _ in range(20)]
        if not any(outage.violation(until, rng, luck, deep=False) for until, luck in tries):
            unnoticed.append(outage.synced[skip])
        skip += 1
    return unnoticed, syncs


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_leaving_out_any_one_fsync_of_a_history_is_noticed() -> None:
    """The negative control: the tests above have teeth, and no fsync is there for nothing."""
    with in_memory() as home:
        unnoticed, syncs = unnoticed_syncs(home, HISTORY)
    assert syncs > 40
    # a purge syncs manifests/ once more at its end, for names that a writer before it removed and
    # was killed before it could sync; no history of one process can tell
    assert [path.name for path in unnoticed] in ([], ["manifests"])
