"""`diptych --help` answers at once because it imports almost nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.cli import exits
from service.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[3]
HEAVY = {"torch", "faiss", "fastapi", "open_clip", "timm", "numpy", "PIL", "uvicorn", "pydantic"}
_PROBE = """
import sys
from service.cli.main import main
sys.argv = ["diptych", *{arguments!r}]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("IMPORTED", *sorted(sys.modules), file=sys.stderr)
"""


def run_help(*arguments: str) -> tuple[str, set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE.format(arguments=[*arguments, "--help"])],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout, set(done.stderr.rpartition("IMPORTED")[2].split())


def test_help_imports_nothing_heavy_and_names_every_command() -> None:
    shown, imported = run_help()
    assert not HEAVY & imported
    assert all(f"\n  {name} " in shown for name in COMMANDS)


def test_every_exit_code_is_told() -> None:
    codes = {
        value
        for name, value in vars(exits).items()
        if name.isupper() and isinstance(value, int) and not isinstance(value, bool)
    }
    assert codes == set(exits.MEANINGS)
    shown, _ = run_help()
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Exit codes")[2]
    for code, meaning in exits.MEANINGS.items():
        assert f"{code:>3}  {meaning}" in shown
        assert f"| {code} | {meaning} |" in readme


def test_the_probe_sees_heavy_imports() -> None:
    """Negative control: the check above would notice."""
    probe = "import numpy\n" + _PROBE.format(arguments=["--help"])
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "numpy" in done.stderr.split()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    shown, imported = run_help(command)
    assert not HEAVY & imported
    if command != "index":
        assert f"diptych {command}" in shown.partition("Options:")[0]
    assert len(shown.splitlines()) > 8
