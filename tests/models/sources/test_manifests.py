"""What all manifests share: fields, roots, several files, files that change, URLs, plans, stdin."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import solid
from hypothesis import given
from hypothesis import strategies as st

from models.errors import SourceError
from models.sources import Plan, Record, Reject, files, is_source, open_source
from models.sources.csv_rows import convert
from models.sources.embedded import prepare_rows
from models.sources.fields import ReadOptions
from models.sources.folder import Globs
from models.sources.jsonl import StdinSource
from models.sources.records import RefusedError, SeenKeys

RED = solid("red", size=(8, 8))


def written(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def codes(source: Any) -> list[str]:
    return [row.code if isinstance(row, Reject) else row.key for row in source]


def test_fields_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    row = {
        "photo": "a.png",
        "sku": 12,
        "t": "one",
        "t.zh": "二",
        "more": {"fr": ["trois"]},
        "kind": "k",
        "price": 3,
        "stock": 4,
    }
    (record,) = open_source(
        written(tmp_path / "a.jsonl", row),
        image_field="photo",
        id_field="sku",
        text_field=["en=t", "zh_CN=t.zh", "en=more.fr", "more"],
        label_field="kind",
        attribute_fields=["price", "absent"],
    )
    assert isinstance(record, Record)
    assert (record.key, record.image, record.label) == ("12", RED, "k")
    assert record.texts == {"en": ("one", "trois"), "zh-CN": ("二",), "fr": ("trois",)}
    assert record.attributes == {"price": 3}


def test_a_picture_in_base64_and_rows_without_pictures(tmp_path: Path) -> None:
    row = {"b": base64.b64encode(RED).decode(), "image": "missing.png", "text": "x"}
    spec = written(tmp_path / "a.jsonl", row)
    (record,) = open_source(spec, image_field="base64=b")
    assert isinstance(record, Record)
    assert record.image == RED
    (record,) = open_source(spec, image_field="-")
    assert isinstance(record, Record)
    assert (record.image, record.texts) == (None, {"und": ("x",)})


def test_a_picture_of_twenty_mebibytes_fits_into_a_line(tmp_path: Path) -> None:
    picture = os.urandom(files.MAX_IMAGE_BYTES)
    escaped = base64.b64encode(picture).replace(b"/", b"\\/")  # as PHP writes it
    (tmp_path / "a.jsonl").write_bytes(b'{"image_base64": "%s", "text": "x"}\n' % escaped)
    (record,) = open_source(str(tmp_path / "a.jsonl"))
    assert isinstance(record, Record)
    assert record.image == picture
    assert record.texts == {"und": ("x",)}


def test_root_takes_the_place_of_the_manifests_folder(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(RED)
    inside = str(tmp_path.resolve() / "pictures" / "a.png")
    rows = [{"image": "a.png"}, {"id": 2, "image": inside}, {"image": "../a.jsonl"}]
    spec = written(tmp_path / "a.jsonl", *rows)
    assert codes(open_source(spec, root=tmp_path / "pictures")) == ["a.png", "2", "path-outside"]
    assert codes(open_source(spec))[0] == "file-missing"


def test_several_manifests_are_one_source(tmp_path: Path) -> None:
    for number in range(3):
        written(tmp_path / f"m-{number}.jsonl", {"text": "x"}, {"text": "y", "id": "same"})
    source = open_source(f"{tmp_path}/m-{{0..2}}.jsonl")
    assert codes(source) == [
        "m-0.jsonl:line-1", "same", "m-1.jsonl:line-1", "duplicate-key", "m-2.jsonl:line-1",
        "duplicate-key",
    ]  # fmt: skip
    assert (source.count(), source.plan().rows) == (6, 6)
    (tmp_path / "m-1.jsonl").unlink()
    assert codes(source)[2] == "source-unreadable", "the others go on"
    (tmp_path / "m.csv").write_text("caption\nx\n")
    with pytest.raises(SourceError, match="not a source"):
        open_source(f"{tmp_path}/m-0.jsonl::{tmp_path}/m.csv")


def test_a_url_is_fetched_only_by_the_callers_function(tmp_path: Path) -> None:
    spec = written(
        tmp_path / "a.jsonl",
        {"image": "https://example.org/a.png"},
        {"url": "https://example.org/gone.png", "caption": "b"},
        {"image": "pipe:cat /etc/passwd"},
    )

    def fetch(url: str) -> bytes:
        if "gone" in url:
            raise RefusedError("url-fetch-failed", "it could not be fetched")
        assert url.startswith("https://")
        return RED

    assert codes(open_source(spec)) == ["url-not-allowed"] * 3
    record, *rest = open_source(spec, fetch=fetch)
    assert isinstance(record, Record)
    assert (record.key, record.uri, record.image) == (*["https://example.org/a.png"] * 2, RED)
    assert codes(rest) == ["url-fetch-failed", "url-not-allowed"]


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    spec = written(tmp_path / "a.jsonl", {"image": "a.png"})
    read = files._read_at_most

    def and_change(descriptor: int, limit: int) -> bytes:
        data = read(descriptor, limit)
        with (tmp_path / "a.png").open("ab") as file:
            file.write(b"more")
        return data

    monkeypatch.setattr(files, "_read_at_most", and_change)
    assert codes(open_source(spec)) == ["file-changed"]


def test_a_file_that_vanishes_between_rows(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(RED)
    rows = iter(open_source(written(tmp_path / "a.jsonl", {"image": "a.png"}, {"image": "b.png"})))
    assert next(rows).key == "a.png"
    (tmp_path / "b.png").unlink()
    assert codes(rows) == ["file-missing"]


def test_a_manifest_that_lists_itself_is_no_picture(tmp_path: Path) -> None:
    source = open_source(written(tmp_path / "a.jsonl", {"image": "a.jsonl"}))
    (row,) = prepare_rows(source, lambda image: image, source="s")  # type: ignore[arg-type, return-value]
    assert isinstance(row, Reject)
    assert row.code == "image-undecodable"


def test_a_plan_scales_the_first_rows_up(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    rows = [{"image": "a.png" if at % 2 else "no.png", "id": at} for at in range(1000)]
    source = open_source(written(tmp_path / "a.jsonl", *rows))
    size = (tmp_path / "a.jsonl").stat().st_size
    assert source.plan() == Plan(1000, 500, 500 * len(RED), size, exact=False)


def test_standard_input_is_read_once() -> None:
    lines = b'{"text": "a"}\n{broken\n{"text": "b", "id": "x"}\n{"text": "c", "id": "x"}\n'
    source = StdinSource(ReadOptions(), io.BytesIO(lines))
    assert (source.count(), source.plan().rows) == (None, None)
    found = list(source)
    assert codes(found) == ["stdin:line-1", "bad-json", "x", "duplicate-key"]
    assert isinstance(found[0], Record)
    assert found[0].uri == "stdin:#line=1"
    with pytest.raises(SourceError, match="only once") as refused:
        list(source)
    assert refused.value.code == "source-read-once"


def test_standard_input_of_a_process(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    code = "from models.sources import open_source\nprint([r.key for r in open_source('-')])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=b'{"image": "a.png"}\n',
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == b"['a.png']"


def test_is_source(tmp_path: Path) -> None:
    for name in (str(tmp_path), "-", "a.tar", "a.tar.gz", "a::b", "a.CSV", "a.json#test", "a.pq"):
        assert is_source(name), name
    for name in ("a.png", "a", "a.json.png", "a#b"):
        assert not is_source(name), name


def test_pyarrow_is_imported_only_for_parquet(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", {"text": "a"})
    code = (
        "import sys\nfrom models.sources import open_source\n"
        "list(open_source('a.jsonl'))\nprint('pyarrow' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == b"False"


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(20) + b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SourceError) as refused:
        open_source(str(tmp_path / "a.parquet"))
    assert refused.value.code == "extra-missing"
    assert "diptych[parquet]" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("pattern", "wanted", "others"),
    [
        ("*.png", ["a.png", "d/e/a.png"], ["a.jpg", "d.png/a"]),
        ("d/*.png", ["d/a.png"], ["a.png", "d/e/a.png", "x/d/a.png"]),
        ("/a.png", ["a.png"], ["d/a.png"]),
        ("d/**", ["d/a", "d/e/f"], ["x/d/a", "dd/a"]),
        ("**/e/*", ["e/a", "d/e/a", "d/d/e/a", "d/e/e/a"], ["d/a", "e/d/a"]),
        ("d/**/a", ["d/a", "d/x/a", "d/x/y/a"], ["d/b", "a"]),
        ("[ab]?.p", ["ax.p", "b..p"], ["a.p", "cx.p"]),
        ("[!a].p", ["b.p"], ["a.p", "b/.p"]),
        ("caf\udce9", ["caf\udce9"], ["cafe"]),
    ],
)
def test_patterns(pattern: str, wanted: list[str], others: list[str]) -> None:
    globs = Globs([pattern])
    assert [path for path in wanted + others if globs.wanted(os.fsencode(path))] == wanted
    against = Globs(exclude=[pattern])
    assert [path for path in wanted + others if against.wanted(os.fsencode(path))] == others


def test_an_excluded_folder_is_not_entered(tmp_path: Path) -> None:
    for name in ("a.png", "raw/a.png", "d/raw/b.png", "d/b.png", "d/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(RED)
    (tmp_path / "raw").chmod(0o755)
    (tmp_path / "raw" / "link.png").symlink_to("a.png")
    for pattern in ("raw", "raw/", "**/raw/**"):
        source = open_source(str(tmp_path), exclude=[pattern, "*.jpg"])
        assert codes(source) == ["a.png", "d/b.png"], pattern
        assert (source.count(), source.plan().picture_bytes) == (2, 2 * len(RED))
    assert codes(open_source(str(tmp_path), include=["d/*"])) == ["d/b.jpg", "d/b.png"]


@given(st.lists(st.text(max_size=3), max_size=200))
def test_seen_keys_are_a_set(keys: list[str]) -> None:
    seen, reference = SeenKeys(), set()
    for key in keys:
        assert seen.add(key) == (key not in reference)
        reference.add(key)
    assert len(seen) == len(reference)


def test_seen_keys_grow() -> None:
    seen = SeenKeys()
    assert all(seen.add(str(number)) for number in range(5000))
    assert not any(seen.add(str(number)) for number in range(5000))


CELL = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)


@given(rows=st.lists(st.tuples(CELL, CELL), max_size=8), delimiter=st.sampled_from(",\t;"))
def test_csv_as_it_is_written_is_read(
    tmp_path_factory: Any, rows: list[tuple[str, str]], delimiter: str
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", "caption", "a", "b"])
        for number, row in enumerate(rows):
            writer.writerow([number, "text", *row])
    found = list(open_source(str(path)))
    assert [row.key for row in found] == [str(number) for number in range(len(rows))]
    for record, row in zip(found, rows, strict=True):
        assert isinstance(record, Record)
        expected = {name: cell for name, cell in zip("ab", row, strict=True) if cell}
        assert record.attributes == expected


@pytest.mark.parametrize(
    ("cell", "kind", "value"),
    [
        ("7", "int", 7), ("-7", "int", -7), ("7.5", "int", "7.5"), ("9" * 5000, "int", "9" * 5000),
        ("1e3", "float", 1000.0), ("nan", "float", "nan"), ("1e999", "float", "1e999"),
        ("TRUE", "bool", True), ("0", "bool", False), ("yes", "bool", "yes"),
        ("a| b", "str[]", ["a", "b"]), ('["a"]', "str[]", ["a"]), ("[1]", "str[]", "[1]"),
        ("[" * 100_000, "str[]", "[" * 100_000), ("x", "str", "x"),
    ],
)  # fmt: skip
def test_cells_become_the_type_that_was_asked_for(cell: str, kind: str, value: Any) -> None:
    assert convert(cell, kind) == value
    assert type(convert(cell, kind)) is type(value)
