"""`indexer.format.manifest`: strict parsing, the chain CURRENT -> manifest, and refusals."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from fakes import ColourEncoder
from indexes import build, record

from indexer.files.fs import BLOCK_BYTES
from indexer.format.entries import FileEntry
from indexer.format.manifest import Head, check_encoder, parse_manifest, read_head, read_manifest
from models.errors import EncoderMismatchError, IndexCorruptError, IndexNotFoundError


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build([record("a", "red", "red"), record("b", "blue")], tmp_path / "x.index")
    build([record("a", "green")], tmp_path / "x.index")
    return tmp_path / "x.index"


def content(index: Path) -> dict[str, Any]:
    return json.loads((index / "manifests" / "00000002.json").read_bytes())


def format_1(index: Path) -> dict[str, Any]:
    """The manifest as the first release wrote it."""
    later = ("operation", "parent_sha256")
    return {key: value for key, value in content(index).items() if key not in later} | {"format": 1}


def store(index: Path, data: bytes, version: int = 2) -> None:
    """Put other bytes in place of the manifest, with a `CURRENT` that vouches for them."""
    (index / "manifests" / f"{version:08d}.json").write_bytes(data)
    head = Head(version, hashlib.sha256(data).hexdigest())
    (index / "CURRENT").write_bytes(head.encode())


def test_the_layout_on_disk(index: Path) -> None:
    text = (index / "CURRENT").read_text()
    data = (index / "manifests" / "00000002.json").read_bytes()
    assert text == f"2 {hashlib.sha256(data).hexdigest()}\n"
    manifest = content(index)
    assert manifest["format"] == 2
    assert (manifest["version"], manifest["parent"]) == (2, 1)
    assert manifest["encoder"] == ColourEncoder().fingerprint.to_dict()
    assert manifest["live"] == {"images": 2, "texts": 0}
    assert manifest["tombstones"]["count"] == 1  # the text went with its segment
    assert manifest["ann"] is None
    assert manifest["sources"] == [{"name": "list", "kind": "list"}]
    for segment in manifest["segments"]:
        for name, entry in segment["files"].items():
            stored = (index / "segments" / segment["id"] / name).read_bytes()
            assert entry == {"size": len(stored), "sha256": hashlib.sha256(stored).hexdigest()}


def test_a_manifest_survives_a_round_trip(index: Path) -> None:
    manifest = read_manifest(index)
    assert parse_manifest("again", manifest.encode()) == manifest


def change(path: str, value: object) -> Any:
    """A function that sets one field, by dotted path; `...` removes it."""

    def apply(data: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place: Any = data
        for name in parents:
            place = place[int(name)] if name.isdigit() else place[name]
        if value is ...:
            del place[last]
        else:
            place[last] = value

    return apply


@pytest.mark.parametrize(
    "spoil",
    [
        change("surprise", 1),
        change("segments.0.surprise", 1),
        change("metric", "euclidean"),
        change("metric", ...),
        change("version", "2"),
        change("version", -1),
        change("segments.0.rows", 0),
        change("segments.0.rows", 2.0),
        change("segments.0.rows", 10**30),
        change("segments.0.id", "../../etc"),
        change("segments.0.id", "a/b"),
        change("segments.0.modality", "sound"),
        change("segments.0.files", {}),
        change("segments.0.files", {"../x": {"size": 1, "sha256": "0" * 64}}),
        change("tombstones.file", "../CURRENT"),
        change("tombstones.sha256", "x"),
        change("encoder.dim", 0),
        change("encoder.dim", "9"),
        change("encoder.extra", "x"),
        change("encoder.weights_sha256", ...),
        change("live", None),
        change("index", "zz"),
        change("ann", {}),
        change("fields", []),
        change("fields", {"year": {"type": "decade", "path": "year"}}),
        change("fields", {"year": {"type": "int"}}),
        change("fields", {"a) OR 1": {"type": "int", "path": "year"}}),
        change("fields", {"year": {"type": "int", "path": "a..b"}}),
        change("fields", {"label": {"type": "str", "path": "label"}}),
        change("fields", {f"f{i}": {"type": "int", "path": "x"} for i in range(33)}),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused(index: Path, spoil: Any) -> None:
    data = content(index)
    spoil(data)
    store(index, json.dumps(data).encode())
    with pytest.raises(IndexCorruptError) as caught:
        read_manifest(index)
    assert caught.value.file == "manifests/00000002.json"
    assert caught.value.hint


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b"{"])
def test_bytes_that_are_no_manifest_are_refused(index: Path, data: bytes) -> None:
    store(index, data)
    with pytest.raises(IndexCorruptError):
        read_manifest(index)


def test_a_field_type_of_a_later_release_is_refused_as_such(index: Path) -> None:
    data = content(index) | {"fields": {"where": {"type": "geo", "path": "where"}}}
    store(index, json.dumps(data).encode())
    with pytest.raises(IndexCorruptError, match=r"does not know: where \(geo\)") as caught:
        read_manifest(index)
    assert "newer" in (caught.value.hint or "")


@pytest.mark.parametrize("future", [3, 0, "1", 1.5, 1.0, True, None])
def test_an_unknown_format_is_refused_and_left_alone(index: Path, future: object) -> None:
    data = content(index) | {"format": future, "new": {"things": 1}}
    store(index, json.dumps(data).encode())
    before = {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}
    with pytest.raises(IndexCorruptError, match="this release reads formats 1 and 2") as caught:
        read_manifest(index)
    assert "newer" in (caught.value.hint or "")
    with pytest.raises(IndexCorruptError):
        build([record("c", "white")], index)
    after = {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}
    del before[index / "LOCK"], after[index / "LOCK"]
    assert after == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2",
        "2 abc\n",
        "two {h}\n",
        "2 {h}",
        "2 {h}\n\n",
        "2 {h}\n2 {h}\n",
        " 2 {h}\n",
        "02 {h}\n",
    ],
)
def test_a_current_that_names_no_version_is_refused(index: Path, text: str) -> None:
    good = (index / "CURRENT").read_text().split()[1]
    (index / "CURRENT").write_text(text.replace("{h}", good))
    with pytest.raises(IndexCorruptError) as caught:
        read_head(index)
    assert caught.value.file == "CURRENT"


def test_a_current_that_points_to_nothing_is_refused(index: Path) -> None:
    (index / "CURRENT").write_text(f"7 {'0' * 64}\n")
    with pytest.raises(IndexCorruptError, match=r"00000007\.json: the file is missing"):
        read_manifest(index)


def test_a_manifest_under_another_version_number_is_refused(index: Path) -> None:
    store(index, (index / "manifests" / "00000001.json").read_bytes())
    with pytest.raises(IndexCorruptError, match="describes version 1"):
        read_manifest(index)


def test_a_lost_current_is_damage_not_a_fresh_start(index: Path) -> None:
    (index / "CURRENT").unlink()
    before = sorted(index.rglob("*"))
    with pytest.raises(IndexCorruptError) as caught:
        read_head(index)
    assert caught.value.file == "CURRENT"
    with pytest.raises(IndexCorruptError):
        build([record("c", "white")], index)
    assert sorted(index.rglob("*")) == before


def test_no_index_is_told_apart_from_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("missing", "file", "empty", "file/below"):
        with pytest.raises(IndexNotFoundError) as caught:
            read_manifest(tmp_path / name)
        assert caught.value.hint


def test_the_fingerprint_binds() -> None:
    ours, other = ColourEncoder().fingerprint, ColourEncoder(name="other").fingerprint
    check_encoder(ours, ours)
    with pytest.raises(EncoderMismatchError) as caught:
        check_encoder(ours, other)
    for word in ("colours", "other", "weights_sha256"):
        assert word in caught.value.message
    assert "preprocessing" not in caught.value.message


BLOCKS = "0123456789abcdef"


@pytest.mark.parametrize(
    ("size", "blocks"), [(BLOCK_BYTES + 1, 2), (2 * BLOCK_BYTES, 2), (9 * BLOCK_BYTES - 1, 9)]
)
def test_a_large_file_has_one_checksum_a_block(size: int, blocks: int) -> None:
    FileEntry(size=size, sha256="0" * 64, blocks=BLOCKS * blocks)
    for wrong in (blocks - 1, blocks + 1):
        with pytest.raises(ValueError, match="blocks"):
            FileEntry(size=size, sha256="0" * 64, blocks=BLOCKS * wrong)


def test_format_2_is_read_with_all_it_may_hold(index: Path) -> None:
    data = content(index)
    erased = {"size": 224, "sha256": "0" * 64, "file": "00000002.npy", "count": 3}
    data |= {"erased": erased, "operation": "purge"}
    store(index, json.dumps(data).encode())
    manifest = read_manifest(index)
    assert manifest.files()["erased/00000002.npy"].size == 224
    assert manifest.operation == "purge"
    assert parse_manifest("again", manifest.encode()) == manifest


@pytest.mark.parametrize(
    "extra",
    [
        {"erased": {"size": 224, "sha256": "0" * 64, "file": "00000002.npy", "count": 3}},
        {"operation": "build"},
    ],
)
def test_format_1_is_read_without_what_came_later(index: Path, extra: dict[str, Any]) -> None:
    data = format_1(index)
    store(index, json.dumps(data).encode())
    assert read_manifest(index).format == 1
    store(index, json.dumps(data | extra).encode())
    with pytest.raises(IndexCorruptError, match="format 1 knows no such field"):
        read_manifest(index)


def test_the_next_commit_upgrades_format_1_and_leaves_its_files(index: Path) -> None:
    data = format_1(index)
    store(index, json.dumps(data).encode())
    before = {path: path.read_bytes() for path in (index / "segments").rglob("*.*")}
    manifest = index / "manifests" / "00000002.json"
    before[manifest] = manifest.read_bytes()
    build([record("c", "white")], index)
    assert read_manifest(index).format == 2
    assert {path: path.read_bytes() for path in before} == before


def test_a_search_structure_comes_with_its_description(index: Path) -> None:
    data = content(index)
    data["segments"][0]["files"]["ann.faiss"] = {"size": 9, "sha256": "0" * 64}
    store(index, json.dumps(data).encode())
    with pytest.raises(IndexCorruptError, match="come together"):
        read_manifest(index)
