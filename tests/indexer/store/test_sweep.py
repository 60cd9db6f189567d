"""Which versions a commit leaves: by number, age and size, together, and never less than one."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import ColourEncoder
from indexes import build, ids, opened, record

from indexer.files.fs import Fs
from indexer.format.manifest import MANIFESTS, read_manifest
from indexer.maintain.edit import Editor, delete_items, rollback
from indexer.maintain.optimize import OptimizeOptions, optimize
from indexer.maintain.verify import verify_index
from indexer.store import commit as commit_module
from indexer.store.history import history
from indexer.store.sweep import KEEP_VERSIONS, Keeping, Sweeper
from indexer.store.writer import IndexWriter
from models.errors import InputError, NotFoundError

DAY = 86_400.0


def versions(out: Path) -> list[int]:
    """Those that are kept, ascending; each must be whole, and nothing else be there."""
    assert verify_index(out, deep=True).ok
    found = history(out)
    assert not any(one.problem for one in found)
    return sorted(one.version for one in found)


def taken(out: Path) -> int:
    """Bytes on disk that the current version does not name, whatever names them."""
    named = {out / name for name in read_manifest(out).files()}
    named.add(out / MANIFESTS / f"{read_manifest(out).version:08d}.json")
    kept = [path for path in out.rglob("*") if path.is_file() and path.parent != out]
    return sum(path.stat().st_size for path in kept if path not in named)


def grow(out: Path, upto: int, **options: Any) -> None:
    """Versions up to this one, each replacing the one picture there is."""
    for state in range(upto):
        build([record("a", "red", "x" * 500, state=state)], out, replace=True, **options)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Six versions, 0 to 5."""
    grow(tmp_path / "x.index", 5)
    assert versions(tmp_path / "x.index") == [0, 1, 2, 3, 4, 5]
    return tmp_path / "x.index"


