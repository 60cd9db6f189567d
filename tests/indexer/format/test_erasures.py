"""The erasure list: a set of hashed ids, as a file and in commits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from fakes import ColourEncoder
from hypothesis import given
from hypothesis import strategies as st
from indexes import build, record

from indexer.format.entries import ErasedEntry
from indexer.format.erasures import Erasures, hash_id, read_erasures
from indexer.format.manifest import FORMAT, read_manifest
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
