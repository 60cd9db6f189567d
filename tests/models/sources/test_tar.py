"""The shard reader: grouping, round trips, damage at every block, hostile members."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from fakes import solid
from hypothesis import given
from hypothesis import strategies as st

from models.errors import SourceError
from models.sources import Record, Reject, open_source
from models.sources.fields import clean_captions
from models.sources.files import MAX_IMAGE_BYTES, expand_shards

RED = solid("red")


def member(name: str, size: int = 0, **values: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in values.items():
        setattr(info, key, value)
    return info


def shard(
    path: Path, entries: Iterable[tuple[str, bytes]], *, fmt: int = tarfile.PAX_FORMAT
) -> Path:
    with tarfile.open(path, "w", format=fmt) as archive:
        for name, data in entries:
            archive.addfile(member(name, len(data)), io.BytesIO(data))
    return path


def rows_of(*paths: Path | str, **fields: str) -> list[Record | Reject]:
    return list(open_source("::".join(map(str, paths)), **fields))


def codes(rows: list[Record | Reject]) -> list[str]:
    return [row.code if isinstance(row, Reject) else "ok" for row in rows]


def test_members_of_one_key_make_one_row(tmp_path: Path) -> None:
    path = shard(
        tmp_path / "a.tar",
        [
            ("./dir/cat.1.seg.png", b"ignored: not a picture suffix"),
            ("dir/cat.JPG", RED),
            ("dir/cat.json", b'{"captions": {"en": "A cat."}, "year": 2020}'),
            ("dir/cat.cls", b"3\n"),
            ("dir/cat.npy", b"ignored"),
            ("dog.webp", RED),
            ("dog.txt", b"A dog.\nOne dog."),
            ("bird.png", RED),
            ("words.caption", b"no picture"),
            ("lonely.json", b'{"year": 1}'),
            ("._cat.jpg", RED),
            ("noext", RED),
        ],
    )
    cat, dog, bird, words = rows_of(path)
    assert isinstance(cat, Record)
    assert isinstance(dog, Record)
    assert (cat.key, cat.texts, cat.label) == ("dir/cat", {"en": ("A cat.",)}, "3")
    assert cat.attributes == {"year": 2020}
    assert cat.uri == f"file://{path.resolve()}#dir/cat.JPG"
    assert cat.image == RED
    assert dog.texts == {"und": ("A dog.", "One dog.")}
    assert isinstance(bird, Record)
    assert bird.texts == {}
    assert isinstance(words, Record)
    assert (words.image, words.texts) == (None, {"und": ("no picture",)})
    assert open_source(str(path)).count() == 3


def test_json_captions_go_before_the_txt_that_repeats_them(tmp_path: Path) -> None:
    entries = [("a.jpg", RED), ("a.txt", b"same"), ("a.json", b'{"caption": "same", "url": "u"}')]
    (row,) = rows_of(shard(tmp_path / "a.tar", entries))
    assert isinstance(row, Record)
    assert (row.texts, row.attributes) == ({"und": ("same",)}, {"url": "u"})


def test_several_shards_and_brace_ranges(tmp_path: Path) -> None:
    for number in range(8, 12):
        shard(tmp_path / f"s-{number:03d}.tar", [(f"k{number}.png", RED)])
    source = open_source(f"{tmp_path}/s-{{008..011}}.tar")
    assert [row.key for row in source] == ["k8", "k9", "k10", "k11"]
    assert (source.kind, source.count()) == ("tar", 4)
    assert expand_shards("a{0..1}-{8..10}") == ["a0-8", "a0-9", "a0-10", "a1-8", "a1-9", "a1-10"]
    assert expand_shards("a::b{1..2}") == ["a", "b1", "b2"]
    for bad in ("x{5..2}.tar", "x{0..99999999999}.tar"):
        with pytest.raises(SourceError):
            expand_shards(bad)


def test_a_key_that_comes_again_is_refused(tmp_path: Path) -> None:
    one = shard(tmp_path / "1.tar", [("a.png", RED), ("b.png", RED), ("a.txt", b"late")])
    two = shard(tmp_path / "2.tar", [("b.png", RED)])
    assert codes(rows_of(one, two)) == ["ok", "ok", "duplicate-key", "duplicate-key"]


def test_what_is_no_source_is_refused_at_once(tmp_path: Path) -> None:
    good = shard(tmp_path / "a.tar", [("a.png", RED)])
    with gzip.open(tmp_path / "b.tar.gz", "wb") as file:
        file.write(good.read_bytes())
    (tmp_path / "disguised.tar").write_bytes((tmp_path / "b.tar.gz").read_bytes())
    (tmp_path / "notes.docx").touch()
    os.mkfifo(tmp_path / "fifo.tar")
    for name, why in [
        ("b.tar.gz", "gzip"),
        ("disguised.tar", "gzip"),
        ("fifo.tar", "regular"),
        ("missing-{00..03}.tar", "missing-00"),
        ("notes.docx", "not a source"),
    ]:
        with pytest.raises(SourceError, match=why):
            open_source(str(tmp_path / name))
    for spec in ("pipe:cat a.tar", "https://example.org/a.tar", "s3://b/a.tar", "a\0b"):
        with pytest.raises(SourceError):
            open_source(spec)


def test_cutting_at_every_block_gives_a_prefix_of_the_rows_and_one_reject(tmp_path: Path) -> None:
    entries = []
    for at in range(3):
        entries += [(f"k{at}.jpg", RED + b"x" * 700 * at), (f"k{at}.txt", b"caption")]
    entries.append((("d/" * 90) + "long.png", RED))  # with a PAX header
    whole = shard(tmp_path / "whole.tar", entries)
    complete = rows_of(whole)
    assert codes(complete) == ["ok"] * 4
    data = whole.read_bytes()
    end = len(data.rstrip(b"\0"))
    end_mark = -(-end // 512) * 512
    cut = tmp_path / "cut.tar"
    for length in range(0, len(data), 512):
        cut.write_bytes(data[:length])
        rows = rows_of(cut)
        good = [row for row in rows if isinstance(row, Record)]
        assert [(r.key, r.image, r.texts) for r in good] == [
            (r.key, r.image, r.texts) for r in complete[: len(good)] if isinstance(r, Record)
        ]
        damaged = [row for row in rows if isinstance(row, Reject)]
        if length <= end_mark:
            assert [row.code for row in damaged] == ["shard-damaged"], length
            assert "byte" in damaged[0].detail
        else:
            assert damaged == []
            assert len(good) == 4


def test_damage_ends_one_shard_not_the_run(tmp_path: Path) -> None:
    entries = [(f"k{at}.png", RED) for at in range(4)]
    data = bytearray(shard(tmp_path / "whole.tar", entries).read_bytes())
    step = 512 + -(-len(RED) // 512) * 512
    data[2 * step + 10] ^= 1  # inside the third header
    (tmp_path / "bad.tar").write_bytes(data)
    after = shard(tmp_path / "after.tar", [("z.png", RED)])
    rows = rows_of(tmp_path / "bad.tar", after)
    assert codes(rows) == ["ok", "shard-damaged", "ok"]
    assert isinstance(rows[1], Reject)
    assert rows[1].key == f"byte {2 * step}"
    assert rows[2].key == "z"


@pytest.mark.parametrize("count", [1, 2])
def test_rows_behind_zero_blocks_do_not_vanish_unnoticed(tmp_path: Path, count: int) -> None:
    entries = [(f"k{at}.png", RED) for at in range(3)]
    data = bytearray(shard(tmp_path / "whole.tar", entries).read_bytes())
    step = 512 + -(-len(RED) // 512) * 512
    data[step : step + 512 * count] = bytes(512 * count)
    (tmp_path / "hole.tar").write_bytes(data)
    assert codes(rows_of(tmp_path / "hole.tar")) == ["shard-damaged"]
    whole = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "twice.tar").write_bytes(whole + whole)
    assert codes(rows_of(tmp_path / "twice.tar")) == ["ok", "ok", "shard-damaged"]


def test_links_devices_and_oversized_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in [
            ("sym.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("fifo.jpg", tarfile.FIFOTYPE),
            ("dev.jpg", tarfile.CHRTYPE),
            ("dir.jpg", tarfile.DIRTYPE),
        ]:
            archive.addfile(member(name, type=kind, linkname="/etc/passwd"))
        archive.addfile(member("empty.jpg"))
        big = MAX_IMAGE_BYTES + 1
        archive.addfile(member("big.jpg", big), io.BytesIO(bytes(big)))
        archive.addfile(member("big.txt", 1), io.BytesIO(b"x"))
        archive.addfile(member("two.jpg", len(RED)), io.BytesIO(RED))
        archive.addfile(member("two.png", len(RED)), io.BytesIO(RED))
        archive.addfile(member("bad.jpg", len(RED)), io.BytesIO(RED))
        archive.addfile(member("bad.json", 1), io.BytesIO(b"{"))
        sparse = member("sparse.jpg", len(RED))
        sparse.pax_headers = {"GNU.sparse.major": "1"}
        archive.addfile(sparse, io.BytesIO(RED))
        for name in ("../../etc/x.png", "/abs/y.png"):
            archive.addfile(member(name, len(RED)), io.BytesIO(RED))
        for name in ("a.pkl", "a.pyd", "a.pth"):
            archive.addfile(member(name, 3), io.BytesIO(b"cos"))
    found = [(row.key, code) for row, code in zip(rows_of(path), codes(rows_of(path)), strict=True)]
    assert found == [
        ("sym.jpg", "not-a-regular-file"),
        ("hard.jpg", "not-a-regular-file"),
        ("fifo.jpg", "not-a-regular-file"),
        ("dev.jpg", "not-a-regular-file"),
        ("dir.jpg", "not-a-regular-file"),
        ("empty.jpg", "empty-file"),
        ("big.jpg", "file-too-large"),
        ("two.png", "extra-image"),
        ("two", "ok"),
        ("bad.json", "bad-json"),
        ("bad", "ok"),
        ("sparse.jpg", "not-a-regular-file"),
        ("../../etc/x", "ok"),
        ("/abs/y", "ok"),
    ]
    assert not (tmp_path.parent / "etc").exists()


def header(name: bytes, size: bytes, kind: bytes) -> bytes:
    block = bytearray(512)
    block[:100] = name.ljust(100, b"\0")
    block[124:136] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "block",
    [
        header(b"a.jpg", b"\xff" * 12, b"0"),  # -1
        header(b"a.jpg", b"\x80" + b"\x00" * 3 + b"\x7f" + b"\xff" * 7, b"0"),  # 8 EB
        header(b"pax", b"10000000000\0", b"x"),  # an extended header of 1 GB
        header(b"pax", b"00000000012\0", b"x") + b"9999 path=a".ljust(512, b"\0"),
        header(b"pax", b"00000000012\0", b"x") + b"0 path=a\n".ljust(512, b"\0"),
        header(b"pax", b"00000000020\0", b"x") + b"16 size=-99999\n\n".ljust(512, b"\0"),
        header(b"long", b"10000000000\0", b"L"),
        b"\x01" * 512,
    ],
)
def test_lying_headers_are_damage_not_memory(tmp_path: Path, block: bytes) -> None:
    good = shard(tmp_path / "good.tar", [("a.png", RED)]).read_bytes()
    step = 512 + -(-len(RED) // 512) * 512
    (tmp_path / "bad.tar").write_bytes(good[:step] + block + bytes(2048))
    tracemalloc.start()
    rows = rows_of(tmp_path / "bad.tar")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert codes(rows) == ["shard-damaged"]
    assert peak < 4 * 2**20


def test_a_chain_of_long_names_is_no_recursion(tmp_path: Path) -> None:
    link = header(b"././@LongLink", b"00000000010\0", b"L") + b"name.jpg".ljust(512, b"\0")
    last = header(b"x", b"00000000003\0", b"0") + b"abc".ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(link * 5000 + last + bytes(1024))
    (row,) = rows_of(tmp_path / "a.tar")
    assert (row.key, codes([row])) == ("name", ["ok"])


KEY = st.text(
    st.characters(exclude_characters="./\0", exclude_categories=["Cs"]), min_size=1, max_size=90
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    rows=st.dictionaries(
        KEY,
        st.fixed_dictionaries(
            {"captions": st.dictionaries(st.sampled_from(["en", "zh"]), st.lists(TEXT))},
            optional={"label": TEXT, "extra": TEXT | st.integers()},
        ),
        max_size=6,
    ),
    picture=st.binary(min_size=1, max_size=1500),
    fmt=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_what_is_written_is_read(
    tmp_path_factory: Any, rows: dict[str, dict[str, Any]], picture: bytes, fmt: int
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    entries = []
    for key, data in rows.items():
        entries += [(f"{key}.webp", picture), (f"{key}.json", json.dumps(data).encode())]
    found = rows_of(shard(path, entries, fmt=fmt))
    assert [row.key for row in found] == list(rows)
    for row, written in zip(found, rows.values(), strict=True):
        assert isinstance(row, Record)
        assert row.image == picture
        expected = {tag: clean_captions(texts) for tag, texts in written["captions"].items()}
        assert row.texts == {tag: texts for tag, texts in expected.items() if texts}
        assert row.attributes == {k: v for k, v in written.items() if k == "extra"}


@given(position=st.integers(0, 4000), flip=st.integers(1, 255))
def test_a_changed_byte_never_raises(tmp_path_factory: Any, position: int, flip: int) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    data = bytearray(
        shard(path, [("a.png", RED), ("a.json", b'{"caption": "x"}'), ("b.png", RED)]).read_bytes()
    )
    data[position % len(data)] ^= flip
    path.write_bytes(data)
    try:
        rows = rows_of(path)
    except SourceError:  # the first bytes now look compressed
        return
    assert len([code for code in codes(rows) if code == "shard-damaged"]) <= 1
