"""Every bad source gives what its table says: rejects or one clear error, no traceback, no hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bad_sources import Case, all_cases, outcome

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_bad_source(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / case.name
    folder.mkdir()
    spec = case.make(folder)
    try:
        assert outcome(spec, case.options) == case.expected
    finally:
        # pytest's own removal of old folders recurses, and gives up a thousand levels down
        subprocess.run(["rm", "-rf", folder], check=True)


def test_names_of_cases_are_folders_of_their_own() -> None:
    names = [case.name for case in all_cases()]
    assert len(set(names)) == len(names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "head", "tail"),
    [
        ("a.jsonl", b"", b'\n{"text": "after"}\n'),
        ("a.csv", b"id,caption\n", b"\n1,after\n"),
        ("a.txt", b"", b"\nmissing.png\n"),
        ("b.csv", b'id,caption\n1,"', b"\n1,after\n"),
    ],
)
def test_a_line_of_a_gigabyte(tmp_path: Path, name: str, head: bytes, tail: bytes) -> None:
    with (tmp_path / name).open("wb") as file:
        file.write(head)
        file.seek(1 << 30)  # NUL up to here, sparse on disk
        file.write(tail)
    expected = ("line-too-long", "file-missing" if name == "a.txt" else "ok")
    assert outcome(str(tmp_path / name), {}) == expected


@pytest.mark.slow
def test_memory_is_flat_with_a_third_of_the_rows_bad() -> None:
    command = [sys.executable, str(ROOT / "tests" / "bench" / "read_manifest.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--rows", "20000", "200000", "--formats", "jsonl", "csv", "parquet"],
        env=environment, capture_output=True, check=True, timeout=280,
    )  # fmt: skip
    for few, many in json.loads(done.stdout.splitlines()[-1])["results"].values():
        # ten times the rows: the table of seen keys grows by 4 MB, nothing else
        assert many["peak_mb"] - few["peak_mb"] < 40
