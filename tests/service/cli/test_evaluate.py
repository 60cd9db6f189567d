"""`diptych evaluate` beyond one model and one set: comparisons, calibration, probes, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from fakes import COLOURS, ColourEncoder, halves, solid

from models.encoder import PreparedText
from models.errors import InputError, InvalidLabelsError, SourceError
from models.evaluation.measures import ZeroShotLogits, zero_shot_logits, zero_shot_metrics
from models.labels.calibration import calibrate
from models.metrics import expected_calibration_error
from models.sources import open_source
from models.sources.embedded import collect
from models.vectors import Vectors

NAMES = list(COLOURS)


class ShiftedEncoder(ColourEncoder):
    """Reads every colour's name as the next one's: right about nothing."""

    def embed_texts(self, texts: Any) -> Vectors:
        shifted = [
            PreparedText([NAMES[(NAMES.index(w) + 1) % 8] if w in NAMES else w for w in t.tokens])
            for t in texts
        ]
        return super().embed_texts(shifted)


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, **_: Any) -> ColourEncoder:
        return ShiftedEncoder(name=name) if name == "A/shifted" else ColourEncoder(name=name)

    monkeypatch.setattr("models.encoders.registry.load_encoder", load)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Two pictures of each colour, and two that are mostly another than their label says."""
    here = tmp_path / "shelf"
    here.mkdir()
    for at, name in enumerate(NAMES * 2):
        (here / f"{at:02d}.png").write_bytes(solid(name, size=(20 + at, 20)))
        caption = {"captions": {"en": name}, "label": name}
        (here / f"{at:02d}.json").write_text(json.dumps(caption))
    for at in (90, 91):
        (here / f"{at}.png").write_bytes(halves("red", "red", size=(at, 9)))
        (here / f"{at}.json").write_text(json.dumps({"captions": {"en": "blue"}, "label": "blue"}))
    return here


def run(*arguments: str) -> Result:
    from service.cli.evaluate import evaluate

    return CliRunner().invoke(evaluate, list(arguments), standalone_mode=False)


def documents(result: Result) -> Any:
    assert result.exception is None, result.output
    return json.loads(result.stdout)


def test_two_models_side_by_side(shelf: Path) -> None:
    arguments = ("--data", str(shelf), "--model", "A/right", "--model", "A/shifted")
    found = documents(run("--task", "retrieval", *arguments, "--json"))
    assert [(d["model"], d["pretrained"]) for d in found] == [("A", "right"), ("A", "shifted")]
    # "blue" finds one of the two blue pictures, or for the mislabelled ones never the right one
    right, shifted = (d["metrics"]["image_retrieval_recall@1"] for d in found)
    assert right == pytest.approx((6 * 2 * 0.5 + 2 * 0.25 + 2 * 0.5) / 18, abs=0.06)
    assert shifted < 0.12
    text = run("--task", "zero-shot", *arguments, "--template", "{c}").stdout
    assert " A/right  A/shifted" in text
    (line,) = [line for line in text.splitlines() if line.strip().startswith("top-1")]
    assert line.split()[1:] == ["88.9", "0.0"]  # 16 of 18


