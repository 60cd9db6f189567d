"""Near-duplicate groups: against the greedy loop that defines them, and on the command line."""

from __future__ import annotations

import json
import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fakes import ColourEncoder, encode, solid
from indexes import build, ids, opened
from PIL import Image, PngImagePlugin
from serving import command, environment, run

from indexer.format.items import Item, NewRow, Picture
from indexer.format.version import open_version
from indexer.search.duplicates import Group, find_duplicates
from indexer.store.writer import IndexWriter
from models import near_duplicates as module
from models.errors import InputError
from models.sources.records import Record
from models.vectors import unit_rows

DIM = ColourEncoder().dim


def groups(path: Path, threshold: float = 0.95) -> list[Group]:
    version = open_version(path)
    try:
        return list(find_duplicates(version, threshold))
    finally:
        version.close()


def shape(found: list[Group]) -> list[tuple[str, set[str]]]:
    return [(group.keep.id, {one.id for one in group.others}) for group in found]


@pytest.mark.parametrize("seed", range(3))
def test_groups_equal_the_greedy_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 7)
    monkeypatch.setattr(module, "_CHUNK", 13)
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((30, DIM))
    vectors = unit_rows(
        (centres[rng.integers(0, 30, 150)] + 0.1 * rng.standard_normal((150, DIM))).astype("f4")
    )
    facts = [Picture(int(rng.integers(1, 4)), 2, int(rng.integers(9)), b"") for _ in range(150)]
    items = [
        Item(f"p{n:03}", "image", f"file:///{n}", None, None, None, None, {}, "00" * 32)
        for n in range(150)
    ]
    with IndexWriter(tmp_path / "i", ColourEncoder().fingerprint) as writer:
        segments = [writer.new_segment("image") for _ in range(3)]
        for number in range(150):
            row = NewRow(f"r{number}", items[number], picture=facts[number])
            segments[number // 50].add(vectors[number][None], [row])
        writer.commit(segments)
        writer.commit([], [(1, row) for row in range(20)])
    alive = [number for number in range(150) if not 50 <= number < 70]
    stored = vectors.astype(np.float16).astype(np.float64)
    alive.sort(key=lambda n: (-facts[n].width * facts[n].height, -facts[n].size, n))
    kept: list[tuple[int, set[str]]] = []
    for number in alive:
        for first, others in kept:
            if stored[number] @ stored[first] >= 0.97:
                others.add(items[number].id)
                break
        else:
            kept.append((number, set()))
    expected = [(items[first].id, others) for first, others in kept if others]
    assert len(expected) > 5
    assert sorted(shape(groups(tmp_path / "i", 0.97))) == sorted(expected)


def picture(key: str, data: bytes) -> Record:
    return Record(key, f"file:///{key}", data)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", "another file, the same pixels " * 9)
    buffer = BytesIO()
    Image.new("RGB", (32, 32), (255, 0, 0)).save(buffer, "PNG", pnginfo=note)
    speck = Image.new("RGB", (32, 32), (255, 0, 0))
    speck.putpixel((31, 31), (250, 0, 0))
    rows = [
        picture("small", solid("red", size=(16, 16))),
        picture("red", solid("red")),
        picture("speck", encode(speck)),
        picture("commented", buffer.getvalue()),
        picture("blue", solid("blue")),
    ]
    build(rows, tmp_path / "i")
    return tmp_path / "i"


def test_the_same_pixels_are_told_from_nearly_the_same(album: Path) -> None:
    [group] = groups(album)
    assert group.keep.id == "commented"  # as large in pixels as red, larger as a file
    assert {one.id: one.kind for one in group.others} == {
        "red": "same-pixels",
        "speck": "near",
        "small": "near",
    }
    assert (group.keep.width, group.keep.height) == (32, 32)


def test_a_threshold_out_of_range_is_refused(album: Path) -> None:
    for threshold in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(InputError):
            groups(album, threshold)


def test_command_line(album: Path) -> None:
    base = ["index", "duplicates", "--index", str(album)]
    result = run(*base, "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["threshold"], document["exact"]) == (0.95, True)
    assert document["groups"][0]["keep"]["id"] == "commented"
    assert sorted(run(*base, "--ids").stdout.split()) == ["red", "small", "speck"]
    assert run(*base, "--ids", "--same-pixels").stdout.split() == ["red"]
    text = run(*base).stdout
    assert "keep         commented  32 x 32" in text
    assert "same-pixels" in text
    assert run(*base, "--ids", "--json").returncode == 2


def test_what_is_superfluous_goes_through_the_pipe(album: Path) -> None:
    base = ["--index", str(album)]
    find = command("index", "duplicates", *base, "--ids")
    delete = command("index", "delete", *base, "--ids", "-", "--json")
    with subprocess.Popen(find, env=environment(), stdout=subprocess.PIPE) as finding:
        deleted = subprocess.run(
            delete, env=environment(), stdin=finding.stdout, capture_output=True, timeout=60
        )
    assert (finding.returncode, deleted.returncode) == (0, 0), deleted.stderr
    with opened(album) as snapshot:
        assert ids(snapshot, "red") == ["commented", "blue"]
    assert groups(album) == []
    assert run("index", "duplicates", *base, "--ids").stdout == ""
