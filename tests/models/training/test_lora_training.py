"""Low-rank updates through the trainer: merged at the end, and resumed bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import sixteen, tiny_pair

from models.encoders.base.model_id import parse_model_id
from models.sources import open_source
from models.training.config import TrainConfig
from models.training.distributed import World
from models.training.loop import Cadence
from models.training.open_clip import load_pair
from models.training.pair import Feed, Watching
from models.training.record import Step
from models.training.run import run_training

HERE = World(0, 1, torch.device("cpu"))


class CutOffError(Exception):
    pass


def run(folder: Path, out: Path, *, cut_after: int = 0, **named: Any) -> dict[str, torch.Tensor]:
    def on_step(step: Step) -> None:
        if step.step == cut_after:
            raise CutOffError

    source = open_source(str(folder / "data.tar"), text_field="captions.en")
    settings: dict[str, Any] = {"epochs": 4, "batch_size": 8, "lr": 1e-2, "tune": "lora"}
    run_training(
        load_pair(parse_model_id(f"local-dir:{folder / 'pair'}")),
        [Feed("main", [source], 16)],
        TrainConfig(**(settings | named)),
        HERE,
        out,
        identity={},
        report={},
        workers=1,
        cadence=Cadence(steps=1),
        watching=Watching(on_step=on_step),
    )
    return load_file(out / "open_clip_model.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    tiny_pair(folder / "pair")
    sixteen(folder / "data.tar")
    return folder


def test_a_run_that_was_cut_off_ends_with_the_same_weights(folder: Path, tmp_path: Path) -> None:
    whole = run(folder, tmp_path / "whole")
    with pytest.raises(CutOffError):
        run(folder, tmp_path / "cut", cut_after=5)
    resumed = run(folder, tmp_path / "cut")
    before = load_file(folder / "pair" / "open_clip_model.safetensors")
    assert whole.keys() == resumed.keys() == before.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    # negative control: another seed is another run
    other = run(folder, tmp_path / "other", seed=1)
    assert any(not torch.equal(whole[name], other[name]) for name in whole)


def test_interpolation_and_averages_are_of_the_merged_weights(folder: Path, tmp_path: Path) -> None:
    before = load_file(folder / "pair" / "open_clip_model.safetensors")
    whole = run(folder, tmp_path / "whole")
    half = run(folder, tmp_path / "half", interpolate=0.5)
    for name, value in whole.items():
        torch.testing.assert_close(half[name], (before[name] + value) / 2, rtol=1e-5, atol=1e-6)
    averaged = run(folder, tmp_path / "averaged", ema=0.9)
    assert averaged.keys() == whole.keys()
    assert any(not torch.equal(whole[name], averaged[name]) for name in whole)
