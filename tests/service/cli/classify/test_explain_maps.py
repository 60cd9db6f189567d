"""`diptych classify --explain DIR`, and what search and info say of relevance."""

from __future__ import annotations

import json
from pathlib import Path

from fakes import halves, solid
from PIL import Image
from serving import run


def test_a_heat_map_per_picture(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    (photos / "red.png").write_bytes(halves("red", "white", size=(800, 400)))
    (photos / "deep" / "red.png").write_bytes(solid("red"))
    (photos / "broken.png").write_bytes(b"nope")
    maps = tmp_path / "made" / "maps"
    done = run("classify", photos, "--labels", "red,blue", "--explain", maps, "--format", "jsonl")
    assert done.returncode == 3, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    named = {Path(one["image"]).relative_to(photos).as_posix(): one for one in answers}
    assert "heatmap" not in named["broken.png"]
    assert named["red.png"]["heatmap"] == str(maps / "red.png")
    assert named["deep/red.png"]["heatmap"] == str(maps / "red-2.png")
    assert sorted(path.name for path in maps.iterdir()) == ["red-2.png", "red.png"]
    drawn = Image.open(maps / "red.png").convert("RGB")
    assert drawn.size == (512, 256)
    warmth = [
        red - blue
        for red, _, blue in (drawn.getpixel(place) for place in ((40, 128), (470, 128)))  # type: ignore[misc]
    ]
    # inferno's bright end is yellow, its dark end and the picture beneath are grey
    assert warmth[0] > 40 > 10 > warmth[1]


def test_explain_does_not_go_with_calibrate(tmp_path: Path) -> None:
    done = run("classify", "--calibrate", tmp_path, "--labels", "a,b", "--explain", tmp_path)
    assert done.returncode == 2
    assert "--explain" in done.stderr


def test_search_and_info_tell_relevance(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        for colour in ("red", "green", "blue"):
            (photos / f"{colour}{number}.png").write_bytes(solid(colour))
    for name, extra in (("with", []), ("without", ["--no-relevance"])):
        assert run("index", "build", photos, "--out", tmp_path / name, *extra).returncode == 0
    found = run("search", "--index", tmp_path / "with", "red", "-k", "9", "--json")
    answer = json.loads(found.stdout)
    assert answer["no_good_match"] is False
    assert [hit["relevance"] > 0.5 for hit in answer["hits"]] == [True] * 3 + [False] * 6
    nothing = run("search", "--index", tmp_path / "with", "qwerty")
    assert "fits well" in nothing.stderr
    assert len(nothing.stdout.splitlines()) == 9
    bare = json.loads(run("search", "--index", tmp_path / "without", "red", "--json").stdout)
    assert bare["no_good_match"] is None
    assert {hit["relevance"] for hit in bare["hits"]} == {None}
    info = run("index", "info", "--index", tmp_path / "with").stdout
    assert "313 background queries; images by text, image, mixed" in info
    about = json.loads(run("index", "info", "--index", tmp_path / "without", "--json").stdout)
    assert about["relevance"] is None
