"""docs/python.md and the README's Python lines: they run as they stand, one after the other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import skimage

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPHS = {
    "cat.png": ("chelsea.png", "a ginger cat"),
    "cup.png": ("coffee.png", "a cup of coffee on a wooden table"),
    "astronaut.png": ("astronaut.png", "an astronaut in an orange suit"),
    "rocket.jpg": ("rocket.jpg", "a rocket on its launch pad at night"),
}


def examples(document: Path) -> list[str]:
    text = document.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, (original, caption) in PHOTOGRAPHS.items():
        shutil.copy(Path(skimage.__file__).parent / "data" / original, photos / name)
        (photos / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return tmp_path


def run(program: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", program],
        cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_ten_examples_run(folder: Path) -> None:
    found = examples(ROOT / "docs" / "python.md")
    assert len(found) == 10
    said = run("\n".join(found), folder)
    assert "4 pictures, 0 refused" in said
    first = [line.split()[1] for line in said.splitlines()[1:4]]
    assert first[0] == "cup.png"
    assert re.search(r"^a cat [01]\.\d\d$\n^a cup [01]\.\d\d$", said, re.MULTILINE)
    assert (folder / "cat.jpg").read_bytes().startswith(b"\xff\xd8")


def test_the_readme_s_lines_run(folder: Path) -> None:
    [program] = examples(ROOT / "README.md")
    said = run(program.replace("~/Pictures", "photos"), folder)
    assert "photos/cup.png" in said.splitlines()[0]
