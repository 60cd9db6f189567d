"""Deleting and going back: what is gone stays gone. Small puts and deletes beside other writers."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
from fakes import ColourEncoder
from indexes import NAMES, build, ids, opened, record, scratch

from indexer.filters.declared import parse_fields
from indexer.filters.language import parse_filter
from indexer.format.erasures import read_erasures
from indexer.format.manifest import read_manifest
from indexer.format.version import open_version
from indexer.maintain.edit import Editor, delete_items, rollback
from indexer.maintain.verify import verify_index
from indexer.store.history import history, read_version
from indexer.store.writer import IndexWriter
from models.errors import (
    EncoderMismatchError,
    IndexCorruptError,
    IndexLockedError,
    IndexNotFoundError,
    InputError,
    InvalidFilterError,
    NotFoundError,
)
from models.sources.records import Record


def rows() -> list[Record]:
    return [record(name, name, name, f"a {name} wall", year=i) for i, name in enumerate(NAMES)]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    out = tmp_path / "x.index"
    build(rows(), out, segment_rows=3, fields=parse_fields(["year:int"]))
    return out


def items(path: Path) -> set[str]:
    """Ids of everything live, after checking that the index is sound."""
    report = verify_index(path)
    assert report.ok, report.problems
    with opened(path) as snapshot:
        return {*ids(snapshot, "red"), *ids(snapshot, "red", target="texts")}


def all_of(*names: str) -> set[str]:
    return {part for name in names for part in (name, f"{name}#en/0", f"{name}#en/1")}


def test_a_picture_takes_its_captions_with_it(index: Path) -> None:
    report = delete_items(index, ["red", "blue", "nobody"])
    assert (report.removed_images, report.removed_texts) == (2, 4)
    assert (report.images, report.texts, report.erased) == (6, 12, 2)
    assert report.missing == ["nobody"]
    assert items(index) == all_of(*(set(NAMES) - {"red", "blue"}))
    manifest = read_manifest(index)
    assert (manifest.version, manifest.operation) == (report.version, "delete")
    assert "red" in read_erasures(index, manifest)
    assert "nobody" not in read_erasures(index, manifest)


def test_a_text_alone_goes_alone_and_leaves_its_picture(index: Path) -> None:
    report = delete_items(index, ["red#en/0"])
    assert (report.removed_images, report.removed_texts) == (0, 1)
    assert items(index) == all_of(*NAMES) - {"red#en/0"}
    with opened(index) as snapshot:
        picture = snapshot.item("red")
        assert picture.text == "a red wall"  # the next caption speaks for it
        assert snapshot.thumbnail("red")
        assert snapshot.vector("red")[0] == 1.0
        assert [item.id for item in snapshot.captions("red")] == ["red#en/1"]
    delete_items(index, ["red#en/1"])
    with opened(index) as snapshot:
        assert (snapshot.item("red").text, snapshot.item("red").language) == (None, None)


def test_the_words_of_a_deleted_caption_find_its_picture_no_more(tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    build([record("a", "red", "zebra crossing", "old bridge"), record("b", "blue", "bridge")], out)

    def found(word: str) -> list[str]:
        version = open_version(out)
        try:
            return sorted(
                segment.items.ids([int(row)])[int(row)]
                for segment, dead in zip(version.segments, version.dead, strict=True)
                if segment.entry.modality == "image"
                for postings in segment.items.postings([word]).values()
                for row in postings.rows_M
                if not dead[row]
            )
        finally:
            version.close()

    assert found("zebra") == ["a"]
    delete_items(out, ["a#en/0"])
    assert found("zebra") == []
    assert found("bridge") == ["a", "b"]


def test_deleting_nothing_makes_no_version(index: Path) -> None:
    assert delete_items(index, ["nobody", "", "lone\ud800", "red#en/9"]).version == 3
    assert delete_items(index).version == 3
    assert delete_items(index, ["red"]).version == 4
    report = delete_items(index, ["red"])
    assert (report.version, report.missing, report.erased) == (4, ["red"], 0)


def test_a_filter_is_resolved_once(index: Path) -> None:
    old = parse_filter({"field": "year", "lt": 3})
    dry = delete_items(index, filter=old, dry_run=True)
    assert (dry.removed_images, dry.removed_texts, dry.images) == (3, 6, 5)
    assert read_manifest(index).version == 3
    report = delete_items(index, filter=old)
    assert dataclasses.replace(report, version=3, erased=0, seconds=0) == dataclasses.replace(
        dry, dry_run=False, seconds=0
    )
    assert items(index) == all_of(*NAMES[3:])
    # what the filter would select later is nobody's business
    assert build([record("new", "red", year=1)], index).added == 1
    assert "new" in items(index)


def test_a_filter_over_texts_leaves_the_pictures(index: Path) -> None:
    wanted = parse_filter({"field": "language", "eq": "en"})
    assert delete_items(index, filter=wanted, target="texts").removed_texts == 16
    assert items(index) == set(NAMES)
    with pytest.raises(InvalidFilterError):
        delete_items(index, filter=parse_filter({"field": "size", "eq": 1}))


def test_a_rollback_brings_back_everything_but_what_was_deleted(index: Path) -> None:
    delete_items(index, ["red", "green#en/0"])
    build([record("blue", "white", "now white")], index)
    assert read_manifest(index).version == 5
    report = rollback(index, 3)
    assert (report.version, report.operation) == (6, "rollback")
    assert (report.removed_images, report.removed_texts) == (1, 3)
    assert items(index) == all_of(*NAMES) - all_of("red") - {"green#en/0"}
    with opened(index) as snapshot:
        assert snapshot.item("blue#en/0").text == "blue"
        assert snapshot.item("green").text == "a green wall"
    # ... and forward again
    rollback(index, 5)
    assert items(index) == all_of(*NAMES) - all_of("red") - {"green#en/0", "blue#en/1"}
    with opened(index) as snapshot:
        assert snapshot.item("blue#en/0").text == "now white"
    assert [one.operation for one in history(index)][:3] == ["rollback", "rollback", "build"]


def test_only_kept_and_sound_versions_can_be_gone_back_to(index: Path) -> None:
    with pytest.raises(InputError, match="current"):
        rollback(index, 3)
    for missing in (-1, 4, 99):
        with pytest.raises(NotFoundError, match="kept are 0, 1, 2, 3"):
            rollback(index, missing)
    first = next((index / "segments").glob("00000001-image-*")) / "vectors.npy"
    data = first.read_bytes()
    first.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(IndexCorruptError) as caught:
        rollback(index, 1)
    assert "vectors.npy" in caught.value.file


def test_an_older_manifest_is_vouched_for_by_those_after_it(index: Path) -> None:
    assert all(one.problem is None for one in history(index))
    path = index / "manifests" / "00000001.json"
    path.write_text(path.read_text().replace('"created": "2', '"created": "1'))
    assert [one.version for one in history(index) if one.problem] == [1]
    with pytest.raises(IndexCorruptError, match="successor"):
        rollback(index, 1)
    rollback(index, 2)


def test_edits_need_an_index_and_its_lock(tmp_path: Path, index: Path) -> None:
    for edit in (lambda path: delete_items(path, ["a"]), lambda path: rollback(path, 0)):
        with pytest.raises(IndexNotFoundError):
            edit(tmp_path / "none")
        assert not (tmp_path / "none").exists()
        with IndexWriter(index, ColourEncoder().fingerprint), pytest.raises(IndexLockedError):
            edit(index)
    assert delete_items(index, ["red"], dry_run=True).removed_images == 1


def test_old_versions_are_collected_but_not_from_under_readers(index: Path) -> None:
    with opened(index) as old:
        for number in range(20):
            build([record("red", NAMES[number % 8], f"state {number}")], index)
        kept = [one.version for one in history(index)]
        assert kept == list(range(23, 23 - 16, -1))
        assert ids(old, "red")[0] == "red"
        assert old.thumbnail("red")
    named = {
        name.split("/")[1]
        for number in kept
        for name in read_version(index, number).files()
        if name.startswith("segments/")
    }
    assert {path.name for path in (index / "segments").iterdir()} == named
    assert items(index) >= all_of(*NAMES[1:])


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


# -- a deleted caption is remembered by what it says


def captions(path: Path, key: str) -> list[str | None]:
    with opened(path) as snapshot:
        return [item.text for item in snapshot.captions(key)]


def test_a_deleted_caption_stays_out_wherever_it_comes_next(tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    build([record("a", "red", "Jane Doe, 12 Elm St", "a red thing")], out)
    delete_items(out, ["a#en/0"])
    report = build([record("a", "red", "fine", " jane  Doe, 12 Elm St", "a red thing")], out)
    assert report.erased == 1
    assert captions(out, "a") == ["fine", "a red thing"]
    build([record("a", "red", "Jane Doe, 12 Elm St", "last")], out)
    with opened(out) as snapshot:
        assert snapshot.item("a").text == "last"
    assert verify_index(out, deep=True).problems == []
    rollback(out, 1)
    assert captions(out, "a") == ["a red thing"]


def test_a_corrected_caption_takes_the_place_of_a_deleted_one(tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    build([record("a", "red", "wrong", "second")], out)
    delete_items(out, ["a#en/0"])
    report = build([record("a", "red", "corrected", "second")], out)
    assert (report.erased, captions(out, "a")) == (0, ["corrected", "second"])
    build([record("a", "red", "wrong")], out, allow_erased=True)
    assert captions(out, "a") == ["wrong"]
    assert read_manifest(out).erased is None


def test_a_caption_that_is_there_twice_goes_twice(tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    build([record("a", "red", "same", "other", "Same")], out)
    build([record("b", "red", "same")], out)
    assert delete_items(out, ["a#en/0"]).removed_texts == 2
    assert (captions(out, "a"), captions(out, "b")) == (["other"], ["same"])
    assert verify_index(out, deep=True).problems == []


def test_lists_that_hold_places_are_honoured(tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    build([record("a", "red", "first", "second")], out)
    with IndexWriter(out, ColourEncoder().fingerprint) as writer:
        writer.commit(erase=["b#en/0"], operation="delete")
    assert build([record("b", "blue", "first", "second")], out).erased == 1
    assert captions(out, "b") == ["second"]
