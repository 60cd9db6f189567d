"""Thousands of damaged sources: no exception but `SourceError`, no crash, no hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutated_sources import SEEDS

TESTS = Path(__file__).resolve().parents[2]


def tally(kind: str, count: int) -> dict[str, int]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS / "support"))),
    }
    done = subprocess.run(
        [sys.executable, str(TESTS / "support" / "mutated_sources.py"), kind, str(count)],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", SEEDS)
def test_mutants(kind: str) -> None:
    found = tally(kind, 300)
    assert found["ok"] > 0, "some mutants are still readable"
    assert len(found) > 1, found


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEEDS)
def test_many_mutants(kind: str) -> None:
    tally(kind, 5_000)
