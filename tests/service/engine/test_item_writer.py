"""Puts that come at once share commits, and each caller learns what became of its own."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakes import ColourEncoder
from indexes import build, ids, record

from indexer.format.manifest import read_manifest
from indexer.maintain.edit import Editor, PutReport
from indexer.search.holder import SnapshotHolder
from indexer.store.writer import IndexWriter
from models.errors import DeadlineError, IndexLockedError
from models.sources.records import Record
from service.engine import deadline
from service.engine.item_writer import ItemWriter, outcome

ENCODER = ColourEncoder()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    build([record("old", "red", "old"), record("same", "blue")], tmp_path / "x.index")
    return tmp_path / "x.index"


def all_at_once(
    path: Path, puts: list[list[Record]], *, patience_s: float = 20.0
) -> list[PutReport | BaseException]:
    """Puts from as many threads while another program writes, which ends when all of them wait."""
    with SnapshotHolder(path, fingerprint=ENCODER.fingerprint) as held:
        writer = ItemWriter(Editor(path, ENCODER), held, "x", patience_s=patience_s)
        with ThreadPoolExecutor(len(puts)) as pool:
            with IndexWriter(path, ENCODER.fingerprint):
                futures = [pool.submit(writer.put, some) for some in puts]
                time.sleep(0.3)
            found = [future.exception() or future.result() for future in futures]
        with held.use() as snapshot:
            assert snapshot.version == read_manifest(path).version, "seen before it is answered"
    return found


def test_puts_in_flight_share_a_commit(path: Path) -> None:
    bad = Record("bad", "u:bad", b"no picture", {})
    puts = [[record(f"n{n}", "green", f"number {n}")] for n in range(12)]
    puts += [[record("old", "black", "newer")], [bad], [record("a", "red"), record("b", "red")]]
    before = read_manifest(path).version
    reports = all_at_once(path, puts)
    # the first alone, or with those that were there, and all the others
    assert read_manifest(path).version - before <= 3
    told = [one for one in reports if isinstance(one, PutReport)]
    assert len(told) == len(puts)
    assert [outcome(one) for one in told[:14]] == ["added"] * 12 + ["updated", "refused"]
    assert [[one.key for one in report.refused] for report in told] == [[]] * 13 + [["bad"], []]
    assert (told[14].added, told[14].updated) == (2, 0)
    assert sum(report.added for report in told) == 14
    with SnapshotHolder(path, fingerprint=ENCODER.fingerprint) as held, held.use() as snapshot:
        assert {f"n{n}" for n in range(12)} <= set(ids(snapshot, "green"))
        assert snapshot.item("old").text == "newer"


def test_puts_of_one_id_keep_their_order_of_commits(path: Path) -> None:
    reports = all_at_once(path, [[record("one", "green", f"number {n}")] for n in range(4)])
    told = [one for one in reports if isinstance(one, PutReport)]
    assert sorted(outcome(one) for one in told) == ["added", "updated", "updated", "updated"]
    assert len({one.version for one in told}) == 4


def test_who_waits_learns_that_another_program_writes(path: Path) -> None:
    puts = [[record(f"n{n}", "green")] for n in range(4)]
    before = read_manifest(path).version
    reports = all_at_once(path, puts, patience_s=0.0)
    assert all(isinstance(one, IndexLockedError) for one in reports)
    assert read_manifest(path).version == before


def test_a_put_whose_time_passes_while_it_waits_is_withdrawn(path: Path) -> None:
    with SnapshotHolder(path, fingerprint=ENCODER.fingerprint) as held:
        writer = ItemWriter(Editor(path, ENCODER), held, "x", patience_s=20.0)

        def hurried() -> None:
            with deadline.until(time.monotonic() + 0.1):
                writer.put([record("late", "green")])

        def patient() -> PutReport:
            with deadline.until(math.inf):
                return writer.put([record("first", "green")])

        with ThreadPoolExecutor(2) as pool, IndexWriter(path, ENCODER.fingerprint) as other:
            first = pool.submit(patient)
            time.sleep(0.2)
            late = pool.submit(hurried)
            with pytest.raises(DeadlineError):
                late.result()
            other.close()
            assert outcome(first.result()) == "added"
        with held.use() as snapshot:
            assert "late" not in ids(snapshot, "green")
