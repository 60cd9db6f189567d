"""Replacing a file whole: nothing beside it is touched, and nothing is left there."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.atomic import replace_file


def test_a_file_is_replaced_and_its_neighbours_are_not(tmp_path: Path) -> None:
    theirs = tmp_path / ".result.json.partial"
    theirs.write_text("mine")
    for data in (b"one", b"two"):
        replace_file(tmp_path / "result.json", data)
        assert (tmp_path / "result.json").read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == [theirs.name, "result.json"]
    assert theirs.read_text() == "mine"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "result.json").mkdir()
    with pytest.raises(OSError, match=r"result\.json"):
        replace_file(tmp_path / "result.json", b"one")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
