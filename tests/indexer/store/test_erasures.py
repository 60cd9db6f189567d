"""The erasure list as a file, and tombstones as a commit renumbers them."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
from fakes import ColourEncoder
from hypothesis import given
from hypothesis import strategies as st
from indexes import build, ids, opened, record

from indexer.format.entries import ErasedEntry, FileEntry, SegmentEntry
from indexer.format.erasures import Erasures, hash_id, read_erasures
from indexer.format.manifest import (
    FORMAT,
    read_manifest,
)
from indexer.format.version import count_live, open_version
from indexer.maintain.verify import verify_index
from indexer.store.commit import as_pairs, renumber
from indexer.store.copies import copy_rows
from indexer.store.writer import IndexWriter
from models.errors import IndexCorruptError


@given(st.sets(st.text(max_size=6)), st.sets(st.text(max_size=6)), st.sets(st.text(max_size=6)))
def test_a_list_of_hashes_behaves_like_a_set_of_ids(
    first: set[str], erase: set[str], unerase: set[str]
) -> None:
    erasures = Erasures().changed(erase=first).changed(erase=erase, unerase=unerase)
    expected = (first - unerase) | erase
    assert len(erasures) == len(expected)
    for one in first | erase | unerase:
        assert (one in erasures) == (one in expected)
    assert erasures == Erasures(hash_id(one) for one in expected)


def test_the_file_is_sorted_hashes_and_no_ids(tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    build([record("a", "red")], out)
    names = [f"person-{i}" for i in range(50)]
    with IndexWriter(out, ColourEncoder().fingerprint) as writer:
        manifest = writer.commit(erase=names, operation="delete")
    assert manifest.erased is not None
    assert manifest.erased.count == 50
    rows = np.load(out / "erased" / manifest.erased.file)
    assert (rows.dtype, rows.shape) == (np.uint8, (50, 32))
    assert [row.tobytes() for row in rows] == sorted(
        hashlib.sha256(name.encode()).digest() for name in names
    )
    assert all(one in read_erasures(out, manifest) for one in names)
    with IndexWriter(out, ColourEncoder().fingerprint) as writer:
        assert all(one in writer.erasures for one in names)
        again = writer.commit(operation="build")  # the file of an earlier version serves unchanged
        assert again.erased == manifest.erased
        assert writer.commit(unerase=names).erased is None
    assert not list((out / "erased").glob("00000004*"))


@pytest.mark.parametrize("wrong", ["unsorted", "repeated", "short", "other"])
def test_a_damaged_list_is_refused(tmp_path: Path, wrong: str) -> None:
    out = tmp_path / "x.index"
    build([record("a", "red")], out)
    hashes = sorted(hash_id(str(i)) for i in range(3))
    if wrong == "unsorted":
        hashes.reverse()
    elif wrong == "repeated":
        hashes[1] = hashes[0]
    data = Erasures(hashes).encode()[:-96] + b"".join(hashes)
    if wrong == "repeated":
        data = Erasures(hash_id(str(i)) for i in range(3)).encode()[:-96] + b"".join(hashes)
    if wrong == "short":
        data = data[:-1]
    (out / "erased" / "00000009.npy").write_bytes(data)
    digest = hashlib.sha256(b"x" if wrong == "other" else data).hexdigest()
    entry = ErasedEntry(file="00000009.npy", count=3, size=len(data), sha256=digest)
    manifest = read_manifest(out).model_copy(update={"erased": entry, "format": FORMAT})
    with pytest.raises(IndexCorruptError) as caught:
        read_erasures(out, manifest)
    assert caught.value.file == "erased/00000009.npy"


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
