"""How a run may not end, and what is said of one that did."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from fakes import solid
from tiny import shard

from models.atomic import alone_in
from models.encoders.starter.description import IMAGE_FEATURES, TEXT_FEATURES, HeadsConfig
from models.encoders.starter.heads import StarterHeads, load_heads, save_heads
from models.encoders.starter.pair import STARTER_DIRECTORY, load_starter_from
from models.errors import InputError, ModelError, TrainingError
from models.training.config import TrainConfig, asked_for, foreign, refuse_foreign, settings
from models.training.distributed import World
from models.training.features.pairs import Kind, Pairs
from models.training.loop import Cadence
from models.training.pair import PairRequest, family_of, load_trainable
from models.training.record import Recall, doubts_of, gain_of
from models.training.run import run_training
from models.training.starter import StarterPair
from service.cli.train.command import train

WORLD = World(0, 1, torch.device("cpu"))


def pairs_of(count: int) -> Pairs:
    dice = torch.Generator().manual_seed(0)
    each, one = torch.arange(count), torch.ones(count, dtype=torch.long)
    return Pairs(
        image_NF=torch.rand(count, IMAGE_FEATURES, generator=dice),
        caption_MS=torch.nn.functional.normalize(
            torch.randn(count, TEXT_FEATURES, generator=dice), dim=1
        ),
        group_N=each,
        kind_N=torch.full((count,), int(Kind.MAIN)),
        choice_start_N=each,
        choice_count_N=one,
        caption_start=each,
        caption_count=one,
        languages=("en",),
        caption_language=(0,) * count,
        keys=tuple(f"k{at}" for at in range(count)),
    )


class Spoilt(StarterPair):
    """A pair that is spoilt after its last step, or after some other one."""

    def __init__(self, after: int) -> None:
        torch.manual_seed(0)
        super().__init__(StarterHeads(HeadsConfig(image_hidden=8, text_hidden=8)))
        self._after = after

    def prepare(self, *given: Any, **_: Any) -> Any:
        return self.over(pairs_of(32), given[2], given[3], validation=pairs_of(32))

    def spoil(self, step: int) -> None:
        if step == self._after:
            with torch.no_grad():
                self.module.text.correction.down.bias[0] = float("nan")


def run_it(pair: Spoilt, out: Path, **named: Any) -> Any:
    from models.training.pair import Watching

    config = TrainConfig(
        **{"epochs": 2, "batch_size": 8, "lr": 1e-4, "concept_share": 0.0, "grad_clip": 0.0}
    )
    watching = Watching(on_step=lambda step: pair.spoil(step.step))
    return run_training(
        pair, [], config, WORLD, out, identity={}, report={}, watching=watching, **named
    )


@pytest.mark.parametrize("after", [4, 8])
def test_weights_that_are_not_finite_are_not_saved_over_good_ones(
    after: int, tmp_path: Path
) -> None:
    """Spoilt where the next thing is a validation and a checkpoint, or the end."""
    with pytest.raises(TrainingError, match="not finite") as caught:
        run_it(Spoilt(after), tmp_path, cadence=Cadence(steps=2))
    assert caught.value.code == "weights-not-finite"
    assert not (tmp_path / "heads.safetensors").exists()
    assert not (tmp_path / "result.json").exists()
    state = (tmp_path / "training" / "state.json").read_text()
    assert f"step-{after - 2:08d}" in state
    # what was kept goes on
    assert run_it(Spoilt(0), tmp_path).steps == 8


def test_no_file_gets_numbers_without_end(tmp_path: Path) -> None:
    """Also where only the file's own precision makes them so."""
    heads, _ = load_heads(STARTER_DIRECTORY)
    save_heads(heads, tmp_path)
    good = (tmp_path / "heads.safetensors").read_bytes()
    for value in (1e6, float("nan"), float("-inf")):
        with torch.no_grad():
            heads.text.correction.down.bias[0] = value
        with pytest.raises(ModelError, match="not saved"):
            save_heads(heads, tmp_path)
    assert (tmp_path / "heads.safetensors").read_bytes() == good


