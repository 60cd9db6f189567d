"""Shares, paces and timelines against a clock that is set by hand."""

from __future__ import annotations

from itertools import pairwise

from clocks import Clock

from indexer.ingest.options import Pacing
from indexer.ingest.progress import Stages


def test_shares_are_of_the_time_the_embedding_thread_spent() -> None:
    clock = Clock()
    stages = Stages(clock)
    for stage, seconds in (("read", 1), ("decode", 2), ("embed", 6), ("write", 1), ("embed", 6)):
        with stages.held_by(stage), stages.work("embed"):  # type: ignore[arg-type]
            clock.now += seconds
    stages.embedded(32)
    summary = stages.summary()
    assert {name: one["share"] for name, one in summary["stages"].items()} == {
        "read": 0.0625, "decode": 0.125, "embed": 0.75, "write": 0.0625,
    }  # fmt: skip
    assert summary["stages"]["embed"]["work_s"] == 16
    assert (summary["bottleneck"], summary["images_per_s"]) == ("embed", 2.0)


def test_the_pace_is_of_the_last_seconds() -> None:
    clock = Clock()
    stages = Stages(clock)
    for _ in range(100):
        with stages.held_by("embed"):
            clock.now += 1
        stages.embedded(10)
    assert stages.pace().bottleneck == "embed"
    for _ in range(30):
        with stages.held_by("decode"):
            clock.now += 1
        stages.embedded(2)
    pace = stages.pace()
    assert pace.bottleneck == "decode"
    assert abs(pace.images_per_s - 2) < 0.5


def test_a_long_timeline_thins_out_and_stays_true() -> None:
    clock = Clock()
    stages = Stages(clock)
    for _ in range(100_000):
        clock.now += 1
        stages.embedded(3)
    line = stages.summary()["timeline"]
    assert 60 < len(line) < 250
    assert line[0] == [0.0, 0]
    assert line[-1] == [100_000.0, 300_000]
    assert all(count == 3 * at for at, count in line)


def test_a_build_without_pictures_has_no_bottleneck() -> None:
    assert Stages(Clock()).summary()["bottleneck"] is None


def test_commits_are_ten_seconds_apart_and_then_a_fiftieth_of_the_time() -> None:
    pacing, committed, commits = Pacing(), 0.0, []
    for now in range(5 * 86_400):
        if pacing.due(now, committed):
            committed = now
            commits.append(now)
    assert commits[:3] == [10, 20, 30]
    assert len(commits) < 450  # in five days
    lost = [later - earlier for earlier, later in pairwise(commits)]
    assert all(gap <= max(10, 0.025 * at) for gap, at in zip(lost, commits[1:], strict=True))
