"""What every source is, and what a wrapper hands on."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import solid
from indexes import ListSource, record

from models.errors import SourceError
from models.sources import READERS, ReadOptions, is_source, manifest_reader, open_source
from models.sources.files import count_lines
from models.sources.jsonl import StdinSource
from models.sources.manifest import Format, Found
from models.sources.records import FirstRows, HoldOut, Record, RefusedError, Reject, Source


def keys(source: Source) -> list[str]:
    return [row.key for row in source if isinstance(row, Record)]


def folders(tmp_path: Path, count: int = 30) -> tuple[Source, Source]:
    """The same pictures as a folder and as two manifests."""
    for number in range(count):
        (tmp_path / f"p{number:02}.png").write_bytes(solid("red"))
    for part in (0, 1):
        lines = [f'{{"image": "p{number:02}.png"}}\n' for number in range(part, count, 2)]
        (tmp_path / f"part-{part}.jsonl").write_text("".join(lines))
    return open_source(str(tmp_path)), open_source(str(tmp_path / "part-{0..1}.jsonl"))


def test_a_source_need_only_iterate() -> None:
    source: Source = ListSource([record("a", "red")])
    assert list(source.rows_unless(lambda *_: True)) == list(source)
    assert source.parts() == [source]
    assert source.rereadable
    assert not source.keys_are_paths
    assert not source.in_archives


def test_a_wrapper_is_what_it_wraps_but_for_the_rows(tmp_path: Path) -> None:
    folder, manifests = folders(tmp_path)
    for source in (folder, manifests, StdinSource(ReadOptions(), io.BytesIO(b""))):
        wrapper = HoldOut(source, 3, held_out=True)
        for name in ("name", "kind", "rereadable", "keys_are_paths", "in_archives"):
            assert getattr(wrapper, name) == getattr(source, name), name
        if source.rereadable:
            assert wrapper.plan() == source.plan()


def test_the_parts_of_a_wrapper_are_wrapped_alike(tmp_path: Path) -> None:
    _, manifests = folders(tmp_path)
    wrapper = HoldOut(HoldOut(manifests, 3, held_out=False), 2, held_out=True)
    parts = wrapper.parts()
    assert [part.name for part in parts] == [part.name for part in manifests.parts()]
    assert 0 < len(keys(wrapper)) < 30
    assert sorted(key for part in parts for key in keys(part)) == sorted(keys(wrapper))
    assert keys(wrapper) == keys(wrapper), "taking it apart changed it"


def test_the_first_rows_are_one_part_of_unknown_length(tmp_path: Path) -> None:
    folder, manifests = folders(tmp_path)
    for source in (folder, manifests):
        first = FirstRows(source, 7)
        assert keys(first) == keys(source)[:7]
        assert (first.count(), first.parts()) == (None, [first])


def test_one_text_field_may_be_given_as_it_is(tmp_path: Path) -> None:
    assert ReadOptions(text_field="a.b") == ReadOptions(text_field=("a.b",))
    (tmp_path / "a.jsonl").write_text('{"name": "a cat", "note": "a dog"}\n')
    options = ReadOptions(text_field="name")
    for source, text in (
        (open_source(str(tmp_path / "a.jsonl"), options), "a cat"),
        (open_source(str(tmp_path / "a.jsonl"), options, text_field="note"), "a dog"),
    ):
        (row,) = source
        assert isinstance(row, Record)
        assert row.texts == {"und": (text,)}
    with pytest.raises(TypeError):
        open_source(str(tmp_path / "a.jsonl"), text_fields="name")


def test_every_suffix_of_the_table_is_a_source() -> None:
    assert all(is_source(f"photos{suffix.upper()}") for suffix in READERS if suffix != ".tar")
    assert is_source("photos.tar.gz")
    assert not is_source("photos.zip")


class PipedFormat(Format):
    """`path|caption` lines: a format as somebody else would write it."""

    kind = "piped"

    def __init__(self, _path: str, _options: ReadOptions) -> None:
        pass

    def count(self, path: str) -> int | None:
        return count_lines(path)

    def rows(self, path: str) -> Iterator[Found]:
        for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
            image, _, caption = line.partition("|")
            yield f"line={number}", {"image": image, "caption": caption}


def test_a_new_format_is_a_class_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "red.png").write_bytes(solid("red"))
    spec = str(tmp_path / "a.psv")
    Path(spec).write_text("red.png|a red card\nblue.png|a blue one\nred.png|again\n")
    with pytest.raises(SourceError, match="not a source"):
        open_source(spec)
    monkeypatch.setitem(READERS, ".psv", manifest_reader(PipedFormat))  # type: ignore[arg-type]
    source = open_source(spec)
    good, missing, again = source
    assert isinstance(good, Record)
    assert (source.kind, source.count(), good.texts) == ("piped", 3, {"und": ("a red card",)})
    assert isinstance(missing, Reject)
    assert isinstance(again, Reject)
    assert (missing.code, again.code) == ("file-missing", "duplicate-key")


def test_what_was_refused_says_where() -> None:
    assert RefusedError("bad-json", "no").reject("s", "line 7") == Reject(
        "s", "line 7", "bad-json", "no"
    )
