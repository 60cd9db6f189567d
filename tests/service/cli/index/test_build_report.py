"""What a build shows while it runs and when it is done."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import ColourEncoder
from indexes import NAMES, ListSource, record
from PIL import Image

from indexer.ingest.build import BuildProgress, build_index
from models.errors import StoreError
from service.cli.index.build_report import (
    _Logged,
    draw_throughput,
    print_report,
    remaining,
)


def test_a_log_gets_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    show = _Logged(lambda: now[0])
    for second in range(0, 301, 10):
        now[0] = float(second)
        show(BuildProgress("embedding", 10 * second, 6000, 3, 9.87, "decode"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    figures = "9.9 img/s, decode-bound, 3 rejected"
    assert lines[0] == f"indexing: 600 of 6,000 records, {figures}, 9 minutes left"
    now[0] = 400.0
    show(BuildProgress("embedding", 7, None, 0, 1.0, "embed"))
    assert capsys.readouterr().err == "indexing: 7 records, 1.0 img/s, embed-bound\n"


def test_what_is_left() -> None:
    assert remaining(BuildProgress("embedding", 25, 100, 0), 10.0) == 30.0
    assert remaining(BuildProgress("embedding", 0, 100, 0), 10.0) is None
    assert remaining(BuildProgress("embedding", 5, None, 0), 10.0) is None


def test_summary_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "x.index", tmp_path / "speed.png"
    rows = [record(f"p{i}", NAMES[i % 8]) for i in range(20)]
    report = build_index([ListSource(rows)], out, ColourEncoder())
    shares = report.performance["stages"]
    assert abs(sum(one["share"] for one in shares.values()) - 1) < 0.01
    print_report(report, out)
    said = capsys.readouterr().out
    assert "20 added, 0 updated, 0 unchanged, 0 rejected" in said
    assert f"bottleneck: {report.performance['bottleneck']}" in said
    assert draw_throughput(report, out, None) is None  # a short build draws nothing by itself
    report.performance["timeline"] = [[0.0, 0], [30.0, 8], [90.0, 20]]
    beside = tmp_path / "x.index.build.png"
    for wish, target in ((None, beside), (plot, plot)):
        assert draw_throughput(report, out, wish) == target
        with Image.open(target) as picture:
            assert picture.format == "PNG"
    with pytest.raises(StoreError):
        draw_throughput(report, out, tmp_path / "nowhere" / "x.png")
