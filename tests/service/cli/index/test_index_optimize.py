"""`diptych index optimize` and `info --plot` as processes: what they say, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from clustered import fill, pictures, texts
from console import diptych
from fakes import COLOURS
from indexes import build, record

from indexer.maintain.optimize import OptimizeOptions, optimize
from indexer.search.snapshot import open_snapshot
from models.errors import InputError
from service.cli.options import ByteSize
from service.cli.plots import draw_curves, pareto


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "x.index"
    for generation in range(2):
        build([record(f"p{generation}{name}", name, name) for name in COLOURS], path)
    return path


def test_what_it_did_is_told(small: Path) -> None:
    told = diptych("index", "optimize", "--index", small)
    assert told.returncode == 0
    assert "images  16 rows, 2 segments merged" in told.stdout
    assert "fewer than 10000 rows are searched exactly" in told.stdout
    again = json.loads(diptych("index", "optimize", "--index", small, "--json").stdout)
    assert (again["images"]["changed"], again["images"]["structure"]) == (False, "exact")
    found = json.loads(diptych("search", "--index", small, "red", "--json").stdout)
    assert found["hits"][0]["id"].endswith("red")


def test_what_it_refuses(small: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("red\nblue\n")
    for arguments, reason in (
        (["--queries", few], "at least 64 queries"),
        (["--memory", "much"], "is not a size"),
        (["--recall", "1"], "range"),
    ):
        refused = diptych("index", "optimize", "--index", small, *arguments)
        assert (refused.returncode, reason in refused.stderr) == (2, True), refused.stderr
    nowhere = diptych("index", "optimize", "--index", tmp_path / "none")
    assert "no index" in nowhere.stderr
    plain = diptych("index", "info", "--index", small, "--plot", tmp_path / "x.png")
    assert "no ANN structure" in plain.stderr


@pytest.mark.parametrize(
    ("text", "size"), [("4G", 4 << 30), ("512MiB", 512 << 20), ("1.5k", 1536), ("70", 70)]
)
def test_sizes(text: str, size: int) -> None:
    assert ByteSize().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["0", "-1", "much", "9" * 400, "9000000000T"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"not a size|too large"):
        ByteSize().convert(text, None, None)


def test_the_curve_is_drawn(tmp_path: Path) -> None:
    fill(tmp_path / "x", pictures(2000), texts(200))
    optimize(tmp_path / "x", OptimizeOptions(structure="ivf", floor=0.8, fewest=500, gain=0.0))
    with open_snapshot(tmp_path / "x", fingerprint=None) as snapshot:
        structures = snapshot.info().structures
    [one] = structures
    assert (one["target"], one["rows"], one["operating"]["kind"]) == ("images", 2000, "texts")
    draw_curves(structures, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="no ANN structure"):
        draw_curves([], tmp_path / "none.png")


def test_the_front_is_what_nothing_beats() -> None:
    points = [
        {"recall": recall, "latency_ms": latency}
        for recall, latency in [(0.9, 1.0), (0.8, 2.0), (0.95, 3.0), (0.95, 2.5), (0.7, 0.5)]
    ]
    front = [(one["recall"], one["latency_ms"]) for one in pareto(points)]
    beaten = [
        (a["recall"], a["latency_ms"])
        for a in points
        if any(
            b is not a and b["recall"] >= a["recall"] and b["latency_ms"] <= a["latency_ms"]
            for b in points
        )
    ]
    assert front == [(0.7, 0.5), (0.9, 1.0), (0.95, 2.5)]
    assert set(beaten) == {(0.8, 2.0), (0.95, 3.0)}
