"""`diptych train --tune ...` from labelled pictures to a classification, on a tiny pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from fakes import encode
from PIL import Image
from safetensors.torch import load_file
from tiny import WORDS, blocks, shard, sixteen, tiny_pair

from models.errors import InvalidLabelsError, LabelSetError, TrainingError
from service.cli.classify.modes import classify
from service.cli.evaluate import evaluate
from service.cli.train.command import train

KINDS = ["linear", "adapter", "prompts"]
LABELS = ["apple", "bread", "cheese"]
QUICK = ("--device", "cpu", "--precision", "fp32", "--threads", "1")


def call(command: click.Command, *arguments: Any) -> tuple[int, str]:
    """(exit code, standard output); domain errors come through."""
    done = CliRunner().invoke(command, [str(one) for one in arguments], standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return int(done.return_value), done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair, another pair, and pictures of three classes that differ in their patterns."""
    folder = tmp_path_factory.mktemp("tune")
    tiny_pair(folder / "pair")
    tiny_pair(folder / "other", seed=1)
    sixteen(folder / "captioned.tar")
    for name, shift in (("train", 0), ("test", 8)):
        rows = []
        for at, label in enumerate(LABELS):
            for number in range(8):
                plain = Image.new("RGB", (40, 40), (5 * (number + shift), 40, 40))
                plain.paste(Image.open(_bytes(blocks(at))).crop((0, 0, 40, 30)))
                data = {"label": label}
                rows.append((f"{label}{number}", encode(plain), data))
        shard(folder / f"{name}.tar", rows)
    return folder


def _bytes(data: bytes) -> Any:
    import io

    return io.BytesIO(data)


