"""ANN structures by themselves: what they answer and refuse, and the scratch they pass through."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from clustered import DIM, FIELDS, item, pictures, texts
from crashing import FailingFs

from indexer.files.fs import Fs, Spool
from indexer.format.entries import ANN_FILE, AnnEntry, OperatingPoint, Structure
from indexer.format.items import NewRow
from indexer.format.segment import SegmentWriter
from indexer.maintain.structures import Questions, Trial, exact_scores, recipes
from indexer.search.scanners import AnnScan
from indexer.search.vector_index import (
    AnnIndex,
    BadStructureError,
    ExactIndex,
    build_ann,
    check_canaries,
    make_canaries,
)
from models.errors import NoSpaceError
from models.vectors import Vectors

ROWS = 1500
RECIPES: dict[Structure, tuple[str, dict[str, int]]] = {
    "ivf": ("IVF32_HNSW32,RaBitQfs", {"nlist": 32}),
    "hnsw": ("HNSW32,SQ8", {"M": 32, "efConstruction": 40}),
}


@pytest.fixture(scope="module")
def rows_ND() -> np.ndarray:
    return pictures(ROWS).astype(np.float16)


@pytest.fixture(scope="module", params=["ivf", "hnsw"])
def built(request: pytest.FixtureRequest, rows_ND: np.ndarray) -> tuple[Structure, AnnIndex, bytes]:
    recipe, parameters = RECIPES[request.param]
    index = build_ann(rows_ND, request.param, recipe, parameters)
    stored = bytearray()
    index.write(stored.extend)
    return request.param, index, bytes(stored)


def everything() -> np.ndarray:
    return np.ones(ROWS, dtype=np.bool_)


def test_what_was_stored_answers_as_what_was_built(
    built: tuple[Structure, AnnIndex, bytes], rows_ND: np.ndarray
) -> None:
    structure, index, stored = built
    read = AnnIndex.read(stored, structure, rows_ND, everything())
    queries_QD = texts(30)
    assert np.array_equal(read.search(queries_QD, 5, 8, 4), index.search(queries_QD, 5, 8, 4))


def test_what_cannot_be_read_is_refused(
    built: tuple[Structure, AnnIndex, bytes], rows_ND: np.ndarray
) -> None:
    structure, _, stored = built
    other: Structure = "hnsw" if structure == "ivf" else "ivf"
    for data, kind, rows, reason in (
        (stored[: len(stored) // 2], structure, rows_ND, "cannot read"),
        (stored[:-3], structure, rows_ND, "cannot read"),
        (b"none" + stored[4:], structure, rows_ND, "cannot read"),
        (stored, other, rows_ND, f"no {other}"),
        (stored, structure, rows_ND[:-1], "is over 1500 rows of 32"),
    ):
        with pytest.raises(BadStructureError, match=reason):
            AnnIndex.read(data, kind, rows, np.ones(len(rows), dtype=np.bool_))


def test_only_the_selected_are_found_and_all_of_them(
    built: tuple[Structure, AnnIndex, bytes], rows_ND: np.ndarray
) -> None:
    structure, index, _ = built
    point = OperatingPoint(recipe="x", effort=4, refine=2, recall=1.0, latency_ms=1.0,
                           bytes_per_vector=1.0, queries=1, kind="texts")  # fmt: skip
    entry = AnnEntry(structure=structure, recipe="x", parameters={}, operating=point, floor=0.5,
                     curve=[], canaries=make_canaries(index, rows_ND))  # fmt: skip
    scan = AnnScan(index, entry, ExactIndex(rows_ND, everything()))
    for count in (3, 100, 700):
        chosen = np.zeros(ROWS, dtype=np.bool_)
        chosen[np.random.default_rng(count).choice(ROWS, count, replace=False)] = True
        few = scan.restricted(chosen, ExactIndex(rows_ND, chosen))
        for found in few.propose(texts(10), 20):
            assert chosen[found].all()
            assert len(set(found.tolist())) == len(found) == min(20, count)
        # the mask was of that view
    assert not all(chosen[found].all() for found in scan.propose(texts(10), 20))


def test_canaries_know_their_own_structure(
    built: tuple[Structure, AnnIndex, bytes], rows_ND: np.ndarray
) -> None:
    structure, index, _ = built
    point = OperatingPoint(recipe="x", effort=4, refine=2, recall=1.0, latency_ms=1.0,
                           bytes_per_vector=1.0, queries=1, kind="texts")  # fmt: skip
    entry = AnnEntry(structure=structure, recipe="x", parameters={}, operating=point, floor=0.5,
                     curve=[], canaries=make_canaries(index, rows_ND))  # fmt: skip
    assert len(entry.canaries) == 8
    check_canaries(index, entry, rows_ND)
    turned = np.roll(rows_ND, 700, axis=0)
    recipe, parameters = RECIPES[structure]
    with pytest.raises(BadStructureError, match="canary"):
        check_canaries(build_ann(turned, structure, recipe, parameters), entry, rows_ND)


def test_exact_scores_are_those_of_a_loop(rows_ND: np.ndarray) -> None:
    queries_QD = texts(5)
    wanted = [
        sorted((float(row.astype(np.float32) @ query) for row in rows_ND), reverse=True)[:7]
        for query in queries_QD
    ]
    assert np.allclose(exact_scores(rows_ND, queries_QD, 7), wanted, atol=1e-5)


def test_recipes_fit_rows_and_memory() -> None:
    names = [one.name for one in recipes(1_000_000, 512, "auto", None)]
    assert names == ["IVF4096_HNSW32,RaBitQfs", "HNSW32,SQ8"]
    assert [one.structure for one in recipes(10**6, 512, "auto", 200 << 20)] == ["ivf"]
    assert recipes(10**6, 512, "hnsw", 200 << 20) == []
    # no list has fewer rows than it takes to find its centre
    assert recipes(12_000, 512, "ivf", None)[0].parameters["nlist"] <= 12_000 / 39


def test_recall_is_that_of_brute_force(rows_ND: np.ndarray) -> None:
    asked = texts(200, seed=5)
    trial = Trial(rows_ND, Questions(asked, "texts"), 0.5)
    [recipe] = recipes(ROWS, DIM, "ivf", None)
    index = build_ann(rows_ND, "ivf", recipe.name, recipe.parameters)
    half: Vectors = trial._tune[0]
    recall, _ = trial._recall(index, 3, 2, trial._tune)
    found = index.search(half, 16, 3, 2)[:, :10]
    true = np.argsort(-(half @ rows_ND.astype(np.float32).T), axis=1)[:, :10]
    shared = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(found, true, strict=True)]
    assert recall == pytest.approx(np.mean(shared) / 10, abs=0.002)
    assert 0.1 < recall < 1.0


def test_a_segment_streams_through_scratch_and_keeps_what_is_attached(tmp_path: Path) -> None:
    writer = SegmentWriter(Fs(), tmp_path, "one", "image", DIM, FIELDS)
    rows = pictures(40)
    for start in range(0, 40, 10):
        writer.add(rows[start : start + 10], [
            NewRow(f"r{n}", item("image", n, {})) for n in range(start, start + 10)
        ])  # fmt: skip
    assert np.array_equal(writer.vectors(), rows.astype(np.float16))
    entry = AnnEntry.model_construct()
    writer.attach_ann([b"ab", b"cd"], entry)
    with pytest.raises(AssertionError):
        writer.add(rows[:1], [NewRow("late", item("image", 99, {}))])
    assert (writer.directory / ANN_FILE).read_bytes() == b"abcd"
    writer.abort()


def test_scratch_that_does_not_fit_is_told(tmp_path: Path) -> None:
    spool = Spool(FailingFs(fail_at=1, code=errno.ENOSPC), tmp_path / "scratch")
    with pytest.raises(NoSpaceError):
        spool.write(b"x")
    spool.close()
    spool.close()
    sound = Spool(Fs(), tmp_path / "sound")
    sound.write(b"a" * (1 << 20))
    sound.write(memoryview(b"tail"))
    assert b"".join(sound.read()) == b"a" * (1 << 20) + b"tail"
    assert sound.map()[-4:] == b"tail"
    sound.remove()
    assert not (tmp_path / "sound").exists()
