"""A snapshot replaced under readers: swaps, reference counts, damaged successors."""

from __future__ import annotations

import gc
import sqlite3
import threading
import time
import weakref
from pathlib import Path

import indexes
import pytest
from fakes import ColourEncoder
from indexes import NAMES, build, record

from indexer.search import holder as holder_module
from indexer.search.holder import SnapshotHolder
from indexer.search.options import SearchOptions
from indexer.search.snapshot import Snapshot
from models.errors import EncoderMismatchError, IndexCorruptError, IndexNotFoundError, StoreError

FINGERPRINT = ColourEncoder().fingerprint


def generation(path: Path, number: int) -> None:
    """Commit one version in which every picture says that it is of this generation."""
    rows = [record(f"p{i}", NAMES[i], "red", generation=number) for i in range(4)]
    build(rows, path, relevance=False)


def generations(snapshot: Snapshot) -> set[int]:
    query = ColourEncoder().embed_texts([ColourEncoder().prepare_text("red")])
    [hits] = snapshot.search(query, SearchOptions(k=10))
    assert len(hits) == 4
    return {int(hit.item.attributes["generation"]) for hit in hits}


def is_closed(snapshot: Snapshot) -> bool:
    try:
        snapshot.item("p0")
    except sqlite3.ProgrammingError:
        return True
    return False


