"""docs/sources.md: every example is built as the page shows it, and opened as the page says."""

from __future__ import annotations

import base64
import io
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from fakes import solid

from models.sources import Record, open_source
from models.sources.files import _CODES
from models.sources.records import Source

PAGE = Path(__file__).resolve().parents[3] / "docs" / "sources.md"
BLOCK = re.compile(r"^```(\w+) example=(\w+)(?: file=(\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
RED = solid("red", size=(8, 8))
CAT, ZH = "A cat.", "一只猫"


def pictures(folder: Path) -> None:
    for name in ("cats/tom.png", "dogs/rex.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(RED)


def build_folder(here: Path) -> None:
    (here / "photos" / "raw").mkdir()
    (here / "photos" / "raw" / "rex.png").write_bytes(RED)
    text = next(block[3] for block in BLOCKS if block[:2] == ("text", "folder"))
    for line in text.splitlines():
        name, _, content = line.partition(" ")
        if content:
            (here / name).write_text(content.strip(), encoding="utf-8")
        else:
            assert (here / name).exists(), name


def build_tar(here: Path) -> None:
    members = {"tom.txt": CAT.encode(), "rex.json": b'{"caption": "A dog."}', "rex.cls": b"dog"}
    text = next(block[3] for block in BLOCKS if block[:2] == ("text", "tar"))
    for line in text.splitlines():
        shard, names = line.split(": ")
        with tarfile.open(here / shard, "w") as tar:
            for name in names.split():
                info = tarfile.TarInfo(name)
                data = members.get(name, RED)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def build_parquet(here: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": RED, "path": "a.png"}, {"bytes": RED, "path": None}]
    table = pa.table(
        {"image": pa.array(rows, kind), "label": [1, 0], "caption": [CAT, "A dog."]},
        metadata={
            "huggingface": '{"info": {"features": {"label": '
            '{"names": ["dog", "cat"], "_type": "ClassLabel"}}}}'
        },
    )
    pq.write_table(table, here / "train-00000.parquet")


BUILDERS = {"folder": build_folder, "tar": build_tar, "parquet": build_parquet}
EXPECTED: dict[str, list[tuple[str, dict[str, tuple[str, ...]], str | None, dict[str, Any]]]] = {
    "folder": [
        ("cats/tom.png", {"zh": (ZH,)}, "cat", {"year": 2020}),
        ("dogs/rex.png", {}, None, {}),
    ],
    "tar": [("tom", {"und": (CAT,)}, None, {}), ("rex", {"und": ("A dog.",)}, "dog", {})],
    "jsonl": [
        ("cats/tom.png", {"en": (CAT,), "zh": (ZH,)}, "cat", {"year": 2020}),
        ("7", {"und": ("A dog.",)}, None, {}),
        ("photos.jsonl:line-3", {"und": ("Only words.",)}, None, {}),
    ],
    "csv": [
        (
            "cats/tom.png",
            {"en": ("A cat, asleep.",), "zh": (ZH,)},
            "cat",
            {"year": 2020, "tags": ["indoor", "red"]},
        ),
        ("dogs/rex.png", {"en": ('He said "sit".',)}, "dog", {"year": 2021}),
    ],
    "openclip": [("cats/tom.png", {"und": ("A cat, asleep.",)}, None, {})],
    "parquet": [
        ("a.png", {"und": (CAT,)}, "cat", {}),
        ("train-00000.parquet:row-2", {"und": ("A dog.",)}, "dog", {}),
    ],
    "coco": [
        (
            "cats/tom.png",
            {"und": (CAT, "A cat on a mat.")},
            None,
            {"coco_id": 1, "width": 8, "height": 8},
        )
    ],
    "karpathy": [
        ("cats/tom.png", {"und": (CAT, "A cat on a mat.")}, None, {"split": "test", "imgid": 0})
    ],
    "json": [
        ("cats/tom.png", {"und": (CAT,)}, None, {}),
        ("dogs/rex.png", {"und": ("A dog.",)}, None, {}),
    ],
    "list": [("cats/tom.png", {}, None, {}), ("dogs/rex.png", {}, None, {})],
}


def opened(example: str, here: Path) -> Source:
    """The source of an example, made from the page's own blocks."""
    pictures(here)
    pictures(here / "photos")
    if example in BUILDERS:
        BUILDERS[example](here)
    code = ""
    for language, name, file, content in BLOCKS:
        if name != example:
            continue
        if file:
            picture = base64.b64encode(RED).decode()
            content = content.replace("iVBORw0KGgo...", picture)
            (here / file).write_text(content, encoding="utf-8")
        elif language == "python":
            code = content
    source: Source = eval(code, {"open_source": open_source})
    return source


@pytest.mark.parametrize("example", EXPECTED)
def test_example(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = opened(example, tmp_path)
    found = list(source)
    assert all(isinstance(row, Record) for row in found), found
    records = [row for row in found if isinstance(row, Record)]
    assert [
        (row.key, dict(row.texts), row.label, dict(row.attributes)) for row in records
    ] == EXPECTED[example]
    assert [row.image for row in records if row.image is not None] == [RED] * sum(
        "Only words." not in str(row.texts) for row in records
    )
    assert list(source) == found, "a second iteration gives the same rows"
    assert source.kind == ("csv" if example == "openclip" else example)
    plan = source.plan()
    with_picture = sum(row.image is not None for row in records)
    assert (plan.pictures, plan.picture_bytes) == (with_picture, with_picture * len(RED))
    assert plan.exact
    assert source.count() == len(records)


def test_every_example_of_the_page_is_tested() -> None:
    assert {name for _, name, _, _ in BLOCKS} == {*EXPECTED, "stdin"}


def test_every_code_is_explained() -> None:
    page = PAGE.read_text(encoding="utf-8")
    codes = set(_CODES.values())
    for path in (PAGE.parents[1] / "models" / "sources").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        codes |= set(re.findall(r'(?:RefusedError|Reject)\(\s*"([a-z0-9-]+)"', text))
        codes |= set(re.findall(r'Reject\([^()]*?, "([a-z]+-[a-z-]+)",', text))
    assert len(codes) > max(20, len(set(_CODES.values())) + 10), "the readers lie elsewhere"
    assert {code for code in codes if f"`{code}`" not in page} == set()