def test_several_sets_are_measured_apart_and_parts_together(shelf: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in NAMES[:2]:
        (other / f"{name}.png").write_bytes(solid(name))
        (other / f"{name}.json").write_text(json.dumps({"label": name}))
    out = tmp_path / "found.json"
    result = run(
        *("--task", "zero-shot", "--template", "{c}", "--json", "--out", str(out)),
        *("--data", str(shelf), "--data", str(other)),
    )
    found = documents(result)
    assert [(d["dataset"], d["counts"]["pictures"]) for d in found] == [
        (str(shelf), 18),
        (str(other), 2),
    ]
    assert json.loads(out.read_text()) == found
    assert found[0]["metrics"]["acc5"] >= found[0]["metrics"]["acc1"]
    # two classes: CLIP_benchmark has NaN here, which JSON has not
    assert found[1]["metrics"]["acc5"] is None
    assert "temperature" not in found[1]["metrics"]  # two pictures fit no temperature


def test_calibration_of_known_logits_and_the_plot(shelf: Path, tmp_path: Path) -> None:
    encoder = ColourEncoder()
    found = zero_shot_logits(
        encoder, collect([open_source(str(shelf))], encoder), templates=["{c}"]
    )
    # a solid colour: 20 for its name and 0 for the others, at the pair's own scale
    order = sorted(NAMES)
    expected = np.zeros((18, 8))
    for row, name in enumerate([*NAMES * 2, "red", "red"]):
        expected[row, order.index(name)] = 20.0
    assert np.allclose(found.logits_BC, expected, atol=1e-4)
    metrics = zero_shot_metrics(found)
    sure = 1 / (1 + 7 * np.exp(-20.0))
    assert metrics["ece"] == pytest.approx(sure - 16 / 18, abs=1e-6)
    plot = tmp_path / "reliability.png"
    arguments = ("--task", "zero-shot", "--data", str(shelf), "--template", "{c}")
    written = documents(run(*arguments, "--plot", str(plot), "--json"))["metrics"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    fitted = calibrate(found.logits_BC, found.target_B)
    assert written["ece"] == pytest.approx(metrics["ece"])
    assert written["temperature"] == pytest.approx(fitted.temperature)
    assert written["ece_calibrated"] == pytest.approx(fitted.ece_after)


def test_a_sigmoid_trained_pair_is_also_judged_by_its_sigmoid() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 6)) * 3
    target = rng.integers(0, 6, 200).tolist()
    found = ZeroShotLogits(logits, target, 6)
    softmax, sigmoid = zero_shot_metrics(found), zero_shot_metrics(found, logit_bias=-2.0)
    assert "ece_sigmoid" not in softmax
    assert sigmoid["ece"] == softmax["ece"]  # the bias is the same for all classes
    each = 1 / (1 + np.exp(-(logits - 2.0)))
    assert sigmoid["ece_sigmoid"] == pytest.approx(expected_calibration_error(each, target))


def test_template_sets_by_name(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.labels.prompts import TEMPLATE_SETS

    seen: list[Any] = []
    original = zero_shot_logits

    def spy(*arguments: Any, **named: Any) -> ZeroShotLogits:
        seen.append(named["templates"])
        return original(*arguments, **named)

    monkeypatch.setattr("models.evaluation.tasks.zero_shot_logits", spy)
    arguments = ("--task", "zero-shot", "--data", str(shelf))
    assert run(*arguments, "--template-set", "food", "--template", "my {c}").exception is None
    assert run(*arguments).exception is None
    assert seen[0] == (*TEMPLATE_SETS["food"], "my {c}")
    assert seen[1] == TEMPLATE_SETS["default"]


def test_a_linear_probe_learns_what_the_words_do_not_say(shelf: Path) -> None:
    arguments = ("--task", "linear-probe", "--data", str(shelf), "--train", str(shelf))
    found = documents(run(*arguments, "--model", "A/shifted", "--json"))
    assert found["task"] == "linear_probe"
    # the mislabelled two look like red: one of the labels of that look is right at most
    assert found["metrics"]["lp_acc1"] == pytest.approx(16 / 18)
    assert found["counts"] == {"pictures": 18, "classes": 8, "train_pictures": 18}
    text = run(*arguments, "--shots", "1").stdout
    assert "8 train pictures" in text
    assert "top-1" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--task", "linear-probe", "--data", "x"],
        ["--task", "retrieval", "--data", "x", "--train", "y"],
        ["--task", "zero-shot", "--data", "x", "--shots", "3"],
        ["--task", "retrieval", "--data", "x", "--plot", "y.png"],
        ["--task", "retrieval", "--data", "x", "--template-set", "food"],
    ],
)
def test_options_that_do_not_go_together(arguments: list[str]) -> None:
    assert isinstance(run(*arguments).exception, click.UsageError)