def damage(path: Path) -> Path:
    """Flip a bit of the newest segment's vectors."""
    file = max((path / "segments").glob("*-image-*/vectors.npy"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    generation(tmp_path / "x.index", 1)
    return tmp_path / "x.index"


def test_nothing_new_is_not_reopened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SnapshotHolder(path, fingerprint=FINGERPRINT) as held:
        monkeypatch.delattr(holder_module, "open_snapshot")
        assert held.refresh() is False
        assert held.version == 1


def test_a_newer_version_is_taken_up_and_the_old_one_closes_after_its_reader(path: Path) -> None:
    with SnapshotHolder(path, fingerprint=FINGERPRINT) as held:
        with held.use() as before:
            generation(path, 2)
            assert held.refresh() is True
            assert held.version == 2
            with held.use() as after:
                assert generations(after) == {2}
            assert not is_closed(after), "the holder keeps it open between readers"
            assert generations(before) == {1}, "a reader keeps what it took"
            with held.use() as again:
                assert again is after
        assert is_closed(before)
    assert is_closed(after)


def test_nested_readers_close_a_version_once_all_left(path: Path) -> None:
    held = SnapshotHolder(path, fingerprint=FINGERPRINT)
    with held.use() as one, held.use() as other:
        assert one is other
        held.close()
        held.close()
        assert not is_closed(one)
        with pytest.raises(StoreError, match="no longer served"), held.use():
            pass
    assert is_closed(one)
    with pytest.raises(StoreError):
        held.refresh()


def test_a_reader_that_raises_lets_go(path: Path) -> None:
    held = SnapshotHolder(path, fingerprint=FINGERPRINT)
    with pytest.raises(ZeroDivisionError), held.use() as snapshot:
        raise ZeroDivisionError
    held.close()
    assert is_closed(snapshot)


def test_a_damaged_version_is_refused_and_the_old_one_serves(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SnapshotHolder(path, fingerprint=FINGERPRINT) as held:
        generation(path, 2)
        file = damage(path)
        with pytest.raises(IndexCorruptError, match=r"vectors\.npy"):
            held.refresh()
        with held.use() as snapshot:
            assert generations(snapshot) == {1}
        whole, opened = bytearray(file.read_bytes()), 0
        whole[-1] ^= 1
        file.write_bytes(whole)  # restored: found out half a minute later, not at every poll

        def count(*arguments: object, **named: object) -> Snapshot:
            nonlocal opened
            opened += 1
            return indexes.open_snapshot(*arguments, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(holder_module, "open_snapshot", count)
        with pytest.raises(IndexCorruptError, match=r"vectors\.npy"):
            held.refresh()
        assert opened == 0
        monkeypatch.setattr(holder_module.time, "monotonic", lambda: float("inf"))
        assert held.refresh() is True
        assert (opened, held.version) == (1, 2)


def test_a_version_after_a_damaged_one_is_taken_up_at_once(path: Path) -> None:
    with SnapshotHolder(path, fingerprint=FINGERPRINT) as held:
        whole = (path / "CURRENT").read_bytes()
        (path / "CURRENT").write_bytes(whole[:-8] + b"0000000\n")
        with pytest.raises(IndexCorruptError, match=r"00000001\.json"):
            held.refresh()
        (path / "CURRENT").write_bytes(whole)
        generation(path, 2)
        assert held.refresh() is True
        assert held.version == 2


def test_what_warming_raises_refuses_the_version(path: Path) -> None:
    seen: list[Snapshot] = []

    def warm(snapshot: Snapshot) -> None:
        seen.append(snapshot)
        generations(snapshot)
        if snapshot.version == 2:
            raise RuntimeError("cold")

    with SnapshotHolder(path, fingerprint=FINGERPRINT, warm=warm) as held:
        generation(path, 2)
        with pytest.raises(RuntimeError, match="cold"):
            held.refresh()
        assert held.version == 1
        assert [is_closed(snapshot) for snapshot in seen] == [False, True]
        generation(path, 3)
        assert held.refresh() is True


def test_another_encoder_pair_or_no_index_is_refused(path: Path) -> None:
    other = ColourEncoder(name="others").fingerprint
    with pytest.raises(EncoderMismatchError):
        SnapshotHolder(path, fingerprint=other)
    with SnapshotHolder(path, fingerprint=FINGERPRINT) as held:
        path.rename(path.with_name("gone"))
        with pytest.raises(IndexNotFoundError):
            held.refresh()
        with held.use() as snapshot:
            assert generations(snapshot) == {1}


def test_fifty_swaps_under_readers_lose_no_search_and_leak_nothing(path: Path) -> None:
    swaps, threads = 50, 6
    heads = {1: (path / "CURRENT").read_bytes()}
    generation(path, 2)
    heads[2] = (path / "CURRENT").read_bytes()
    taken: list[weakref.ref[Snapshot]] = []
    before_all = len(open_files())
    held = SnapshotHolder(
        path, fingerprint=FINGERPRINT, warm=lambda new: taken.append(weakref.ref(new))
    )
    errors: list[BaseException] = []
    seen: list[set[int]] = [set() for _ in range(threads)]
    answers = [0] * threads
    done = threading.Event()

    def read(number: int) -> None:
        try:
            while not done.is_set():
                with held.use() as snapshot:
                    found = generations(snapshot)
                    assert found == {snapshot.version}, "an answer mixes two versions"
                    seen[number] |= found
                    answers[number] += 1
                del snapshot
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
    for reader in readers:
        reader.start()
    counts = []
    try:
        for swap in range(swaps):
            version = 1 + swap % 2
            # a version of its own for each swap would grow the index, and with it the descriptors
            (path / "next").write_bytes(heads[version])
            (path / "next").replace(path / "CURRENT")
            before = sum(answers)
            assert held.refresh() is True
            assert held.version == version
            while sum(answers) < before + threads and not errors:
                time.sleep(0.001)
            counts.append(len(open_files()))
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert errors == []
    assert set().union(*seen) == {1, 2}
    gc.collect()
    assert [one() is None for one in taken] == [True] * swaps + [False]
    # at most one version per reader and the held one, of four segments with two files each
    assert max(counts) <= before_all + 8 * (threads + 1)
    held.close()
    gc.collect()
    assert not [name for name in open_files() if name.startswith(f"{path}/")]


def open_files() -> list[str]:
    names = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(link.readlink()))
        except OSError:  # the one that lists the directory
            continue
    return names
