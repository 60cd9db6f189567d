"""A bounded run of `tests/bench/fuzz_api.py`, where schemathesis is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench" / "fuzz_api.py"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_thousand_made_up_requests() -> None:
    command = shutil.which("schemathesis")
    if command is None:
        pytest.skip("needs schemathesis on the PATH, in an environment of its own")
    done = subprocess.run(
        [sys.executable, str(BENCH), "--schemathesis", command, "--cases", "600"],
        capture_output=True, text=True, timeout=1100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["with_key"]["requests"] >= 2000
    assert result["with_key"]["statuses"]["200"] >= 100, "it gets past the checks, too"
    assert not result["with_key"]["wrong"]
    assert not result["without_key"]["wrong"]
