"""The one commit path: what it makes of a base and changes, and that all manifests are as before.

`tests/gold/manifests.json` was written before there was one path for all (see `manifest_history`).
"""

from __future__ import annotations

import ast
import json
import random
from pathlib import Path

import numpy as np
import pytest
from fakes import ColourEncoder
from hypothesis import given
from hypothesis import strategies as st
from indexes import build, ids, opened, record
from manifest_history import histories

import indexer
from indexer.format.entries import FileEntry, SegmentEntry
from indexer.format.manifest import Head, Manifest, SourceEntry, read_manifest
from indexer.format.version import count_live, open_version
from indexer.maintain.verify import verify_index
from indexer.store.commit import Changes, as_pairs, next_manifest, renumber
from indexer.store.copies import copy_rows
from indexer.store.writer import IndexWriter

GOLD = json.loads((Path(__file__).parents[2] / "gold" / "manifests.json").read_text())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return dict(histories(tmp_path_factory.mktemp("manifests")))


def test_the_stories_are_those_of_the_gold_file(written: dict[str, object]) -> None:
    assert list(written) == list(GOLD)


@pytest.mark.parametrize("story", GOLD)
def test_manifests_are_those_of_the_gold_file(story: str, written: dict[str, object]) -> None:
    assert written[story] == GOLD[story]


def test_manifests_are_published_in_one_place() -> None:
    package = Path(indexer.__path__[0])
    publishing = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "publish"
    }
    assert publishing == {"store/commit.py"}


@pytest.fixture
def base(tmp_path: Path) -> Manifest:
    """Two segments of pictures, with 4 and 3 rows."""
    out = tmp_path / "x.index"
    build([record(f"a{i}", "red") for i in range(4)], out)
    build([record(f"b{i}", "blue") for i in range(3)], out)
    return read_manifest(out)


def made(base: Manifest, changes: Changes, *added: SegmentEntry | None) -> Manifest:
    manifest, _ = next_manifest(
        base, changes, added, as_pairs([(0, 1)]), version=9, parent=Head(7, "f" * 64), created="now"
    )
    return manifest


def test_a_version_without_changes_is_its_base_under_another_number(base: Manifest) -> None:
    new = made(base, Changes("repair"))
    assert (new.version, new.parent, new.parent_sha256) == (9, 7, "f" * 64)
    assert (new.operation, new.created, new.live.images) == ("repair", "now", 6)
    own = {"version", "parent", "parent_sha256", "created", "operation", "writer", "live"}
    assert new.model_dump(exclude=own) == base.model_dump(exclude=own)


def test_what_is_dropped_goes_and_what_is_added_comes_last(base: Manifest) -> None:
    added = segment(5, "text")
    new = made(base, Changes("optimize", dead=[(1, 0), (3, 4)], drop={0}), None, added)
    assert [one.id for one in new.segments] == [base.segments[1].id, added.id]
    assert (new.live.images, new.live.texts) == (2, 4), "a tombstone of what is dropped goes too"
    assert base.segments[0].rows == 4, "the base is as it was"


def test_a_source_is_named_once(base: Manifest) -> None:
    again, other = base.sources[0], SourceEntry(name="elsewhere", kind="list")
    assert made(base, Changes("add", sources=[again, other])).sources == [again, other]


def segment(rows: int, modality: str = "image") -> SegmentEntry:
    file = FileEntry(size=1, sha256="0" * 64)
    return SegmentEntry(
        id=f"s{rows}",
        modality=modality,  # type: ignore[arg-type]
        rows=rows,
        files={"vectors.npy": file, "items.sqlite": file},
    )


@given(st.integers(0, 10_000))
def test_tombstones_follow_their_segments(seed: int) -> None:
    rng = random.Random(seed)
    slots = [segment(rng.randint(1, 5), rng.choice(["image", "text"])) for _ in range(6)]
    dropped = {at for at in range(6) if rng.random() < 0.3}
    empty = {at for at in range(6) if rng.random() < 0.1}
    dead = {
        (at, row)
        for at, one in enumerate(slots)
        for row in range(one.rows)
        if rng.random() < 0.4 and at not in empty
    }
    given_slots = [None if at in dropped | empty else one for at, one in enumerate(slots)]
    pairs = as_pairs([*dead, *dead])
    pairs = pairs[[not (at in dropped and given_slots[at]) for at, _ in pairs]]
    found = renumber(given_slots, pairs, dropped)
    left = [at for at, one in enumerate(given_slots) if one is not None]
    expected = sorted((left.index(at), row) for at, row in dead if at in left)
    assert [tuple(pair) for pair in found.tolist()] == expected
    live = count_live([slots[at] for at in left], found)
    for modality, count in (("image", live.images), ("text", live.texts)):
        total = sum(slots[at].rows for at in left if slots[at].modality == modality)
        buried = sum(slots[at].modality == modality and at in left for at, _ in dead)
        assert count == total - buried


def test_segments_that_replace_others_take_their_place_in_one_commit(tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    for colour in ("red", "green", "blue"):
        build([record(f"{colour}{i}", colour) for i in range(4)], out)
    build([record("red0", "white")], out)  # a tombstone in the first segment
    version = open_version(out)
    with IndexWriter(out, ColourEncoder().fingerprint) as writer:
        merged = writer.new_segment("image")
        for position in (0, 2):
            live = np.flatnonzero(~version.dead[position]).tolist()
            copy_rows(version.segments[position], live, merged, ())
        # positions beyond the current segments are those of the new ones
        manifest = writer.commit([merged], [(4, 1), (1, 3)], drop=[0, 2], operation="optimize")
    version.close()
    assert [entry.rows for entry in manifest.segments] == [4, 1, 7]
    assert manifest.live.images == 10
    assert verify_index(out).ok
    with opened(out) as snapshot:
        gone = {"green3", "red2"}
        wanted = {f"{colour}{i}" for colour in ("red", "green", "blue") for i in range(4)} - gone
        assert set(ids(snapshot, "red")) == wanted
