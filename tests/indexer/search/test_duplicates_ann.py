"""Near-duplicates through a search structure: nothing named wrongly, few missed, told as such."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from clustered import FINGERPRINT, fill, pictures, texts
from serving import run

from indexer.format.version import open_version
from indexer.maintain.optimize import OptimizeOptions, optimize
from indexer.search import duplicates
from indexer.search.duplicates import Duplicates, find_duplicates
from indexer.search.scanners import AnnScan
from indexer.store.writer import IndexWriter
from models.vectors import Vectors, unit_rows
from service.cli.main import cli

ROWS = 3000
LATER = 60
THRESHOLD = 0.97
CROWD = 300


def planted() -> Vectors:
    """3,000 pictures: 250 are copies of others, one of them has 300 copies of its own."""
    vectors_ND = pictures(ROWS)
    rng = np.random.default_rng(3)
    originals, copies = np.split(rng.permutation(ROWS - CROWD)[:500], 2)
    vectors_ND[copies] = vectors_ND[originals]
    vectors_ND[ROWS - CROWD :] = vectors_ND[5]
    return disturbed(vectors_ND, seed=4)


def disturbed(vectors_ND: Vectors, seed: int) -> Vectors:
    noise = np.random.default_rng(seed).standard_normal(vectors_ND.shape).astype(np.float32)
    return unit_rows(vectors_ND + 0.01 * noise)


@pytest.fixture(scope="module", params=["ivf", "hnsw"])
def album(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Optimized; then some rows died, and copies came that are in no structure."""
    path = tmp_path_factory.mktemp("album") / "x.index"
    vectors_ND = planted()
    fill(path, vectors_ND, texts(200))
    options = OptimizeOptions(structure=request.param, fewest=500, floor=0.8, gain=0.0)
    report = optimize(path, options)
    assert report.images.structure == request.param, report.images.notes
    with IndexWriter(path, FINGERPRINT) as writer:
        at = [one.modality for one in writer.manifest.segments].index("image")
        writer.commit([], [(at, row) for row in range(0, ROWS, 11)])
    fill(path, disturbed(vectors_ND[500 : 500 + LATER], 5), texts(1), start=ROWS, segments=2)
    return path


Named = dict[str, tuple[str, float]]


def named(path: Path, **more: object) -> tuple[Named, bool]:
    """Every picture named as superfluous, with the one to keep and their cosine."""
    version = open_version(path)
    try:
        found: Duplicates = find_duplicates(version, THRESHOLD, **more)  # type: ignore[arg-type]
        pairs = [(group.keep.id, one) for group in found for one in group.others]
        assert len({one.id for _, one in pairs}) == len(pairs)
        return {one.id: (keep, one.cosine) for keep, one in pairs}, found.exact
    finally:
        version.close()


def brute_force(path: Path) -> tuple[dict[str, str], list[str], npt.NDArray[np.float64]]:
    """The greedy loop over all pairs: (who joins whom, ids in order, their cosines)."""
    version = open_version(path)
    try:
        vectors, ids = [], []
        for segment, dead in zip(version.segments, version.dead, strict=True):
            if segment.entry.modality == "image":
                rows = np.flatnonzero(~dead)
                vectors.append(segment.vectors_ND[rows].astype(np.float64))
                loaded = segment.items.items(rows.tolist())
                ids += [loaded[row].id for row in rows.tolist()]
    finally:
        version.close()
    rows_RD = np.concatenate(vectors)
    cosines_RR = rows_RD @ rows_RD.T
    joined: dict[str, str] = {}
    kept: list[int] = []
    for number in range(len(ids)):
        close = [one for one in kept if cosines_RR[number, one] >= THRESHOLD]
        if close:
            joined[ids[number]] = ids[close[0]]
        else:
            kept.append(number)
    return joined, ids, cosines_RR


def test_nearly_all_are_found_and_none_is_wrong(album: Path) -> None:
    joined, ids, cosines_RR = brute_force(album)
    assert len(joined) > 500
    found, exact = named(album, fewest=100)
    assert not exact
    place = {one: at for at, one in enumerate(ids)}
    for other, (keep, cosine) in found.items():
        true = cosines_RR[place[other], place[keep]]
        assert true >= THRESHOLD - 1e-5
        assert cosine == pytest.approx(min(true, 1.0), abs=1e-5)
        assert place[keep] < place[other], "the preferred one is kept"
        assert keep not in found
    same = [one for one in joined if one in found and found[one][0] == joined[one]]
    assert len(same) / len(joined) >= 0.97
    assert len(found.keys() - joined.keys()) <= 0.01 * len(joined)


def test_every_pair_where_it_is_asked_for_or_the_index_is_small(album: Path) -> None:
    joined, _, _ = brute_force(album)
    for more in ({"exact": True, "fewest": 100}, {}):
        found, exact = named(album, **more)
        assert exact
        assert {other: keep for other, (keep, _) in found.items()} == joined


def test_what_the_structure_does_not_propose_is_missed(
    album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: recall is the structure's, precision is not."""
    joined, ids, cosines_RR = brute_force(album)
    rng = np.random.default_rng(0)

    def anything(self: AnnScan, queries_QD: Vectors, k: int) -> list[npt.NDArray[np.int64]]:
        return [rng.choice(ROWS, k, replace=False) for _ in queries_QD]

    live = AnnScan.propose
    monkeypatch.setattr(AnnScan, "propose", anything)
    monkeypatch.setattr(duplicates, "_BLOCK", 16)  # a block is compared in full
    found, _ = named(album, fewest=100)
    assert len(found) < 0.6 * len(joined)
    place = {one: at for at, one in enumerate(ids)}
    assert all(
        cosines_RR[place[other], place[keep]] >= THRESHOLD - 1e-5
        for other, (keep, _) in found.items()
    )
    monkeypatch.setattr(AnnScan, "propose", live)
    again, _ = named(album, fewest=100)
    assert len(again) > 0.95 * len(joined)


def test_a_crowd_is_claimed_at_once(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More copies than the deepest search names: one look at every row finds them all."""
    monkeypatch.setattr(duplicates, "_DEEPEST", 64)
    looks = []
    look = duplicates._Sky._everything_near
    monkeypatch.setattr(
        duplicates._Sky, "_everything_near", lambda self, one: looks.append(1) or look(self, one)
    )
    joined, _, _ = brute_force(album)
    found, _ = named(album, fewest=100)
    [(keep, size)] = Counter(joined.values()).most_common(1)
    assert size > 64
    assert sum(one == keep for one, _ in found.values()) == size
    assert 1 <= len(looks) <= 3


def test_pictures_without_duplicates_have_none(tmp_path: Path) -> None:
    fill(tmp_path / "x", pictures(600), texts(100))
    options = OptimizeOptions(structure="ivf", fewest=500, floor=0.5, gain=0.0)
    report = optimize(tmp_path / "x", options)
    assert report.images.structure == "ivf", report.images.notes
    assert named(tmp_path / "x", fewest=100) == ({}, False)


def test_the_command_line_says_so(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "FEWEST_ROWS", 100)
    base = ["index", "duplicates", "--index", str(album), "--threshold", str(THRESHOLD), "--json"]
    for more, exact in (([], False), (["--exact"], True)):
        result = CliRunner().invoke(cli, [*base, *more])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["exact"] is exact
        assert ("--exact compares every pair" in result.stderr) is not exact
    # too small for its structure to pay
    assert json.loads(run(*base).stdout)["exact"] is True
