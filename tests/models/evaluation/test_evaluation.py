"""The evaluation runs on pictures whose right answers are known by construction."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fakes import COLOURS, ColourEncoder, halves, solid

from models.errors import InvalidLabelsError, SourceError
from models.evaluation.measures import evaluate_retrieval, evaluate_zero_shot
from models.sources import open_source
from models.sources.embedded import collect, embed_texts
from models.sources.records import HoldOut, is_held_out
from models.training.record import recall_of

CHINESE = {"red": "红", "green": "绿", "blue": "蓝", "yellow": "黄"}


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Four solid pictures with English and Chinese captions, one half right, one damaged."""
    path = tmp_path / "colours.tar"
    with tarfile.open(path, "w") as archive:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

        for name, chinese in CHINESE.items():
            data = {"captions": {"en": [name, f"all {name}"], "zh": chinese}, "label": name}
            add(f"{name}.png", solid(name))
            add(f"{name}.json", json.dumps(data).encode())
        add("broken.png", b"not a picture")
        add("silent.png", halves("white", "black"))
    return path


def test_retrieval_is_measured_language_by_language(colours: Path) -> None:
    collected = collect([open_source(str(colours))], ColourEncoder())
    assert [reject.key for reject in collected.rejects] == ["broken"]
    assert collected.image_ND.shape == (5, len(COLOURS) + 1)
    results = evaluate_retrieval(ColourEncoder(), collected)
    assert set(results) == {"en", "zh"}
    assert (results["en"]["pictures"], results["en"]["texts"]) == (4, 8)
    assert results["en"]["image_retrieval_recall@1"] == 1.0
    assert results["zh"]["text_retrieval_recall@1"] == 1.0


def test_one_swapped_caption_costs_exactly_its_share(tmp_path: Path) -> None:
    for name, caption in [("red", "red"), ("green", "blue"), ("blue", "blue")]:
        (tmp_path / f"{name}.png").write_bytes(solid(name))
        (tmp_path / f"{name}.txt").write_text(caption)
    collected = collect([open_source(str(tmp_path))], ColourEncoder())
    metrics = evaluate_retrieval(ColourEncoder(), collected)["und"]
    # "blue" finds the blue picture for both of its owners: right once
    assert metrics["image_retrieval_recall@1"] == pytest.approx(2 / 3)


def test_rows_of_one_picture_are_not_each_others_rivals(tmp_path: Path) -> None:
    """Ten rows of red, each with a caption of its own: whichever is found, it is the picture."""
    rows = [("red", f"red {at}") for at in range(10)] + [("blue", "blue"), ("green", "green")]
    lines = []
    for at, (colour, caption) in enumerate(rows):
        (tmp_path / f"{at}.png").write_bytes(solid(colour))
        lines.append(json.dumps({"image": f"{at}.png", "caption": caption}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    collected = collect([open_source(str(tmp_path / "rows.jsonl"))], ColourEncoder())
    metrics = evaluate_retrieval(ColourEncoder(), collected)["und"]
    assert (metrics["pictures"], metrics["texts"]) == (3, 12)
    assert metrics["image_retrieval_recall@1"] == metrics["text_retrieval_recall@1"] == 1.0
    texts = embed_texts(ColourEncoder(), [text for _, _, text in collected.captions])
    given = collected.image_ND, {"und": (texts, list(range(12)))}
    assert recall_of(*given, contents=collected.contents)["und"] == metrics
    # negative control: told apart, each row finds itself one time in ten
    assert recall_of(*given)["und"]["image_retrieval_recall@1"] == pytest.approx(3 / 12)


def test_zero_shot(colours: Path) -> None:
    encoder = ColourEncoder()
    collected = collect([open_source(str(colours))], encoder)
    metrics = evaluate_zero_shot(encoder, collected, templates=["{c}"])
    assert (metrics["acc1"], metrics["mean_per_class_recall"]) == (1.0, 1.0)
    assert (metrics["pictures"], metrics["classes"]) == (4, 4)
    swapped = {"red": "green", "green": "red", "blue": "blue", "yellow": "yellow"}
    wrong = evaluate_zero_shot(encoder, collected, templates=["{c}"], class_names=swapped)
    assert wrong["acc1"] == 0.5
    with pytest.raises(InvalidLabelsError, match="yellow"):
        evaluate_zero_shot(
            encoder,
            collected,
            templates=["{c}"],
            class_names={n: n for n in ("red", "green", "blue")},
        )


def test_nothing_to_measure_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(solid("red"))
    collected = collect([open_source(str(tmp_path))], ColourEncoder())
    with pytest.raises(SourceError, match="no captions"):
        evaluate_retrieval(ColourEncoder(), collected)
    with pytest.raises(SourceError, match="no labels"):
        evaluate_zero_shot(ColourEncoder(), collected, templates=["{c}"])


def test_the_held_out_part_and_the_rest_are_the_whole(tmp_path: Path) -> None:
    for at in range(40):
        (tmp_path / f"{at}.png").write_bytes(solid("red"))
    source = open_source(str(tmp_path))
    out = {row.key for row in HoldOut(source, 5, held_out=True)}
    rest = {row.key for row in HoldOut(source, 5, held_out=False)}
    assert out | rest == {row.key for row in source}
    assert not out & rest
    assert 2 <= len(out) <= 16
    # a published rule: these keys stay held out in every later version
    assert [at for at in range(30) if is_held_out(f"key-{at}", 5)] == [
        1, 4, 7, 9, 11, 14, 18, 20, 27, 29,
    ]  # fmt: skip


def run(*arguments: str) -> Result:
    from service.cli.evaluate import evaluate

    return CliRunner().invoke(evaluate, list(arguments), standalone_mode=False)


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.encoders.registry.load_encoder", lambda *_, **__: ColourEncoder())


@pytest.mark.usefixtures("fake_model")
def test_the_command_prints_clip_benchmarks_shape(colours: Path) -> None:
    result = run("--task", "retrieval", "--data", str(colours), "--model", "A/b", "--json")
    assert result.exception is None, result.output
    assert result.return_value == 3  # one picture was damaged
    english, chinese = json.loads(result.stdout)
    assert set(english) == {
        "dataset", "model", "pretrained", "task", "metrics", "language", "counts",
    }  # fmt: skip
    assert (english["language"], chinese["language"]) == ("en", "zh")
    assert (english["model"], english["pretrained"]) == ("A", "b")
    assert english["metrics"]["image_retrieval_recall@5"] == 1.0
    assert "broken" in result.stderr


@pytest.mark.usefixtures("fake_model")
def test_the_command_classifies_with_names_from_a_file(colours: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("red\tred\ngreen\ngold\nblue\nyellow\n")
    arguments = ["--task", "zero-shot", "--data", str(colours), "--template", "{c}"]
    result = run(*arguments, "--classnames", str(names), "--json")
    assert result.exception is None, result.output
    found = json.loads(result.stdout)
    assert (found["task"], found["language"]) == ("zeroshot_classification", "")
    assert found["metrics"]["acc1"] == 1.0
    assert found["counts"] == {"pictures": 4, "classes": 5}
    assert re.search(r"top-1 +100\.0\n", run(*arguments).stdout)
