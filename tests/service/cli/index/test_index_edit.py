"""`diptych index add | delete | rollback | purge | history` as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import console
import pytest
from fakes import COLOURS, solid
from indexes import ids, opened

from indexer.maintain.verify import verify_index
from indexer.store.sweep import KEEP_VERSIONS

DRIVER = Path(__file__).resolve().parents[3] / "support" / "colour_cli.py"


def diptych(
    *arguments: str | Path, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    return console.diptych("index", *arguments, stdin=stdin, **environment)


def answer(*arguments: str | Path, code: int = 0, stdin: str = "") -> dict[str, object]:
    done = diptych(*arguments, "--json", stdin=stdin)
    assert done.returncode == code, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in COLOURS:
        folder = tmp_path / ("more" if name in ("white", "black") else "pictures")
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.png").write_bytes(solid(name, size=(8, 8)))
        (folder / f"{name}.txt").write_text(f"{name}\n")
    return tmp_path


def live(path: Path) -> set[str]:
    assert verify_index(path).ok
    with opened(path) as snapshot:
        return {key.removesuffix(".png") for key in ids(snapshot, "red")}


def test_the_life_of_an_index(home: Path) -> None:
    out = home / "x.index"
    answer("build", home / "pictures", "--out", out)
    report = answer("add", home / "more", "--index", out)
    assert (report["added"], report["images"], report["version"]) == (2, 8, 2)
    assert live(out) == set(COLOURS)

    lines = 'green.png\n\n{"id": "blue.png", "score": 1}\n'
    dry = answer("delete", "--index", out, "red.png", "--ids", "-", "--dry-run", stdin=lines)
    assert (dry["removed_images"], dry["version"], dry["dry_run"]) == (3, 2, True)
    gone = answer("delete", "--index", out, "red.png", "--ids", "-", stdin=lines)
    assert (gone["removed_images"], gone["removed_texts"], gone["erased"]) == (3, 3, 3)
    assert live(out) == set(COLOURS) - {"red", "green", "blue"}
    partial = answer("delete", "--index", out, "red.png", "cyan.png", code=3)
    assert (partial["missing"], partial["removed_images"]) == (["red.png"], 1)

    # the same sources again: what was deleted stays out, and the run says so
    again = diptych("build", home / "pictures", "--out", out)
    assert again.returncode == 0
    assert "4 deleted items were left out" in again.stderr
    assert live(out) == {"yellow", "magenta", "white", "black"}

    back = answer("rollback", "--index", out, "--to", "1")
    assert (back["images"], back["removed_images"]) == (2, 4)
    assert live(out) == {"yellow", "magenta"}
    answer("rollback", "--index", out, "--to", "4")
    assert live(out) == {"yellow", "magenta", "white", "black"}
    past = answer("history", "--index", out)["versions"]
    assert [one["operation"] for one in past] == [  # type: ignore[attr-defined]
        "rollback", "rollback", "delete", "delete", "add", "build", None,
    ]  # fmt: skip

    receipt = answer("purge", "--index", out)
    assert (receipt["clean"], receipt["versions"], receipt["erased"]) == (True, 7, 4)
    assert live(out) == {"yellow", "magenta", "white", "black"}
    returned = answer("add", home / "pictures", "--index", out, "--allow-erased")
    assert returned["added"] == 4
    assert live(out) == set(COLOURS)


def test_for_people(home: Path) -> None:
    out = home / "x.index"
    diptych("build", home / "pictures", "--out", out)
    (home / "pictures" / "red.png").rename(home / "pictures" / "rose.png")
    done = diptych("build", home / "pictures", "--out", out, "--mirror")
    assert "1 added" in done.stdout
    assert "1 removed" in done.stdout
    done = diptych("delete", "--index", out, "blue.png", "nobody")
    assert "1 images and 1 texts deleted" in done.stdout
    assert "1 not in the index: 'nobody'" in done.stdout
    table = diptych("history", "--index", out).stdout.splitlines()
    assert len(table) == 5
    assert table[1].endswith("current")
    assert "delete" in table[1]
    done = diptych("purge", "--index", out)
    assert "none found" in done.stdout


def kept(out: Path) -> list[int]:
    versions = answer("history", "--index", out)["versions"]
    assert isinstance(versions, list)
    return [one["version"] for one in versions]


def test_old_versions_go_when_asked(home: Path) -> None:
    out = home / "x.index"
    first = diptych("build", home / "pictures", "--out", out)
    for name in ("red", "green"):
        gone = diptych("delete", "--index", out, f"{name}.png")
        assert "removed" not in first.stdout + gone.stdout
    assert kept(out) == [3, 2, 1, 0]
    assert (
        "\nolder versions removed: 2\n"
        in diptych("delete", "--index", out, "blue.png", "--keep", "3").stdout
    )
    assert kept(out) == [4, 3, 2]
    more = ("add", home / "more", "--index", out)
    assert answer(*more, "--keep-size", "2GB", "--keep-days", "0.5")["collected"] == 0
    assert answer(*more, "--keep-size", "1")["collected"] == 3
    assert kept(out) == [5]
    assert (
        "older versions removed: 1\n" in diptych("optimize", "--index", out, "--keep", "1").stdout
    )
    assert "removed" not in diptych("optimize", "--index", out, "--keep", "1").stdout
    refused = diptych("rollback", "--index", out, "--to", "4")
    assert "version 4 is not kept; kept are 6" in refused.stderr


@pytest.mark.parametrize("command", ["build", "add", "delete", "optimize"])
def test_what_is_kept_by_default_is_told(command: str) -> None:
    told = " ".join(diptych(command, "--help").stdout.split())
    assert f"the current one among them. [default: {KEEP_VERSIONS}]" in told
    assert "--keep-days D" in told
    assert "--keep-size SIZE" in told
    for wrong in (["--keep", "0"], ["--keep-days", "-1"], ["--keep-size", "0"]):
        done = diptych(command, *wrong)
        assert (done.returncode, wrong[0] in done.stderr) == (2, True)


def test_nothing_new_loads_no_model(home: Path) -> None:
    out = home / "x.index"
    assert "Loading" in diptych("build", home / "pictures", "--out", out).stderr
    assert "Loading" not in diptych("build", home / "pictures", "--out", out).stderr
    (home / "pictures" / "red.png").unlink()
    done = diptych("build", home / "pictures", "--out", out, "--mirror")
    assert (done.returncode, "Loading" in done.stderr) == (0, False)
    assert "Loading" in diptych("add", home / "more", "--index", out).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["delete"], 2, "name an ID"),
        (["delete", "--filter", "{"], 2, "not JSON"),
        (["delete", "--filter", '{"field": "size", "eq": 1}'], 2, "not declared"),
        (["delete", "--ids", "-"], 2, "line 1: no object with an id"),
        (["rollback", "--to", "7"], 2, "not kept"),
        (["rollback", "--to", "1"], 2, "is the current one"),
    ],
)
def test_what_cannot_be_done_is_said(
    home: Path, arguments: list[str], code: int, words: str
) -> None:
    out = home / "x.index"
    diptych("build", home / "pictures", "--out", out)
    done = diptych(arguments[0], "--index", out, *arguments[1:], stdin='{"key": 1}\n')
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert len(live(out)) == 6


def test_a_mirror_of_an_empty_folder_is_refused(home: Path) -> None:
    out = home / "x.index"
    diptych("build", home / "pictures", "--out", out)
    (home / "empty").mkdir()
    done = diptych("build", home / "empty", "--out", out, "--mirror")
    assert done.returncode == 2
    assert "6 of 6 records seem to be gone" in done.stderr
    assert len(live(out)) == 6


def test_no_index_is_said_before_anything_is_made(home: Path) -> None:
    for name in ("add", "delete", "rollback", "purge", "history"):
        more = {"add": [str(home / "more")], "delete": ["x"], "rollback": ["--to", "1"]}
        done = diptych(name, "--index", home / "none", *more.get(name, []))
        assert (done.returncode, "no index at" in done.stderr) == (2, True), done.stderr
        assert not (home / "none").exists()


@pytest.mark.slow
def test_of_twenty_writers_at_once_exactly_one_proceeds(home: Path) -> None:
    out = home / "x.index"
    diptych("build", home / "pictures", "--out", out)

    def add(_: int) -> subprocess.CompletedProcess[str]:
        # long enough that the first is still at it when the last has started
        return subprocess.run(
            [sys.executable, DRIVER, "index", "add", home / "more", "--index", out],
            env={**os.environ, "COLOUR_DELAY": "25"}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    with ThreadPoolExecutor(20) as pool:
        done = list(pool.map(add, range(20)))
    codes = sorted(one.returncode for one in done)
    assert codes == [0] + [5] * 19
    assert all("is being written by process" in one.stderr for one in done if one.returncode)
    assert live(out) == set(COLOURS)
