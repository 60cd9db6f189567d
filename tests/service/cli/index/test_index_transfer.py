"""`index export`, `import` and `verify --deep` as processes: exit codes, JSON, one-line errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from console import diptych
from indexes import build, record
from serving import run

from indexer.maintain.edit import delete_items
from indexer.transfer.exports import export_index


@pytest.fixture
def path(tmp_path: Path) -> Path:
    build([record("a", "red", "red"), record("b", "blue", "blue thing")], tmp_path / "x.index")
    return tmp_path / "x.index"


def test_there_and_back(path: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "out", tmp_path / "back.index"
    done = run("index", "export", "--index", path, "--out", out, "--format", "parquet", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["images"], told["texts"], told["format"]) == (2, 2, "parquet")
    done = run("index", "import", out, "--out", back, "--model", "colours", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rejected"] == 0
    done = run("index", "verify", "--index", back, "--deep", "--json")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert (report["ok"], report["versions"], report["orphans"]) == (True, [1, 0], [])


def test_a_copy_needs_no_model(path: Path, tmp_path: Path) -> None:
    copy, back = tmp_path / "copy.index", tmp_path / "back.index"
    assert (
        run("index", "export", "--index", path, "--out", copy, "--format", "copy").returncode == 0
    )
    done = run("index", "import", copy, "--out", back)
    assert done.returncode == 0, done.stderr
    assert "2 images and 2 texts" in done.stdout


def test_what_goes_wrong_is_one_line_and_an_exit_code(path: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    cases = [
        (2, ["export", "--index", path, "--out", path, "--format", "copy"], "exists already"),
        (2, ["export", "--index", tmp_path / "no", "--out", "x", "--format", "copy"], "no index"),
        (
            2,
            ["import", tmp_path / "folder", "--out", "x", "--model", "colours"],
            "embedding folder",
        ),
    ]
    for code, arguments, message in cases:
        done = run("index", *arguments)
        assert done.returncode == code, done.stderr
        [line] = [one for one in done.stderr.splitlines() if one.startswith("diptych:")]
        assert message in line
    done = run("index", "import", tmp_path / "folder", "--out", "x")
    assert done.returncode == 2
    assert "--model must name" in done.stderr
    out = tmp_path / "out"
    assert (
        run("index", "export", "--index", path, "--out", out, "--format", "parquet").returncode == 0
    )
    done = run("index", "import", out, "--out", tmp_path / "y.index", "--model", "colours-two")
    assert done.returncode == 4, done.stderr
    assert "colours-two" in done.stderr


def test_damage_shows_deep(path: Path) -> None:
    file = min((path / "segments").glob("*/vectors.npy"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    done = run("index", "verify", "--index", path, "--deep")
    assert done.returncode == 4
    assert "vectors.npy: sha256 is" in done.stdout
    assert "repair" in done.stderr


def test_repair_says_what_it_needs(path: Path) -> None:
    done = run("index", "repair", "--index", path)
    assert done.returncode == 0
    assert "nothing is damaged" in done.stdout
    file = min((path / "segments").glob("*-image-*/vectors.npy"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    done = run("index", "repair", "--index", path)
    assert done.returncode == 4
    assert "damaged: segments/" in done.stdout
    assert "--drop-damaged --yes" in done.stdout
    done = run("index", "repair", "--index", path, "--yes", "--drop-damaged", "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["lost"] == ["a", "b"]
    assert run("index", "verify", "--index", path, "--deep").returncode == 0


def test_what_was_deleted_stays_out_of_an_import_until_it_is_asked_for(
    path: Path, tmp_path: Path
) -> None:
    out, back = tmp_path / "out", tmp_path / "back.index"
    delete_items(path, ["a"])
    export_index(path, out, "parquet")
    build([record("a", "red", "red")], tmp_path / "old.index")
    export_index(tmp_path / "old.index", tmp_path / "old", "parquet")
    shutil.copy(out / "_erased.npy", tmp_path / "old")
    command = ("index", "import", tmp_path / "old", "--out", back, "--model", "colours", "--json")
    done = diptych(*command)
    assert (done.returncode, json.loads(done.stdout)["erased"]) == (0, 2)
    assert "2 deleted items were left out; --allow-erased" in done.stderr
    done = diptych(*command, "--allow-erased")
    assert json.loads(done.stdout)["images"] == 1
