"""`indexer.files.needles` against `in`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.files import needles as module
from indexer.files.needles import Needles, windows


@given(
    st.binary(max_size=400),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 60)), max_size=12),
    st.sets(st.binary(min_size=8, max_size=20), max_size=4),
)
def test_it_finds_what_is_there_and_nothing_else(
    data: bytes, cuts: list[tuple[int, int]], others: set[bytes]
) -> None:
    needles = {data[start : start + length] for start, length in cuts} | others
    sought = {needle for needle in needles if windows(needle)}
    finder = Needles(needles)
    assert finder.count == len(sought)
    assert finder.find(data) == {needle for needle in sought if needle in data}


@pytest.mark.parametrize("needle", [b"", b"seven b", b"\0" * 4096, b"abcabcabcabc"])
def test_what_is_too_short_or_too_plain_is_left_out(needle: bytes) -> None:
    assert Needles({needle}).count == 0
    assert Needles(set()).find(b"anything at all") == set()


def test_needles_are_found_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    data = rng.randbytes(5000)
    path = tmp_path / "file"
    path.write_bytes(data)
    monkeypatch.setattr(module, "_BLOCK", 97)
    needles = {data[start : start + 150] for start in range(0, 4850, 50)} | {rng.randbytes(99)}
    found, size = Needles(needles).find_in_file(path)
    assert size == 5000
    assert len(found) == 97
    assert found == {needle for needle in needles if needle in data}