def test_what_cannot_be_measured_is_one_line(shelf: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    (few / "a.png").write_bytes(solid("red"))
    (few / "a.json").write_text('{"label": "red"}')
    result = run(
        *("--task", "zero-shot", "--data", str(few), "--template", "{c}"),
        *("--plot", str(tmp_path / "x.png")),
    )
    assert isinstance(result.exception, InputError)
    assert "ten labelled pictures" in result.exception.message
    missing = run("--task", "retrieval", "--data", str(few))
    assert isinstance(missing.exception, SourceError)
    unwritable = run(
        "--task", "retrieval", "--data", str(shelf), "--out", str(tmp_path / "no" / "x.json")
    )
    assert isinstance(unwritable.exception, InputError)


def test_a_set_whose_captions_are_elsewhere_is_told_where(shelf: Path) -> None:
    options = ("--model", "A/plain", "--task", "retrieval", "--data", str(shelf))
    result = run(*options, "--text-field", "title")
    assert isinstance(result.exception, SourceError)
    assert result.exception.code == "no-captions"
    assert "captions.en" in (result.exception.hint or "")
    assert run(*options, "--text-field", "captions.en").exception is None


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three pictures of each of four colours, in folders named after them, and no label."""
    for name in NAMES[:4]:
        (tmp_path / "classes" / name).mkdir(parents=True)
        for at in range(3):
            (tmp_path / "classes" / name / f"{at}.png").write_bytes(solid(name, size=(20 + at, 9)))
    return tmp_path / "classes"


def test_folders_are_classes_where_nothing_else_says(folders: Path) -> None:
    zero_shot = ("--task", "zero-shot", "--template", "{c}", "--data", str(folders), "--json")
    found = documents(run(*zero_shot))
    assert found["counts"] == {"pictures": 12, "classes": 4}
    assert found["metrics"]["acc1"] == 1.0
    probe = ("--task", "linear-probe", "--train", str(folders), "--data", str(folders), "--json")
    assert documents(run(*probe))["counts"]["classes"] == 4
    # a field that was named and is nowhere is a mistake, and one folder is no choice
    for more in (("--label-field", "kind"), ("--data", str(folders / "red"))):
        result = run(*zero_shot, *more)
        assert isinstance(result.exception, SourceError)
        assert result.exception.code == "no-labels"
    # a single label among them, and the folders say nothing
    (folders / "red" / "0.json").write_text('{"label": "red"}')
    assert documents(run(*zero_shot))["counts"] == {"pictures": 1, "classes": 1}


def test_class_names_may_repeat_and_be_many(folders: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    zero_shot = ("--task", "zero-shot", "--template", "{c}", "--json", "--classnames", str(names))
    lines = [*NAMES[:4], *(f"thing {at}" for at in range(1500)), "thing 7", "crane", "crane"]
    names.write_text("\n".join(lines))
    found = documents(run(*zero_shot, "--data", str(folders)))
    assert found["counts"] == {"pictures": 12, "classes": 1507}
    assert found["metrics"]["acc1"] == 1.0
    # labels that are numbers count the lines, as ImageNet's in shards do
    for at, name in enumerate(NAMES[:4]):
        (folders / name).rename(folders / f"{at:03}")
    found = documents(run(*zero_shot, "--data", str(folders)))
    assert (found["counts"]["classes"], found["metrics"]["acc1"]) == (1507, 1.0)
    # codes of their own may share a name, too
    coded = [f"{at:03}\t{name}" for at, name in enumerate(NAMES[:4])]
    names.write_text("\n".join([*coded, "9\tred"]))
    assert documents(run(*zero_shot, "--data", str(folders)))["counts"]["classes"] == 5
    names.write_text("000\tred\n000\tblue\n")
    assert isinstance(run(*zero_shot, "--data", str(folders)).exception, InvalidLabelsError)