@pytest.fixture
def dates(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the next commits say of when they were made, the last for all that follow."""
    left = ["2001-01-01T00:00:00+00:00"]
    monkeypatch.setattr(commit_module, "_now", lambda: left.pop(0) if len(left) > 1 else left[0])
    return left


def collected(out: Path, keeping: Keeping, now: float | None = None) -> int:
    clock = time.time if now is None else lambda: now
    return Sweeper(Fs(), out, clock=clock).collect(read_manifest(out), keeping)


def test_without_a_limit_sixteen_are_kept(tmp_path: Path) -> None:
    out, fingerprint = tmp_path / "x.index", ColourEncoder().fingerprint
    with IndexWriter(out, fingerprint, keeping=Keeping(100)) as writer:
        for _ in range(KEEP_VERSIONS + 2):
            writer.commit()
    with IndexWriter(out, fingerprint):
        pass
    assert versions(out) == [*range(KEEP_VERSIONS + 3)]
    with IndexWriter(out, fingerprint) as writer:
        writer.commit()
    assert versions(out) == [*range(4, KEEP_VERSIONS + 4)]


def test_sixteen_may_be_asked_for_without_a_commit(tmp_path: Path) -> None:
    out, fingerprint = tmp_path / "x.index", ColourEncoder().fingerprint
    with IndexWriter(out, fingerprint, keeping=Keeping(100)) as writer:
        for _ in range(KEEP_VERSIONS + 2):
            writer.commit()
    with IndexWriter(out, fingerprint, keeping=Keeping(KEEP_VERSIONS)) as writer:
        pass
    assert writer.collected == 3
    assert versions(out) == [*range(3, KEEP_VERSIONS + 3)]


def test_a_number_of_versions_is_kept(out: Path) -> None:
    report = build([record("b", "blue")], out, keeping=Keeping(3))
    assert (versions(out), report.collected) == ([4, 5, 6], 4)
    assert build([record("c", "green")], out, keeping=Keeping(1)).collected == 3
    assert versions(out) == [7]
    assert taken(out) == 0
    with opened(out) as snapshot:
        assert len(ids(snapshot, "red")) == 3
    with pytest.raises(NotFoundError, match="version 5 is not kept; kept are 7"):
        rollback(out, 5)


def test_a_build_of_many_commits_keeps_to_it_while_it_replaces(out: Path) -> None:
    rows = [record(f"k{i}", "red", f"was {i}") for i in range(6)]
    build(rows, out)
    rows = [record(f"k{i}", "blue", f"is {i}") for i in range(6)]
    build(rows, out, replace=True, segment_rows=1, batch_size=1, keeping=Keeping(1))
    assert len(versions(out)) == 1
    with opened(out) as snapshot:
        assert set(ids(snapshot, "blue")) == {"a", *(f"k{i}" for i in range(6))}


def test_versions_go_by_age(tmp_path: Path, dates: list[str]) -> None:
    out = tmp_path / "x.index"
    dates[:] = [f"2001-01-{day:02}T12:00:00+00:00" for day in (1, 1, 5, 9, 13, 17)]
    grow(out, 5)
    on_the_18th = 979_776_000.0  # 2001-01-18, 00:00
    assert collected(out, Keeping(days=16.5), on_the_18th) == 0, "exactly as old is not older"
    assert collected(out, Keeping(days=12), on_the_18th) == 3
    assert versions(out) == [3, 4, 5]
    assert collected(out, Keeping(days=0), on_the_18th + 4000 * DAY) == 2
    assert versions(out) == [5], "the current one stays, however old"


def test_age_is_asked_of_the_clock_at_every_commit(tmp_path: Path, dates: list[str]) -> None:
    out = tmp_path / "x.index"
    grow(out, 3)
    dates[0] = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    assert build([record("b", "blue")], out, keeping=Keeping(days=30)).collected == 4
    assert build([record("c", "green")], out, keeping=Keeping(days=30)).collected == 0
    assert versions(out) == [4, 5]


def test_a_wrong_clock_takes_no_younger_version_along(tmp_path: Path, dates: list[str]) -> None:
    out = tmp_path / "x.index"
    young, odd = "2001-01-10T00:00:00+00:00", "1970-01-01T00:00:00+00:00"
    dates[:] = [odd, odd, young, odd, "no date", young]
    grow(out, 5)
    assert collected(out, Keeping(days=1), 979_084_800.0 + DAY / 2) == 2  # 2001-01-10, 12:00
    assert versions(out) == [2, 3, 4, 5]
    assert collected(out, Keeping(days=1), math.inf) == 2
    assert versions(out) == [4, 5], "of one without a date nobody knows that it is old"


def test_versions_go_by_size(out: Path, tmp_path: Path) -> None:
    room = {}
    for count in range(1, 7):
        copy = shutil.copytree(out, tmp_path / f"{count}.index")
        collected(copy, Keeping(count))
        room[count] = taken(copy)
    assert (room[1], room[6]) == (0, taken(out))
    assert [*room.values()] == sorted({*room.values()}), "each takes room of its own"
    for count in range(6, 1, -1):
        assert collected(out, Keeping(bytes=room[count])) == 0, "all of it has room"
        assert collected(out, Keeping(bytes=room[count] - 1)) == 1, "the oldest has none"
        assert versions(out) == [*range(7 - count, 6)]
    assert collected(out, Keeping(bytes=0)) == 0, "the current one is no older version"
    assert taken(out) == 0


def test_what_the_current_version_shares_counts_for_none(tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    build([record(f"k{i}", "red", "x" * 2000) for i in range(8)], out)
    build([record("z", "blue")], out)
    large = sum(file.size for file in read_manifest(out).files().values())
    shared = taken(out)
    assert shared < large / 2
    assert collected(out, Keeping(bytes=shared)) == 0
    optimize(out)  # now it is the older versions' own
    assert taken(out) > 2 * shared
    assert collected(out, Keeping(bytes=2 * shared)) == 3
    assert versions(out) == [3]


def test_any_limit_is_enough(tmp_path: Path, dates: list[str]) -> None:
    out = tmp_path / "x.index"
    dates[:] = [f"2001-01-{day:02}T12:00:00+00:00" for day in (1, 1, 5, 9, 13, 17)]
    grow(out, 5)
    on_the_18th, plenty = 979_776_000.0, 1 << 40
    assert collected(out, Keeping(5, days=100, bytes=plenty), on_the_18th) == 1
    assert collected(out, Keeping(5, days=14, bytes=plenty), on_the_18th) == 1
    assert collected(out, Keeping(5, days=14, bytes=taken(out) - 1), on_the_18th) == 1
    assert versions(out) == [3, 4, 5]


def test_every_way_to_commit_is_told(out: Path) -> None:
    deleted = delete_items(out, ["a"], keeping=Keeping(4))
    assert (versions(out), deleted.collected) == ([3, 4, 5, 6], 3)
    editor = Editor(out, ColourEncoder(), options=build_options(Keeping(2)))
    editor.put([record("b", "blue")])
    assert versions(out) == [6, 7]
    editor.put([record("c", "green")])
    editor.delete(["b"])
    assert versions(out) == [8, 9]
    done = optimize(out, OptimizeOptions(keeping=Keeping(1)))
    assert (versions(out), done.collected) == ([9], 1), "small segments were merged before"


def build_options(keeping: Keeping) -> Any:
    from indexer.ingest.options import BuildOptions

    return BuildOptions(keeping=keeping)


def test_nothing_to_commit_is_no_reason_to_keep_more(out: Path) -> None:
    same = [record("a", "red", "x" * 500, state=4)]
    assert build(same, out).collected == 0
    assert build(same, out, keeping=Keeping(4)).collected == 2
    assert versions(out) == [2, 3, 4, 5]
    delete_items(out, ["nobody"], keeping=Keeping(3), dry_run=True)
    assert versions(out) == [2, 3, 4, 5]
    assert delete_items(out, ["nobody"], keeping=Keeping(3)).collected == 1
    assert versions(out) == [3, 4, 5]


def test_a_writer_that_failed_collects_nothing(out: Path) -> None:
    fingerprint = read_manifest(out).fingerprint
    with pytest.raises(RuntimeError), IndexWriter(out, fingerprint, keeping=Keeping(1)):
        raise RuntimeError
    assert versions(out) == [0, 1, 2, 3, 4, 5]


def test_a_damaged_version_keeps_what_it_may_need(out: Path) -> None:
    (out / MANIFESTS / "00000003.json").write_bytes(b"{")
    for keeping in (Keeping(days=0), Keeping(bytes=0), Keeping(4)):
        assert collected(out, keeping, time.time() + DAY) == 0
    assert collected(out, Keeping(2)) == 4
    assert versions(out) == [4, 5]


@pytest.mark.parametrize(
    "limit", [{"versions": 0}, {"days": -1}, {"days": math.nan}, {"bytes": -1}]
)
def test_a_limit_out_of_range_is_refused(limit: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="at least"):
        Keeping(**limit)
