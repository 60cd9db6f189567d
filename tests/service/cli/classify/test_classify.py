"""`diptych classify` on whole folders: formats, sorting, undoing, calibrating, examples."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from console import diptych
from fakes import halves, solid
from serving import command, environment, run

COLOURS = ("red", "green", "blue")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for colour in COLOURS:
        (folder / f"{colour}.png").write_bytes(solid(colour))
    (folder / "deep" / "red.png").write_bytes(solid("red", size=(40, 40)))
    return folder


def pictures(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.png"))
        if not path.is_symlink()
    }


def answered(done: subprocess.CompletedProcess[str], code: int = 0) -> str:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


LABELS = ("--labels", "red,green,blue")


def test_a_folder_in_every_format(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"nope")
    whole = json.loads(answered(run("classify", photos, *LABELS, "--json"), 3))["results"]
    assert [Path(r["image"]).relative_to(photos).as_posix() for r in whole] == [
        "blue.png", "broken.png", "green.png", "red.png", "deep/red.png",
    ]  # fmt: skip
    lines = answered(run("classify", photos, *LABELS, "--format", "jsonl"), 3).splitlines()
    assert [json.loads(line) for line in lines] == whole
    out = tmp_path / "out.csv"
    done = run("classify", photos, *LABELS, "--format", "csv", "--top-k", "1", "--out", out)
    assert answered(done, 3) == ""
    rows = list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"))))
    assert [(Path(row["image"]).name, row["label"], row["error"]) for row in rows] == [
        ("blue.png", "blue", ""), ("broken.png", "", "image-undecodable"),
        ("green.png", "green", ""), ("red.png", "red", ""), ("red.png", "red", ""),
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_shards_and_a_manifest(photos: Path, tmp_path: Path) -> None:
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        for colour in COLOURS:
            tar.add(photos / f"{colour}.png", f"{colour}.png")
    (tmp_path / "list.jsonl").write_text('{"image": "photos/green.png"}\n')
    found = json.loads(
        answered(run("classify", shard, tmp_path / "list.jsonl", *LABELS, "--json"))
    )["results"]
    assert [r["predictions"][0]["label"] for r in found] == ["red", "green", "blue", "green"]
    refused = run("classify", shard, *LABELS, "--sort-into", tmp_path / "s", "--by", "move")
    assert refused.returncode == 2
    answered(run("classify", shard, *LABELS, "--sort-into", tmp_path / "s"))
    assert (tmp_path / "s" / "green" / "green.png").read_bytes() == solid("green")


def test_abstaining_trees_and_forms_of_thresholds(photos: Path) -> None:
    (photos / "odd.png").write_bytes(halves("magenta", "cyan"))
    options = ("--labels", "warm/red,cold/blue,cold/green", "--level", "1", "--json")
    found = json.loads(answered(run("classify", photos, *options, "--abstain")))["results"]
    by_name = {Path(r["image"]).stem: r for r in found}
    assert by_name["odd"]["abstained"] is True
    assert by_name["blue"]["abstained"] is False
    assert by_name["blue"]["predictions"][0]["path"] == ["cold"]
    calm = json.loads(answered(run("classify", photos, *options, "--abstain-at", "1")))["results"]
    assert not any(r["abstained"] for r in calm)


@pytest.mark.parametrize("by", ["copy", "link", "move"])
def test_sorting_and_undoing(photos: Path, tmp_path: Path, by: str) -> None:
    before = pictures(photos)
    (photos / "odd.png").write_bytes(halves("magenta", "cyan"))
    whole = pictures(photos)
    out = tmp_path / "sorted"
    sort = ("classify", photos, *LABELS, "--abstain", "--sort-into", out)
    planned = answered(run(*sort, "--dry-run"))
    assert not out.exists()
    done = answered(run(*sort, "--by", by))
    assert done == planned, "the dry run says what happens"
    sorted_names = {str(path.relative_to(out)) for path in out.rglob("*.png")}
    assert sorted_names == {
        "red/red.png", "red/red-2.png", "green/green.png", "blue/blue.png", "_none/odd.png",
    }  # fmt: skip
    assert pictures(photos) == ({} if by == "move" else whole)
    (undo_file,) = out.glob("undo-*.jsonl")
    back = run("classify", "--undo", undo_file)
    assert "5 actions" in answered(back)
    assert pictures(photos) == whole
    assert set(before) < set(whole)
    assert not list(out.rglob("*.png"))
    assert answered(run("classify", "--undo", undo_file, "--json")) == (
        '{\n  "restored": 0,\n  "kept": []\n}\n'
    )


def test_sorting_a_folder_into_itself_ends(photos: Path) -> None:
    sort = ("classify", photos, *LABELS, "--sort-into", photos / "sorted", "--by", "move")
    answered(run(*sort))
    first = pictures(photos)
    assert set(first) == {
        "sorted/red/red.png", "sorted/red/red-2.png", "sorted/green/green.png",
        "sorted/blue/blue.png",
    }  # fmt: skip
    assert answered(run(*sort)) == ""
    assert pictures(photos) == first


def test_killed_in_the_middle_of_moving(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "sorted"
    photos.mkdir()
    for number in range(300):
        (photos / f"{number:03}.png").write_bytes(solid("red", size=(8 + number % 9, 8)))
    before = pictures(photos)
    process = subprocess.Popen(
        command("classify", photos, *LABELS, "--sort-into", out, "--by", "move"),
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list((out / "red").glob("*.png")) if out.exists() else []) < 40:
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left, moved = pictures(photos), pictures(out)
    assert left
    assert moved
    assert len(left) + len(moved) >= 300, "a picture is lost"
    (undo_file,) = out.glob("undo-*.jsonl")
    answered(run("classify", "--undo", undo_file))
    assert pictures(photos) == before
    assert pictures(out) == {}


def test_calibration_reports_plots_and_saves(tmp_path: Path) -> None:
    data = tmp_path / "labelled"
    for colour in COLOURS:
        (data / colour).mkdir(parents=True)
        for number in range(5):
            # an eighth of them show another colour than their folder says
            shown = solid("blue") if (colour, number) == ("red", 0) else solid(colour)
            (data / colour / f"{number}.png").write_bytes(shown)
    plot, sets = tmp_path / "plot.png", tmp_path / "sets"
    done = run(
        "classify", "--calibrate", data, "--plot", plot, "--save", "mine", "--label-sets", sets,
        "--template-set", "plain", "--json",
    )  # fmt: skip
    report: dict[str, Any] = json.loads(answered(done))
    assert report["pictures"] == 15
    assert report["accuracy"] == pytest.approx(14 / 15, abs=1e-6)
    assert report["temperature"] > 2, "one wrong answer at a scale of 20 is overconfident"
    assert report["nll_after"] < report["nll_before"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    stored = json.loads((sets / "mine.json").read_text())["label_set"]
    assert stored["temperature"] == pytest.approx(report["temperature"], abs=1e-5)
    assert sorted(stored["labels"]) == sorted(COLOURS)
    picture = data / "red" / "1.png"
    use = ("classify", picture, "--label-set", "mine", "--label-sets", sets, "--json")
    (found,) = json.loads(answered(run(*use)))["results"]
    plain = ("classify", picture, *LABELS, "--template-set", "plain", "--json")
    (sure,) = json.loads(answered(run(*plain)))["results"]
    assert found["predictions"][0]["label"] == "red"
    assert found["predictions"][0]["probability"] < sure["predictions"][0]["probability"]


def test_calibration_says_what_it_left_out(photos: Path) -> None:
    for number in range(12):
        (photos / "deep" / f"red-{number}.png").write_bytes(solid("red"))
    done = run("classify", "--calibrate", photos, "--labels", "deep,other")
    answered(done, 3)
    assert "no label" in done.stderr
    few = run("classify", "--calibrate", photos, "--labels", "never,other")
    assert few.returncode == 2
    assert "at least 10" in few.stderr


def test_examples_from_folders(photos: Path, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    for label, colour in (("apple", "red"), ("sky", "blue")):
        (shown / label).mkdir(parents=True)
        for number in range(3):
            (shown / label / f"{number}.png").write_bytes(solid(colour))
    done = run(
        "classify", photos, "--labels", "sky,apple", "--examples", shown, "--shots", "2", "--json"
    )
    found = {
        Path(r["image"]).stem: r["predictions"][0]["label"]
        for r in json.loads(answered(done))["results"]
    }
    assert (found["red"], found["blue"]) == ("apple", "sky")
    assert "4 examples of 2 labels" in done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "give pictures"),
        (("x.png",), "--labels"),
        (("x.png", "--undo", "u"), "give pictures"),
        (("x.png", *LABELS, "--label-set", "a"), "either"),
        (("x.png", "--label-set", "a"), "--label-sets DIR"),
        (("x.png", "--label-set", "../a", "--label-sets", "."), "named by"),
        (("x.png", "--label-set", "a", "--label-sets", "."), "no label set"),
        (("x.png", *LABELS, "--dry-run"), "--sort-into"),
        (("x.png", *LABELS, "--plot", "p"), "--calibrate"),
        (("x.png", *LABELS, "--temperature", "0"), "temperature"),
        (("x.png", *LABELS, "--level", "1"), "paths"),
        (("x.png", *LABELS, "--json", "--format", "csv"), "contradict"),
        (("x.png", "--labels", "a/b,a/b/c"), "parent of another"),
        (("--calibrate", ".", *LABELS, "--level", "1"), "--level"),
        ((".", *LABELS, "--offset", "1"), "--multi-label"),
        (("--undo", "/nonexistent"), "cannot read"),
        (("x.tar", *LABELS), "x.tar"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    options: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("classify", *options)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_without_matplotlib_one_line_says_so(photos: Path) -> None:
    hide = "import sys; sys.modules['matplotlib'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", hide + command()[2], "classify", "--calibrate", photos, "--plot",
         "p.png"],
        env=environment() | {"PYTHONWARNINGS": "error"}, capture_output=True, text=True,
        timeout=60, cwd=photos,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "diptych[plots]" in done.stderr


def test_a_name_that_is_not_utf8(photos: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(photos) + b"/\xff.png"))
    odd.write_bytes(solid("green"))
    out = tmp_path / "sorted"
    answered(run("classify", photos, *LABELS, "--sort-into", out, "--by", "move"))
    (undo_file,) = out.glob("undo-*.jsonl")
    answered(run("classify", "--undo", undo_file))
    assert odd.read_bytes() == solid("green")


def test_a_source_without_a_picture_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "notes.md").write_text("no picture")
    done = diptych("classify", tmp_path / "disk", "--labels", "red,blue", "--model", "colours")
    assert (done.returncode, done.stdout) == (3, "")
    assert f"No picture was found in {tmp_path / 'disk'}" in done.stderr
