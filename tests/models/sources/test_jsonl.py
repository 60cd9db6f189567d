"""The JSONL reader: fields, confinement to its folder, bad lines, flat memory."""

from __future__ import annotations

import base64
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from fakes import solid
from hypothesis import given
from hypothesis import strategies as st

from models.errors import SourceError
from models.sources import Record, Reject, open_source
from models.sources.files import MAX_LINE_BYTES

RED = solid("red")


def manifest(folder: Path, *lines: bytes | dict[str, Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    )
    return path


def rows_of(path: Path, **fields: str) -> list[Record | Reject]:
    return list(open_source(str(path), **fields))


def test_fields(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "tom cat.png").write_bytes(RED)
    path = manifest(
        tmp_path,
        {
            "id": 7,
            "image": "pics/tom cat.png",
            "captions": {"en": "A cat."},
            "label": "cat",
            "y": 1,
        },
        {"file_name": "./pics/tom cat.png", "title": "Tom"},
        {"key": "b64", "image_base64": base64.b64encode(RED).decode(), "text": ["x", "y"]},
        {"image_base64": "data:image/png;base64," + base64.b64encode(RED).decode()},
        {"text": "only words"},
        {"image": str(tmp_path.resolve() / "pics" / "tom cat.png"), "id": "absolute"},
    )
    found = rows_of(path)
    assert all(isinstance(row, Record) for row in found), found
    first = found[0]
    assert isinstance(first, Record)
    assert (first.key, first.label, first.attributes) == ("7", "cat", {"y": 1})
    assert first.texts == {"en": ("A cat.",)}
    assert first.uri == f"file://{tmp_path.resolve()}/pics/tom%20cat.png"
    assert [row.key for row in found[1:]] == [
        "./pics/tom cat.png",
        "b64",
        "data.jsonl:line-4",
        "data.jsonl:line-5",
        "absolute",
    ]
    assert [row.image == RED for row in found if isinstance(row, Record)] == [
        True,
        True,
        True,
        True,
        False,
        True,
    ]
    assert open_source(str(path)).count() == 6


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "bad-json"),
        (b"[1]", "bad-json"),
        (b"\xff", "not-utf8"),
        (b"{}", "no-image"),
        ({"image": 3}, "bad-path"),
        ({"image": "../outside.png"}, "path-outside"),
        ({"image": "a/../../outside.png"}, "path-outside"),
        ({"image": "/etc/hostname"}, "path-outside"),
        ({"image": "a\x00b.png"}, "path-outside"),
        ({"image": "link.png"}, "symlink-skipped"),
        ({"image": "way/inside.png"}, "symlink-skipped"),
        ({"image": "missing.png"}, "file-missing"),
        ({"image": "."}, "path-outside"),
        ({"image": "sub"}, "not-a-regular-file"),
        ({"image": "empty.png"}, "empty-file"),
        ({"image": "good.png/more"}, "unreadable"),
        ({"image_base64": "@@@"}, "bad-base64"),
        ({"image_base64": ""}, "empty-file"),
        ({"image_base64": 5}, "bad-base64"),
        ({"image": "good.png", "id": [1]}, "bad-id"),
        ({"image": "good.png", "caption": 5}, "bad-caption"),
        (b'{"text": "' + b"x" * 2**20 + b'"}', "line-too-long"),
    ],
)
def test_a_bad_line_is_a_reject_with_its_number(
    tmp_path: Path, line: bytes | dict[str, Any], code: str
) -> None:
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside.png").write_bytes(RED)
    (folder / "good.png").write_bytes(RED)
    (folder / "empty.png").touch()
    (folder / "link.png").symlink_to("good.png")
    (folder / "way").symlink_to("sub", target_is_directory=True)
    (folder / "sub" / "inside.png").write_bytes(RED)
    good = {"id": "good", "image": "good.png"}
    bad, row = rows_of(manifest(folder, line, good))
    assert isinstance(bad, Reject)
    assert (bad.key, bad.code) == ("line 1", code)
    assert row.key == "good"


def test_repeated_keys_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = manifest(
        tmp_path, b'\xef\xbb\xbf{"id": "a", "text": "1"}', b"", b"  ", {"id": "a", "text": "2"}
    )
    first, second = rows_of(path)
    assert isinstance(first, Record)
    assert isinstance(second, Reject)
    assert (second.code, second.detail[:6]) == ("duplicate-key", "line 4")


def test_a_line_without_end_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        for _ in range(160):
            file.write(b"x" * 2**20)
        file.write(b'\n{"text": "after"}\n')
    tracemalloc.start()
    bad, row = rows_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(bad, Reject)
    assert bad.code == "line-too-long"
    assert row.key == "long.jsonl:line-2"
    assert peak < 2.2 * MAX_LINE_BYTES  # readline joins its pieces


@pytest.mark.parametrize("magic", [b"\x1f\x8b", b"\xfd7zXZ\x00", b"BZh9", b"\x28\xb5\x2f\xfd"])
def test_compressed_manifests_are_refused(tmp_path: Path, magic: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(magic + b"rest")
    with pytest.raises(SourceError, match="compressed"):
        open_source(str(path))


TEXT = st.text(max_size=20)


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"captions": st.dictionaries(st.sampled_from(["en", "zh"]), st.lists(TEXT))},
            optional={"label": TEXT, "extra": TEXT | st.integers() | st.lists(TEXT)},
        ),
        max_size=8,
    )
)
def test_what_is_written_is_read(tmp_path_factory: Any, rows: list[dict[str, Any]]) -> None:
    from models.sources.fields import clean_captions

    folder = tmp_path_factory.mktemp("jsonl")
    picture = base64.b64encode(RED).decode()
    path = manifest(
        folder, *({"id": f"k{at}", "image_base64": picture, **row} for at, row in enumerate(rows))
    )
    found = rows_of(path)
    assert [row.key for row in found] == [f"k{at}" for at in range(len(rows))]
    for row, written in zip(found, rows, strict=True):
        assert isinstance(row, Record)
        assert row.image == RED
        expected = {tag: clean_captions(texts) for tag, texts in written["captions"].items()}
        assert row.texts == {tag: texts for tag, texts in expected.items() if texts}
        assert row.attributes == {k: v for k, v in written.items() if k == "extra"}
