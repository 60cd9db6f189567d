"""A manifest of which a third is bad, through the whole builder: memory, the report, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
CODE = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests/support", sys.argv[1] + "/tests/bench"]
from pathlib import Path
from embed import FlatTower, peak_mb
from indexer.ingest.build import BuildOptions, build_index
from models.sources import open_source
out = Path(sys.argv[3])
options = BuildOptions(workers=2, thumbnails=False, relevance=False)
report = build_index([open_source(sys.argv[2])], out, FlatTower(), options=options)
print(json.dumps({"peak_mb": peak_mb(), **report.to_dict()}))
"""


def manifest(folder: Path, rows: int) -> Path:
    sys.path.insert(0, str(ROOT / "tests" / "bench"))
    try:
        from read_manifest import furnish, write
    finally:
        sys.path.pop(0)
    folder.mkdir()
    furnish(folder)
    return write(folder, "jsonl", rows)


def built(path: Path, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", CODE, str(ROOT), str(path), str(out)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=1800)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def lines(out: Path) -> int:
    with out.with_name(out.name + ".rejects.jsonl").open(encoding="ascii") as file:
        return sum(1 for line in file if json.loads(line)["code"] and len(line) < 3000)


def test_a_third_of_the_rows_is_bad(tmp_path: Path) -> None:
    path, out = manifest(tmp_path / "rows", 600), tmp_path / "x.index"
    report = built(path, out)
    assert (report["added"], report["rejected"], lines(out)) == (420, 180, 180)
    command = [
        sys.executable,
        str(ROOT / "tests" / "support" / "colour_cli.py"),
        "index",
        "build",
        str(path),
    ]
    run = subprocess.run(
        [*command, "--out", str(tmp_path / "y.index"), "--max-errors", "50", "--json"],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 3, run.stderr
    stopped = json.loads(run.stdout)
    assert stopped["stopped"]
    assert stopped["rejected"] == 51
    assert 0 < stopped["images"] < 420, "what came before is kept"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_is_flat_and_the_report_complete(tmp_path: Path) -> None:
    peaks = {}
    for rows in (20_000, 200_000):
        path, out = manifest(tmp_path / str(rows), rows), tmp_path / f"{rows}.index"
        report = built(path, out)
        bad = rows * 3 // 10
        assert (report["added"], report["rejected"], lines(out)) == (rows - bad, bad, bad)
        peaks[rows] = report["peak_mb"]
    # the tables of keys grow by some 20 bytes a row, and a full segment's words wait in memory
    assert peaks[200_000] - peaks[20_000] < 100
