"""A damaged search structure: searched exactly and told, refused nowhere, rebuilt by `repair`."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from clustered import FINGERPRINT, fill, pictures, texts
from crashing import KillingFs
from victims import Victims

from indexer.format.manifest import read_manifest
from indexer.maintain.optimize import OptimizeOptions, optimize
from indexer.maintain.repair import repair
from indexer.maintain.verify import verify_index
from indexer.search.options import SearchOptions
from indexer.search.snapshot import open_snapshot

ROWS = 1200


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.index"
    fill(path, pictures(ROWS), texts(200), dead=frozenset(range(0, 90, 9)))
    report = optimize(path, OptimizeOptions(structure="hnsw", fewest=500, floor=0.8, gain=0.0))
    assert report.images.structure == "hnsw"
    return path


def structure(path: Path) -> Path:
    [file] = (path / "segments").glob("*/ann.faiss")
    return file


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "other"])
def test_it_is_searched_exactly_told_once_and_rebuilt(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    queries = texts(20, seed=9)
    with open_snapshot(path, fingerprint=FINGERPRINT) as snapshot:
        exact = snapshot.search(queries, SearchOptions(k=10, exact=True))
        assert snapshot.info().degraded == []
    file = structure(path)
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 8
        file.write_bytes(data)
    elif damage == "truncate":
        file.write_bytes(data[:-7])
    elif damage == "missing":
        file.unlink()
    else:
        file.unlink()
        file.symlink_to("/dev/zero")
    with caplog.at_level(logging.WARNING):
        snapshot = open_snapshot(path, fingerprint=FINGERPRINT)
    with snapshot:
        [told] = snapshot.info().degraded
        assert "ann.faiss: " in told
        [line] = caplog.records
        assert "searched exactly until `diptych index repair`" in line.getMessage()
        assert snapshot.search(queries, SearchOptions(k=10)) == exact
    [problem] = verify_index(path).problems
    assert problem.file.endswith("ann.faiss")
    before = read_manifest(path)
    report = repair(path)
    assert report.ok is False, "the older version that shares the file cannot be gone back to"
    assert any("again from its vectors" in one for one in report.done)
    report = repair(path, yes=True)
    assert report.ok
    with open_snapshot(path, fingerprint=FINGERPRINT) as snapshot:
        assert snapshot.info().degraded == []
        assert snapshot.search(queries, SearchOptions(k=10, exact=True)) == exact
        found = snapshot.search(queries, SearchOptions(k=10))
        hits = sum(
            len({hit.item.id for hit in one} & {hit.item.id for hit in best})
            for one, best in zip(found, exact, strict=True)
        )
        assert hits / 200 > 0.8
    after = read_manifest(path)
    assert after.live == before.live
    assert [one.ann and one.ann.recipe for one in after.segments if one.ann] == [
        one.ann and one.ann.recipe for one in before.segments if one.ann
    ]
    assert verify_index(path, deep=True).problems == []


def test_verify_deep_asks_a_structure_what_it_answers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A structure whose bytes are sound and whose answers are not."""
    assert verify_index(path, deep=True).problems == []
    from indexer.maintain import segment_checks

    monkeypatch.setattr(
        segment_checks.AnnIndex,
        "search",
        lambda self, queries, k, *_: queries[:, :k].astype(int) * 0,
    )
    whys = [one.why for one in verify_index(path, deep=True).problems]
    assert whys
    assert all("canary" in why or "recall" in why for why in whys)


def test_a_repair_killed_anywhere_while_it_rebuilds_can_be_run_again(
    path: Path, tmp_path: Path
) -> None:
    """Killed: nothing is tidied up, neither what is in `scratch/` nor what was put in place."""
    data = bytearray(structure(path).read_bytes())
    data[len(data) // 2] ^= 8
    structure(path).write_bytes(data)

    def killed_at(call: int) -> bool:
        copy = tmp_path / f"copy{call}"
        shutil.copytree(path, copy)
        # forked from a process without threads: whoever held a lock here would hold it for ever
        code = victims.run([copy, ["repair"], tmp_path / "done", tmp_path / "log", call], None)
        assert code in (0, KillingFs.CODE)
        killed = code == KillingFs.CODE
        again = repair(copy, yes=True)
        assert again.ok, again.needs
        assert verify_index(copy, deep=True).problems == []
        shutil.rmtree(copy)
        return killed

    calls = 0
    victims = Victims()
    try:
        while killed_at(calls):
            calls += 1
    finally:
        victims.close()
    assert calls > 20
