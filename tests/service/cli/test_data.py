"""`diptych data report` on sets whose figures, worst captions and copies are known."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakes import COLOURS, ColourEncoder, halves, solid

from models.errors import SourceError
from models.evaluation.captions.quality import EDGES, NearDuplicates, QualityReport

NAMES = list(COLOURS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight colours with their names, "red" twice as other files, one wrong and one damaged."""
    here = tmp_path / "pictures"
    here.mkdir()
    for name in NAMES:
        (here / f"{name}.png").write_bytes(solid(name))
        (here / f"{name}.json").write_text(json.dumps({"captions": {"en": [name, f"all {name}"]}}))
    (here / "red2.png").write_bytes(solid("red", size=(40, 40)))
    (here / "red2.json").write_text(json.dumps({"captions": {"en": "red"}}))
    (here / "red3.png").write_bytes(solid("red"))
    (here / "red3.json").write_text(json.dumps({"captions": {"en": "blue thing", "zh": "红"}}))
    (here / "broken.png").write_bytes(b"no picture")
    (here / "broken.json").write_text(json.dumps({"captions": {"en": "x"}}))
    return here


def run(*arguments: str) -> Result:
    from service.cli.data import report

    return CliRunner().invoke(report, list(arguments), standalone_mode=False)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> ColourEncoder:
    one = ColourEncoder()
    monkeypatch.setattr("models.encoders.registry.load_encoder", lambda *_, **__: one)
    return one


def document(result: Result) -> dict[str, Any]:
    assert result.exception is None, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_everything_about_a_known_set(encoder: ColourEncoder, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.jsonl"
    result = run(str(folder), "--json", "--worst", "2", "--out", str(out))
    found = document(result)
    assert result.return_value == 3  # one picture is damaged
    assert found["data"]["pictures"] == 10
    assert found["data"]["rejects"] == {"image-undecodable": 1}
    quality = found["quality"]
    assert quality["pictures"] == 10
    english = quality["languages"]["en"]
    assert english["captions"] == 18
    assert english["mean"] == pytest.approx(17 / 18)
    assert english["quantiles"]["p50"] == 1.0
    assert english["suggested_floor"] is None  # too few to tell
    assert [(w["key"], w["text"], w["score"]) for w in quality["worst"]] == [
        ("red3.png", "blue thing", 0.0),
        ("black.png", "black", 1.0),
    ]
    assert found["near_duplicates"] == [
        {
            "keep": "red.png",
            "others": [
                {"key": "red2.png", "cosine": 1.0, "same_bytes": False},
                {"key": "red3.png", "cosine": 1.0, "same_bytes": True},
            ],
        }
    ]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 19
    assert [line["text"] for line in lines if line["score"] < 0.5] == ["blue thing"]
    assert not list(tmp_path.glob(".*"))


def test_for_people(encoder: ColourEncoder, folder: Path, tmp_path: Path) -> None:
    plot = tmp_path / "scores.png"
    text = run(str(folder), "--plot", str(plot), "--duplicates-at", "0.9").stdout
    for part in (
        "data: 10 pictures, 19 captions (18 en, 1 zh)",
        "en: 18 captions, mean cosine 0.944",
        "0.000  red3.png  [en] blue thing",
        "red.png: red2.png (1.000), red3.png (same file)",
        "too few to say how many are wrong",
    ):
        assert part in text
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_counting_alone_embeds_nothing(encoder: ColourEncoder, folder: Path) -> None:
    found = document(run(str(folder), "--no-scores", "--json"))
    assert set(found) == {"data"}
    assert (encoder.images_embedded, encoder.texts_embedded) == (0, 0)


def test_scores_are_remembered_in_the_cache(
    encoder: ColourEncoder, folder: Path, tmp_path: Path
) -> None:
    arguments = [str(folder), "--json", "--no-duplicates", "--cache", str(tmp_path / "cache")]
    first = document(run(*arguments))
    embedded = encoder.images_embedded
    assert document(run(*arguments)) == first
    assert encoder.images_embedded == embedded == 10
    assert "near_duplicates" not in first


def test_pictures_of_another_set_are_found(
    encoder: ColourEncoder, folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "val"
    other.mkdir()
    for name in ("red", "cyan"):
        (other / f"{name}.png").write_bytes(solid(name))
        (other / f"{name}.txt").write_text(name)
    (other / "new.png").write_bytes(halves("red", "cyan"))
    (other / "new.txt").write_text("new")
    found = document(run(str(folder), "--no-scores", "--json", "--against", str(other)))
    assert found["against"]["known_pictures"] == 2


def test_a_set_that_teaches_nothing_is_reported_and_refused(
    encoder: ColourEncoder, folder: Path
) -> None:
    result = run(str(folder), "--text-field", "captions.fr")
    assert isinstance(result.exception, SourceError)
    assert result.exception.code == "no-captions"
    assert "captions.en" in str(result.exception.hint)
    assert "11 records without a caption" in result.stdout
    assert encoder.images_embedded == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-scores", "--out", "x"],
        ["--no-scores", "--plot", "x.png"],
        ["--no-duplicates", "--duplicates-at", "0.9"],
    ],
)
def test_options_that_contradict_each_other(folder: Path, arguments: list[str]) -> None:
    import click

    assert isinstance(run(str(folder), *arguments).exception, click.UsageError)


def test_the_worst_are_those_a_sort_would_give() -> None:
    import numpy as np

    from models.evaluation.captions.alignment import CaptionScore, Scored

    rng = np.random.default_rng(0)
    scores = rng.integers(0, 20, 300) / 20
    report = QualityReport(worst=30)
    for at, score in enumerate(scores):
        report.add(Scored(str(at), "", "", [CaptionScore("en", "", float(score), 0.0)]))
    expected = sorted(range(300), key=lambda at: (scores[at], at))[:30]
    assert [int(row.key) for row, _ in report.worst()] == expected
    histogram = report.languages()["en"].histogram
    assert sum(histogram) == 300
    assert histogram == [
        sum(
            bool(low <= score < high or (high == EDGES[-1] and score >= low))
            for score in scores.astype(np.float32).astype(float)
        )
        for low, high in pairwise(EDGES)
    ]


def test_near_duplicates_of_nothing_and_of_all() -> None:
    import numpy as np

    with NearDuplicates(4) as near:
        assert list(near.groups(0.95)) == []
        for at in range(3):
            near.add(str(at), str(at), np.eye(4, dtype=np.float32)[0])
        (group,) = near.groups(0.95)
        assert (group.keep, [key for key, _, _ in group.others]) == ("0", ["1", "2"])
