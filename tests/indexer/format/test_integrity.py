"""Checksums of files: what is summed, what is found, where, and what that costs in memory."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import xxhash

from indexer.files.fs import BLOCK_BYTES, FileDigest, Fs, Sums
from indexer.format import integrity
from indexer.format.entries import FileEntry
from indexer.format.integrity import open_checked, verify_file
from models.errors import IndexCorruptError, StoreError

SIZE = 2 * BLOCK_BYTES + 1000
RANDOM = random.Random(5)
DATA = RANDOM.randbytes(SIZE)


def entry(data: bytes, *, blocks: bool = True) -> FileEntry:
    digest = whole(data)
    return FileEntry(
        size=digest.size, sha256=digest.sha256, blocks=digest.blocks if blocks else None
    )


def whole(data: bytes) -> FileDigest:
    """The definition: every sum by one call over its bytes."""
    blocks = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
    sums = "".join(xxhash.xxh3_64_hexdigest(block) for block in blocks)
    return FileDigest(
        len(data), hashlib.sha256(data).hexdigest(), sums if len(blocks) > 1 else None
    )


def flipped(offset: int) -> bytes:
    data = bytearray(DATA)
    data[offset] ^= 0x10
    return bytes(data)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(DATA)
    return path


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, SIZE])
def test_sums_of_a_stream_are_those_of_the_bytes(size: int) -> None:
    data = DATA[:size]
    pieces = random.Random(size)
    sums, at = Sums(), 0
    while at < size:
        step = pieces.choice([1, 4096, 1 << 20, BLOCK_BYTES, 3 * BLOCK_BYTES])
        sums.update(data[at : at + step])
        at += step
    assert sums.digest() == whole(data)
    assert sums.digest() == whole(data), "asking changes nothing"
    assert (sums.digest().blocks is None) == (size <= BLOCK_BYTES)


def test_what_the_writer_sums_is_what_the_reader_accepts(tmp_path: Path) -> None:
    digest = Fs().write_file(tmp_path / "new", [DATA[:5], memoryview(DATA)[5:]])
    assert digest == whole(DATA) == Fs().seal_file(tmp_path / "new")
    for verify in ("fast", "full"):
        with verify_file(tmp_path, "new", FileEntry(**digest.fields()), verify=verify) as opened:  # type: ignore[arg-type]
            assert os.pread(opened.fileno(), SIZE + 1, 0) == DATA


@pytest.mark.parametrize("verify", ["fast", "full"])
@pytest.mark.parametrize("offset", [0, BLOCK_BYTES - 1, BLOCK_BYTES, SIZE - 1])
def test_a_flipped_bit_is_found_in_its_block(tmp_path: Path, verify: str, offset: int) -> None:
    (tmp_path / "big").write_bytes(flipped(offset))
    with pytest.raises(IndexCorruptError) as caught:
        verify_file(tmp_path, "big", entry(DATA), verify=verify)  # type: ignore[arg-type]
    start = offset // BLOCK_BYTES * BLOCK_BYTES
    end = min(SIZE, start + BLOCK_BYTES)
    good, bad = DATA[start:end], flipped(offset)[start:end]
    assert caught.value.file == "big"
    assert caught.value.why == (
        f"block {offset // BLOCK_BYTES} (bytes {start} to {end - 1}): xxh3 is "
        f"{xxhash.xxh3_64_hexdigest(bad)}, the manifest says {xxhash.xxh3_64_hexdigest(good)}"
    )
    assert caught.value.hint


def test_without_blocks_sha256_is_checked_either_way(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(flipped(7))
    for verify in ("fast", "full"):
        with pytest.raises(IndexCorruptError, match="sha256 is"):
            verify_file(tmp_path, "big", entry(DATA, blocks=False), verify=verify)  # type: ignore[arg-type]


def test_only_full_sees_a_change_that_the_blocks_hide(tmp_path: Path) -> None:
    """Whoever forges a file can forge XXH3 but not sha256: what the two modes promise."""
    forged = flipped(9)
    (tmp_path / "big").write_bytes(forged)
    hidden = entry(DATA).model_copy(update={"blocks": whole(forged).blocks})
    verify_file(tmp_path, "big", hidden, verify="fast").close()
    with pytest.raises(IndexCorruptError, match="sha256 is"):
        verify_file(tmp_path, "big", hidden, verify="full")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.unlink(), "the file is missing"),
        (lambda path: path.write_bytes(DATA[:-1]), f"it has {SIZE - 1} bytes"),
        (lambda path: path.write_bytes(DATA + b"x"), f"it has {SIZE + 1} bytes"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "cannot be read"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "cannot be read"),
    ],
)
def test_a_file_that_is_something_else_is_refused(
    file: Path, spoil: Callable[[Path], object], why: str
) -> None:
    spoil(file)
    with pytest.raises(IndexCorruptError, match=why):
        verify_file(file.parent, "big", entry(DATA), verify="fast")


def test_several_files_are_checked_at_once_and_the_tolerated_told(tmp_path: Path) -> None:
    names = [f"f{i}" for i in range(6)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(flipped(i) if i in (2, 4) else DATA)
    entries = {name: entry(DATA, blocks=i % 2 == 0) for i, name in enumerate(names)}
    summed: list[int] = []
    before = len(list(Path("/proc/self/fd").iterdir()))
    with open_checked(
        tmp_path, entries, verify="fast", tolerate=["f2", "f4"], on_bytes=summed.append
    ) as checked:
        assert set(checked.damage) == {"f2", "f4"}
        assert set(checked.files) == {"f0", "f1", "f3", "f5"}
        assert sum(summed) == 6 * SIZE
        taken = checked.take("f0")
        assert taken is not None
        assert checked.take("f2") is None
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    taken.close()
    with pytest.raises(IndexCorruptError, match="f2"):
        open_checked(tmp_path, entries, verify="fast", tolerate=["f4"])
    assert len(list(Path("/proc/self/fd").iterdir())) == before, "an error leaks no descriptor"


def test_every_damaged_block_is_counted(tmp_path: Path) -> None:
    data = bytearray(DATA)
    data[BLOCK_BYTES] ^= 1
    data[-1] ^= 1
    (tmp_path / "big").write_bytes(data)
    checked = open_checked(tmp_path, {"big": entry(DATA)}, verify="fast", tolerate=["big"])
    assert checked.damage["big"].why.startswith("block 1 ")
    assert checked.damage["big"].why.endswith("; 2 blocks differ")


def test_a_refusal_by_the_system_is_not_called_damage(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(integrity, "open_regular", refuse)
    with pytest.raises(StoreError, match="EMFILE") as caught:
        verify_file(file.parent, "big", entry(DATA))
    assert not isinstance(caught.value, IndexCorruptError)


def test_an_unreadable_sector_is_damage_of_that_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int, buffers: object, offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(integrity.os, "preadv", fail)
    with pytest.raises(IndexCorruptError, match="big: it cannot be read"):
        verify_file(file.parent, "big", entry(DATA), verify="fast")


def test_checking_fills_no_resident_memory(tmp_path: Path) -> None:
    size = 64 * BLOCK_BYTES
    with (tmp_path / "sparse").open("wb") as stream:
        stream.truncate(size)
    zeros = xxhash.xxh3_64_hexdigest(bytes(BLOCK_BYTES))
    sparse = FileEntry(size=size, sha256="0" * 64, blocks=zeros * 64)
    process = psutil.Process()
    verify_file(tmp_path, "sparse", sparse, verify="fast").close()  # the threads' own stacks
    before = process.memory_info().rss
    verify_file(tmp_path, "sparse", sparse, verify="fast").close()
    assert process.memory_info().rss - before < 16 << 20
