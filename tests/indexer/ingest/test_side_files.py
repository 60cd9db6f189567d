"""Files beside an index: nothing is replaced or removed there that no build made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from indexes import build, record, reject

from indexer.ingest.side_files import (
    journal_path,
    rejects_path,
    require_ours,
    stamps_path,
)
from indexer.maintain.edit import delete_items
from indexer.maintain.purge import purge
from models.errors import StoreError

THEIRS = [b"a letter", b"\x00" * 64, b'{"my": "notes"}\n', b"\xff\xd8\xff\xe0 a photograph"]


def beside(root: Path) -> list[Path]:
    return [rejects_path(root), stamps_path(root), journal_path(root)]


@pytest.mark.parametrize("theirs", THEIRS)
@pytest.mark.parametrize("number", range(3))
def test_a_build_stops_at_what_is_not_its_own(tmp_path: Path, theirs: bytes, number: int) -> None:
    root = tmp_path / "x.index"
    file = beside(root)[number]
    file.write_bytes(theirs)
    with pytest.raises(StoreError, match=r"is in the way") as caught:
        build([record("a", "red"), reject("b")], root)
    assert file.name in caught.value.message
    assert caught.value.hint is not None
    assert "move it away" in caught.value.hint
    assert file.read_bytes() == theirs
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([root.name, file.name])
    file.unlink()
    assert build([record("a", "red"), reject("b")], root).added == 1


@pytest.mark.parametrize("number", range(3))
def test_directories_and_links_are_not_ours(tmp_path: Path, number: int) -> None:
    root = tmp_path / "x.index"
    file = beside(root)[number]
    file.mkdir()
    with pytest.raises(StoreError, match="is in the way"):
        require_ours(root, rejects_path(root))
    file.rmdir()
    file.symlink_to(tmp_path / "somewhere")
    with pytest.raises(StoreError, match="is in the way"):
        build([record("a", "red")], root)
    assert file.is_symlink()


def test_a_named_rejects_file_is_looked_at_too(tmp_path: Path) -> None:
    named = tmp_path / "photo.jpg"
    named.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(StoreError, match=r"photo\.jpg is in the way") as caught:
        build([record("a", "red")], tmp_path / "x.index", rejects=named)
    assert caught.value.hint == "move it away, or name another with --rejects"
    assert named.read_bytes() == b"\xff\xd8\xff"


def test_own_files_are_replaced(tmp_path: Path) -> None:
    root = tmp_path / "x.index"
    build([record("a", "red"), reject("b")], root)
    journal_path(root).write_bytes(b"diptych resume 0" + bytes(99))  # of another release
    stamps_path(root).write_bytes(b"dipt")  # cut off
    build([record("a", "red"), reject("c")], root)
    [line] = rejects_path(root).read_text().splitlines()
    assert json.loads(line)["key"] == "c"
    journal_path(root).write_bytes(b"")
    build([record("a", "red")], root)
    assert not rejects_path(root).exists()


def test_through_a_link_the_files_lie_beside_the_index_and_are_purged(tmp_path: Path) -> None:
    root = tmp_path / "disk" / "x.index"
    root.parent.mkdir()
    link = tmp_path / "link"
    link.symlink_to(root)
    root.mkdir()
    build([record("a", "red"), record("b", "blue"), reject("b#x"), reject("c")], link)
    assert rejects_path(link) == rejects_path(root)
    assert rejects_path(root).exists()
    # of an earlier release, which put them beside the link
    old = tmp_path / "link.rejects.jsonl"
    old.write_bytes(rejects_path(root).read_bytes())
    (tmp_path / "link.stamps").write_bytes(b"diptych stamps 1 and more")
    (tmp_path / "link.resume").write_bytes(b"somebody else's")
    stamps_path(root).write_bytes(b"diptych stamps 1 and more")
    delete_items(link, ["b"])
    assert purge(link).rejects == 2
    for file in (old, rejects_path(root)):
        [line] = file.read_text().splitlines()
        assert json.loads(line)["key"] == "c"
    names = {path.name for path in (*tmp_path.iterdir(), *root.parent.iterdir())}
    assert not {"link.stamps", "x.index.stamps"} & names
    assert (tmp_path / "link.resume").read_bytes() == b"somebody else's"