def tuned(folder: Path, out: Path, kind: str, *more: Any) -> dict[str, Any]:
    code, output = call(
        train, "--tune", kind, "--data", folder / "train.tar", "--val", folder / "test.tar",
        "--label-field", "label", "--model", f"local-dir:{folder / 'pair'}", "--out", out,
        "--json", *QUICK, *more,
    )  # fmt: skip
    assert code == 0
    result: dict[str, Any] = json.loads(output)
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_from_labelled_pictures_to_a_classification(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    result = tuned(folder, tmp_path, kind, *([] if kind == "linear" else ["--epochs", "8"]))
    assert (result["classes"], result["pictures"], result["held_back"]) == (3, 24, 6)
    assert result["after"]["acc1"] >= result["before"]["acc1"]
    if kind == "linear":
        assert result["after"]["acc1"] == 1.0 > result["before"]["acc1"]
    head = tmp_path / "head.safetensors"
    assert str(head) == result["head"]
    kept = json.loads((tmp_path / "head.json").read_text())
    assert kept["after"] == result["after"]

    model = ("--model", f"local-dir:{folder / 'pair'}", *QUICK)
    code, output = call(
        evaluate, "--task", "zero-shot", "--data", folder / "test.tar", "--label-field", "label",
        "--head", head, "--json", *model,
    )  # fmt: skip
    assert code == 0
    assert json.loads(output)["metrics"]["acc1"] == pytest.approx(result["after"]["acc1"])

    code, output = call(
        classify, folder / "test.tar", "--head", head, "--json", "--top-k", 3, *model
    )
    assert code == 0
    answers = json.loads(output)["results"]
    right = [a["predictions"][0]["label"] in a["image"] for a in answers]
    assert sum(right) / len(right) == pytest.approx(result["after"]["acc1"])
    chances = [sum(one["probability"] for one in a["predictions"]) for a in answers]
    assert chances == pytest.approx([1.0] * 24, abs=1e-3)

    other = ("--model", f"local-dir:{folder / 'other'}", *QUICK)
    with pytest.raises(LabelSetError) as caught:
        call(classify, folder / "test.tar", "--head", head, *other)
    assert caught.value.code == "label-set-mismatch"
    with pytest.raises(LabelSetError):
        call(
            evaluate, "--task", "zero-shot", "--data", folder / "test.tar", "--label-field",
            "label", "--head", head, *other,
        )  # fmt: skip


def test_a_head_can_be_calibrated(folder: Path, tmp_path: Path) -> None:
    head = tuned(folder, tmp_path, "linear")["head"]
    model = ("--model", f"local-dir:{folder / 'pair'}", *QUICK)
    labelled = ("--label-field", "label", "--head", head, "--json")
    code, output = call(classify, "--calibrate", folder / "test.tar", *labelled, *model)
    assert code == 0
    found = json.loads(output)
    assert found["classes"] == 3
    assert found["temperature"] > 0
    chances = []
    for temperature in (0.1, 10):
        more = ("--temperature", temperature)
        _, output = call(classify, folder / "test.tar", *labelled, *more, *model)
        best = [one["predictions"][0]["probability"] for one in json.loads(output)["results"]]
        chances.append(sum(best))
    assert chances[0] > chances[1]


def test_a_finished_head_is_not_replaced_unasked(folder: Path, tmp_path: Path) -> None:
    tuned(folder, tmp_path, "linear")
    with pytest.raises(TrainingError) as caught:
        tuned(folder, tmp_path, "linear")
    assert caught.value.code == "run-finished"
    code, output = call(
        train, "--tune", "linear", "--data", folder / "train.tar", "--val", folder / "test.tar",
        "--label-field", "label", "--model", f"local-dir:{folder / 'pair'}", "--out", tmp_path,
        "--restart", *QUICK,
    )  # fmt: skip
    assert code == 0
    lines = output.splitlines()
    assert lines[0].startswith("linear: 3 labels, 24 pictures, 99 numbers learned")
    assert lines[1].endswith("chosen on 6 pictures held back")
    assert [line.split()[0] for line in lines[3:5]] == ["top-1", "mean"]
    assert lines[-1] == f"saved to {tmp_path / 'head.safetensors'}"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tune", "linear"], "name at least one --data"),
        (["--tune", "linear", "--data", "x", "--extra-data", "y"], "from --data alone"),
        (["--tune", "linear", "--data", "x", "--init", "fresh"], "learned something"),
        (["--tune", "prompts", "--data", "x", "--model", "starter"], "no gradients"),
        (["--tune", "lora", "--data", "x", "--model", "starter"], "learn whole"),
        (["--tune", "lora", "--data", "x", "--unlock-blocks", "1"], "no meaning"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, arguments: list[str], told: str) -> None:
    with pytest.raises(click.UsageError, match=told):
        call(train, *arguments, "--out", tmp_path)


@pytest.mark.parametrize(
    "more",
    [
        ["--abstain"],
        ["--multi-label"],
        ["--labels", "a,b"],
        ["--examples", "x"],
        ["--template", "a {c}"],
        ["--save", "name", "--label-sets", "x"],
    ],
)
def test_a_head_is_one_choice_among_its_labels(
    folder: Path, tmp_path: Path, more: list[str]
) -> None:
    (tmp_path / "head").write_bytes(b"")
    with pytest.raises(click.UsageError):
        call(classify, folder / "test.tar", "--head", tmp_path / "head", *more)
    with pytest.raises(click.UsageError):
        call(
            evaluate, "--task", "retrieval", "--data", folder / "test.tar", "--head",
            tmp_path / "head",
        )  # fmt: skip


def test_labels_the_head_does_not_know(folder: Path, tmp_path: Path) -> None:
    head = tuned(folder, tmp_path, "linear")["head"]
    strange = shard(tmp_path / "strange.tar", [("a", blocks(0), {"label": "salt"})])
    with pytest.raises(InvalidLabelsError, match="salt"):
        call(
            evaluate, "--task", "zero-shot", "--data", strange, "--label-field", "label",
            "--head", head, "--model", f"local-dir:{folder / 'pair'}", *QUICK,
        )  # fmt: skip


def test_lora_leaves_an_ordinary_pair(folder: Path, tmp_path: Path) -> None:
    arguments = (
        "--tune", "lora", "--lora-rank", 4, "--lock-text", "--data", folder / "captioned.tar",
        "--text-field", "captions.en", "--model", f"local-dir:{folder / 'pair'}", "--epochs", 3,
        "--batch-size", 16, "--lr", 1e-2, "--interpolate", 1, "--val", "none", *QUICK,
    )  # fmt: skip
    code, _ = call(train, *arguments, "--out", tmp_path / "one", "--json")
    assert code == 0
    before = load_file(folder / "pair" / "open_clip_model.safetensors")
    after = load_file(tmp_path / "one" / "open_clip_model.safetensors")
    assert after.keys() == before.keys()
    changed = {name for name in before if not after[name].equal(before[name])}
    assert changed
    assert all(name.startswith("visual.") or name == "logit_scale" for name in changed)
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" in changed
    assert "visual.transformer.resblocks.0.ln_1.weight" not in changed
    assert json.loads((tmp_path / "one" / "train_config.json").read_text())["config"]["tune"] == (
        "lora"
    )
    code, output = call(
        classify, folder / "test.tar", "--labels", ",".join(WORDS[:3]), "--json",
        "--model", f"local-dir:{tmp_path / 'one'}", *QUICK,
    )  # fmt: skip
    assert code == 0
    assert len(json.loads(output)["results"]) == 24
