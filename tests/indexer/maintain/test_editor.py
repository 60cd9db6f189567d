"""The editor: small puts and deletes beside other writers."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
from fakes import ColourEncoder
from indexes import NAMES, build, ids, opened, record, scratch

from indexer.format.manifest import read_manifest
from indexer.maintain.editor import Editor
from indexer.maintain.verify import verify_index
from indexer.store.writer import IndexWriter
from models.errors import EncoderMismatchError, IndexLockedError, IndexNotFoundError


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "x.index"
    build([record(name, name, name) for name in NAMES], path, segment_rows=3)
    return path


def test_a_put_is_one_commit_and_found_at_once(out: Path) -> None:
    encoder = ColourEncoder()
    editor = Editor(out, encoder)
    many = [record(f"n{i}", NAMES[i % 8], "red", "blue") for i in range(70)]
    report = editor.put([*many, record("red", "white", "now white")])
    assert (report.added, report.updated, report.version) == (70, 1, 4)
    assert (report.images, report.texts) == (78, 148)
    assert encoder.images_embedded == 71
    manifest = read_manifest(out)
    assert (manifest.operation, len(manifest.segments)) == ("add", 8)
    with opened(out) as snapshot:
        assert "red" in ids(snapshot, "white", 12)
        assert snapshot.item("red#en/0").text == "now white"
    assert verify_index(out).ok
    assert editor.put(many).version == 4
    assert editor.put([]).version == 4


def test_what_cannot_be_stored_is_told_and_the_rest_is(out: Path) -> None:
    bad = dataclasses.replace(record("bad", "red"), image=b"no picture")
    report = Editor(out, ColourEncoder()).put(
        [bad, record("good", "red"), record("good", "blue"), record("lone\ud800", "red")]
    )
    assert (report.added, report.rejected) == (1, 3)
    assert sorted((one.key, one.code) for one in report.refused) == [
        ("bad", "image-undecodable"),
        ("good", "duplicate-id"),
        ("lone\ud800", "unusable-record"),
    ]
    assert not out.with_name("x.index.rejects.jsonl").exists()


def test_deleted_items_come_back_only_when_asked_for(out: Path) -> None:
    editor = Editor(out, ColourEncoder())
    assert editor.delete(["red", "nobody"]).missing == ["nobody"]
    again = [record("red", "red", "red")]
    assert editor.put(again).erased == 1
    assert editor.put(again, allow_erased=True).added == 1
    assert editor.put(again).unchanged == 1


def test_no_lock_is_held_between_calls_and_others_are_respected(out: Path) -> None:
    editor = Editor(out, ColourEncoder())
    editor.put([record("a", "red")])
    with IndexWriter(out, ColourEncoder().fingerprint):
        for call in (lambda: editor.put([record("b", "red")]), lambda: editor.delete(["a"])):
            with pytest.raises(IndexLockedError):
                call()
    assert editor.put([record("b", "red")]).added == 1
    assert scratch(out) == []


def test_many_threads_each_get_through_or_are_told(out: Path) -> None:
    editor = Editor(out, ColourEncoder())
    stored: list[str] = []

    def work(key: str) -> None:
        try:
            editor.put([record(key, "red")])
            stored.append(key)
        except IndexLockedError:
            pass

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored
    assert verify_index(out).ok
    with opened(out) as snapshot:
        assert {key for key in ids(snapshot, "red") if key.startswith("t")} == set(stored)


def test_it_makes_no_index_and_mixes_no_models(tmp_path: Path, out: Path) -> None:
    with pytest.raises(IndexNotFoundError):
        Editor(tmp_path / "none", ColourEncoder()).put([record("a", "red")])
    assert not (tmp_path / "none").exists()
    with pytest.raises(EncoderMismatchError):
        Editor(out, ColourEncoder(name="other")).put([record("a", "red")])