def test_two_runs_do_not_write_into_one_directory(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(TrainingError, match="another run") as caught:
        run_it(Spoilt(0), tmp_path)
    assert caught.value.code == "run-busy"
    assert not list(tmp_path.iterdir())
    run_it(Spoilt(0), tmp_path)
    assert not list(tmp_path.glob("*.lock"))


BAD: list[Any] = [float("nan"), float("inf"), float("-inf"), -1, 10**400, True, "many"]


@pytest.mark.parametrize("name", [one.name for one in settings() if one.type in (int, float)])
def test_every_number_is_one(name: str) -> None:
    for bad in BAD:
        for made in (asked_for, lambda given: TrainConfig(**{**FINE, **given})):
            with pytest.raises(InputError, match=name):
                made({name: bad})
        if not isinstance(bad, bool | str):
            arguments = ["--out", "x", "--data", "x", f"--{name.replace('_', '-')}={bad}"]
            result = CliRunner().invoke(train, arguments)
            assert result.exit_code == 2, (name, bad)
            assert "Invalid value" in result.output


FINE = {"epochs": 1, "batch_size": 2, "lr": 1e-4}


def test_a_share_is_a_number_or_val_from_python_too() -> None:
    for good in (0, 0.25, 1, "val", None):
        assert asked_for({"interpolate": good})["interpolate"] == good
    for bad in (float("nan"), -0.1, 1.1, "some", True):
        with pytest.raises(InputError, match="interpolate"):
            asked_for({"interpolate": bad})


def test_what_a_kind_of_pair_does_not_have_is_refused() -> None:
    def flags(asked: dict[str, Any], kind: str) -> list[str]:
        return [one.flag for one in foreign(asked_for(asked), kind)]

    assert flags({"lr": 1e-3, "patience": 2}, "starter") == []
    assert flags({"hard_negatives": 2, "crop": 0.5, "flip": True}, "starter") == [
        "--hard-negatives", "--crop", "--flip",
    ]  # fmt: skip
    assert flags({"concept_share": 0.1}, "fine-tuning") == ["--concept-share"]
    assert flags({"objective": "siglip", "label_smoothing": 0.1}, "fresh") == ["--label-smoothing"]
    assert flags({"lora_rank": 4}, "fine-tuning") == ["--lora-rank"]
    assert flags({"lora_rank": 4, "tune": "lora"}, "fine-tuning") == []
    assert flags({"lr": 1e-3, "epochs": 3, "tune": "linear"}, "linear") == ["--epochs", "--lr"]
    with pytest.raises(InputError, match="--micro-batch"):
        refuse_foreign(asked_for({"micro_batch": 4}), "starter")
    with pytest.raises(InputError, match="learn whole"):
        refuse_foreign(asked_for({"tune": "lora"}), "starter")


def recall(share: float, pictures: int) -> Recall:
    names = ("image_retrieval_recall@1", "text_retrieval_recall@1")
    return {"en": {**dict.fromkeys(names, share), "pictures": pictures, "texts": pictures}}


def test_noise_and_collapse_are_called_so() -> None:
    def said(gain: Any = None, **named: Any) -> str:
        usual = {"final_loss": 1.0, "batch": 64, "scale": 50.0, "softmax": True}
        return " ".join(doubts_of(gain, **{**usual, **named}))

    few, many = (gain_of(recall(0.40, n), recall(0.48, n)) for n in (30, 3000))
    assert (few.chance, many.chance) == (1 / 30, 1 / 3000)
    assert few.within_noise
    assert not many.within_noise
    assert many.error == pytest.approx(math.sqrt((0.4 * 0.6 + 0.48 * 0.52) / 3000), rel=1e-3)
    assert "30 pictures is within the noise" in said(few)
    assert said(many) == said() == ""
    assert gain_of(recall(1.0, 10), recall(1.0, 10)).error > 0
    assert "guessing among 64 pairs" in said(final_loss=math.log(64))
    assert "guessing" not in said(final_loss=math.log(64), softmax=False)
    assert "scale fell" in said(scale=0.02)


def test_the_noise_is_that_of_drawing_pictures_again() -> None:
    """Two pairs alike, measured on pictures drawn anew: few gains leave two standard errors."""
    dice = np.random.default_rng(0)
    beyond = 0
    for _ in range(400):
        one, other = dice.binomial(50, 0.3, 2) / 50
        beyond += not gain_of(recall(one, 50), recall(other, 50)).within_noise
    assert beyond / 400 < 0.08


def run(*arguments: str) -> Result:
    return CliRunner().invoke(train, list(arguments), standalone_mode=False)


def test_a_tuned_starter_can_be_tuned_again(tmp_path: Path) -> None:
    names = ("red", "green", "blue", "yellow")
    rows = [(name, solid(name), {"caption": f"the colour {name}"}) for name in names]
    data = shard(tmp_path / "four.tar", rows)
    before = torch.get_num_threads()
    first, second = tmp_path / "first", tmp_path / "second"
    usual = ("--data", data, "--val", data, "--threads", "1", "--concept-share", "0")
    try:
        once = run(*usual, "--epochs", "1", "--out", str(first), "--interpolate", "1")
        assert once.exception is None, once.output
        refused = run(*usual, "--model", f"local-dir:{first}", "--out", str(second), "--flip")
        assert "--flip" in str(refused.exception)
        again = run(*usual, "--epochs", "1", "--model", f"local-dir:{first}", "--out", str(second))
        assert again.exception is None, again.output
    finally:
        torch.set_num_threads(before)
    assert "measured on 4 pictures with 4 captions" in again.output
    assert "chance is R@1 25.0" in again.output
    assert load_starter_from(second).dim == load_starter_from(first).dim
    request = PairRequest(model=f"local-dir:{first}", device=WORLD.device, fresh=True)
    with pytest.raises(ModelError, match="fresh starter"):
        load_trainable(request)
    assert family_of("ViT-B-32").__name__ == family_of("a/b").__name__ == "load_openclip_pair"
