"""What a put, a delete and a refresh read of an index: what they touch, not what is there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from clustered import item
from fakes import ColourEncoder
from indexes import build, ids, opened, record

from indexer.format import integrity
from indexer.format.items import NewRow
from indexer.format.manifest import read_manifest
from indexer.maintain.edit import Editor
from indexer.search.holder import SnapshotHolder
from indexer.store.writer import IndexWriter
from models.errors import IndexCorruptError

ROWS, THUMBNAIL = 3000, 4000


def bytes_read() -> int:
    """By this process, through read calls."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def settle() -> None:
    """Wait until a write would show in the times of files written just now."""
    time.sleep(0.06)


@pytest.fixture(scope="module")
def encoder() -> ColourEncoder:
    return ColourEncoder()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, encoder: ColourEncoder) -> Path:
    """An index of 15 MB in one segment."""
    path = tmp_path_factory.mktemp("costs") / "x.index"
    rng = np.random.default_rng(0)
    vectors_ND = rng.standard_normal((ROWS, encoder.dim)).astype(np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    build([record("seed", "red", "a red thing")], path, encoder)
    with IndexWriter(path, encoder.fingerprint) as writer:
        segment = writer.new_segment("image")
        rows = [
            NewRow(f"image-{n}", item("image", n, {}), os.urandom(THUMBNAIL)) for n in range(ROWS)
        ]
        segment.add(vectors_ND, rows)
        writer.commit([segment])
    settle()
    return path


@contextmanager
def reads_at_most(share: float, path: Path) -> Iterator[None]:
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    before = bytes_read()
    yield
    assert bytes_read() - before < share * size


def test_edits_and_refreshes_read_what_they_touch(large: Path, encoder: ColourEncoder) -> None:
    editor = Editor(large, encoder)
    with SnapshotHolder(large, fingerprint=encoder.fingerprint) as held:
        steps: list[Callable[[], object]] = [
            lambda: editor.put([record("one", "blue", "one")]),
            held.refresh,
            lambda: editor.put([record("one", "green", "again"), record("two", "blue")]),
            held.refresh,
            lambda: editor.delete(["two"]),
            held.refresh,
        ]
        for step in steps:
            with reads_at_most(0.03, large):
                step()
            settle()
        with held.use() as snapshot:
            assert "one" in ids(snapshot, "green")
            assert "two" not in ids(snapshot, "blue")


def test_an_editor_reads_an_index_once(large: Path, encoder: ColourEncoder) -> None:
    """Also where nobody holds it open."""
    integrity.VERIFIED.clear()
    editor = Editor(large, encoder)
    before = bytes_read()
    editor.put([record("three", "blue")])
    assert bytes_read() - before > ROWS * THUMBNAIL  # the first use looks at everything
    settle()
    with reads_at_most(0.03, large):
        editor.put([record("four", "blue")])


def test_versions_share_the_segments_they_have_in_common(
    large: Path, encoder: ColourEncoder
) -> None:
    settle()
    with SnapshotHolder(large, fingerprint=encoder.fingerprint) as held, held.use() as before:
        Editor(large, encoder).put([record("five", "white")])
        settle()
        assert held.refresh()
        with held.use() as after:
            pairs = zip(before.opened.segments, after.opened.segments, strict=False)
            assert next(pairs)[0].entry.rows > 0
            assert all(one is other for one, other in pairs if one.entry.id == other.entry.id)
            assert ids(after, "white", 1) == ["five"]
    with opened(large) as alone:  # closed with the last that held them, and opened anew
        assert ids(alone, "white", 1) == ["five"]


@pytest.mark.parametrize("how", ["written", "written with its times put back", "replaced"])
def test_a_file_that_changed_is_read_again(
    tmp_path: Path, encoder: ColourEncoder, how: str
) -> None:
    path = tmp_path / "x.index"
    build([record("a", "red"), record("b", "blue")], path, encoder)
    settle()
    with SnapshotHolder(path, fingerprint=encoder.fingerprint):
        entry = read_manifest(path).segments[0]
        file = path / "segments" / entry.id / "vectors.npy"
        before, data = file.stat(), bytearray(file.read_bytes())
        data[-1] ^= 1
        if how == "replaced":
            (path / "other").write_bytes(data)
            os.utime(path / "other", ns=(before.st_atime_ns, before.st_mtime_ns))
            (path / "other").replace(file)
        else:
            file.write_bytes(data)
        if "times" in how:
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(IndexCorruptError, match="vectors"):
            opened(path)
        with pytest.raises(IndexCorruptError, match="vectors"):
            Editor(path, encoder).put([record("c", "red")])


def test_what_was_written_a_moment_ago_is_not_taken_as_read(
    tmp_path: Path, encoder: ColourEncoder
) -> None:
    """Within a tick of the kernel's clock a second write leaves no trace in the times."""
    path = tmp_path / "x.index"
    build([record("a", "red")], path, encoder)
    file = next((path / "segments").glob("*/vectors.npy"))
    data = file.read_bytes()
    for bit in (1, 2, 4, 8):
        file.write_bytes(data)
        opened(path).close()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ bit]))
        with pytest.raises(IndexCorruptError, match="vectors"):
            opened(path)
