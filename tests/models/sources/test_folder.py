"""The folder reader: order, sidecars, and every kind of thing that is not a plain picture."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from fakes import solid

from models.sources import Record, Reject, open_source
from models.sources.files import MAX_IMAGE_BYTES

RED = solid("red")


def rows_of(folder: Path | str, **fields: str) -> list[Record | Reject]:
    return list(open_source(str(folder), **fields))


def records(folder: Path, **fields: str) -> dict[str, Record]:
    return {row.key: row for row in rows_of(folder, **fields) if isinstance(row, Record)}


def write(raw: bytes) -> None:
    Path(os.fsdecode(raw)).write_bytes(RED)


def rejects(folder: Path) -> dict[str, str]:
    return {row.key: row.code for row in rows_of(folder) if isinstance(row, Reject)}


def test_order_is_stable_and_nothing_but_pictures_is_read(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/c.webp", "sub/deep/d.gif", "z.tiff", "notes.txt", "x.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(RED)
    keys = [row.key for row in rows_of(tmp_path)]
    assert keys == ["a.JPG", "b.png", "z.tiff", "sub/c.webp", "sub/deep/d.gif"]
    assert [row.key for row in rows_of(tmp_path)] == keys
    source = open_source(str(tmp_path))
    assert (source.kind, source.count(), source.name) == ("folder", 5, str(tmp_path))


def test_text_beside_a_picture_is_one_caption_a_line(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(RED)
    (tmp_path / "cat.txt").write_bytes("\ufeffA cat.\r\n\n  Eine Katze. \n".encode())
    assert records(tmp_path)["cat.png"].texts == {"und": ("A cat.", "Eine Katze.")}


def test_json_beside_a_picture(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(RED)
    (tmp_path / "cat.json").write_text(
        '{"captions": {"en": "A cat.", "zh": ["猫"]}, "label": "cat", "attributes": {"year": 2020}}'
    )
    record = records(tmp_path)["cat.png"]
    assert record.texts == {"en": ("A cat.",), "zh": ("猫",)}
    assert (record.label, record.attributes) == ("cat", {"year": 2020})
    assert records(tmp_path, text_field="captions.zh")["cat.png"].texts == {"zh": ("猫",)}


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("cat.txt", b"\xff\xfe", "not-utf8"),
        ("cat.json", b"{broken", "bad-json"),
        ("cat.json", b'{"caption": 5}', "bad-caption"),
        ("cat.json", b"{" + b" " * 2**20 + b"}", "file-too-large"),
    ],
)
def test_a_broken_sidecar_costs_the_caption_not_the_picture(
    tmp_path: Path, name: str, content: bytes, code: str
) -> None:
    (tmp_path / "cat.png").write_bytes(RED)
    (tmp_path / name).write_bytes(content)
    assert records(tmp_path)["cat.png"].texts == {}
    assert records(tmp_path)["cat.png"].image == RED
    assert rejects(tmp_path) == {name: code}


def test_an_empty_sidecar_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(RED)
    (tmp_path / "cat.txt").touch()
    assert rejects(tmp_path) == {}


def test_everything_that_is_not_a_plain_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(RED)
    (tmp_path / "empty.jpg").touch()
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)  # sparse: costs no disk
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("good.png")
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "README").symlink_to("/etc/hostname")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        found = rejects(tmp_path)
    assert found == {
        "empty.jpg": "empty-file",
        "huge.jpg": "file-too-large",
        "pipe": "not-a-regular-file",
        "pipe.jpg": "not-a-regular-file",
        "s": "not-a-regular-file",
        "link.jpg": "symlink-skipped",
        "dangling.jpg": "symlink-skipped",
        "loop": "symlink-skipped",
        "self": "symlink-skipped",
    }
    assert list(records(tmp_path)) == ["good.png"]


def test_a_sidecar_reached_through_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(RED)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "cat.txt").symlink_to("secret")
    assert rejects(tmp_path) == {"cat.txt": "symlink-skipped"}
    assert records(tmp_path)["cat.png"].texts == {}


def test_hidden_things_are_passed_over_in_silence(tmp_path: Path) -> None:
    for name in (
        ".hidden.jpg",
        ".git/a.jpg",
        ".thumbnails/b.jpg",
        "@eaDir/c.jpg",
        "__MACOSX/d.jpg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(RED)
    assert rows_of(tmp_path) == []
    assert open_source(str(tmp_path)).count() == 0


def test_names_that_are_not_utf8_are_usable_and_lossless(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9 #1.png"
    write(raw)
    (row,) = rows_of(tmp_path)
    assert isinstance(row, Record)
    assert row.key == "caf\\xe9 #1.png"
    assert row.uri.startswith("file:///")
    assert row.uri.isascii()
    assert unquote_to_bytes(row.uri.removeprefix("file://")) == os.fsencode(tmp_path.resolve()) + (
        b"/caf\xe9 #1.png"
    )


def test_a_key_that_two_names_share_is_refused_the_second_time(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    for name in (b"/a\xe9.png", b"/a\\xe9.png"):
        write(folder + name)
    found = rows_of(tmp_path)
    assert sorted(type(row).__name__ for row in found) == ["Record", "Reject"]
    assert rejects(tmp_path) == {"a\\xe9.png": "duplicate-key"}


def test_a_very_deep_folder_is_no_recursion(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    try:
        (tmp_path / "a.png").write_bytes(RED)
        assert "a.png" in records(tmp_path)
    finally:
        # shutil.rmtree recurses, and would overflow
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


@pytest.fixture
def unprivileged_folder() -> Iterator[Path]:
    """A folder that user `nobody` can enter; root reads everything, so root steps down."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    root = os.geteuid() == 0
    yield folder
    if root:
        os.seteuid(0)
    for path in folder.iterdir():
        path.chmod(stat.S_IRWXU)
    shutil.rmtree(folder)


def test_what_may_not_be_read_is_named(unprivileged_folder: Path) -> None:
    folder = unprivileged_folder
    (folder / "good.png").write_bytes(RED)
    (folder / "secret.png").write_bytes(RED)
    (folder / "closed").mkdir()
    (folder / "secret.png").chmod(0)
    (folder / "closed").chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    assert rejects(folder) == {"secret.png": "permission-denied", "closed/": "permission-denied"}
    assert list(records(folder)) == ["good.png"]


def test_a_picture_that_vanishes_meanwhile_is_a_reject(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(RED)
    rows = iter(open_source(str(tmp_path)))
    assert next(rows).key == "a.png"
    (tmp_path / "b.png").unlink()
    row = next(rows)
    assert isinstance(row, Reject)
    assert row.code == "file-missing"
