"""A run killed at any moment and started again ends with the weights of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from tiny import sixteen, tiny_pair

from models.encoders.base.model_id import parse_model_id
from models.errors import TrainingError
from models.training.checkpoint import Checkpoints
from models.training.config import TrainConfig
from models.training.open_clip import load_pair
from models.training.record import Journal, Progress

ROOT = Path(__file__).resolve().parents[3]
STEPS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    tiny_pair(folder / "pair")
    sixteen(folder / "data.tar")
    return folder


def command(folder: Path, out: Path, *more: str) -> list[str]:
    # ema, interpolation and the best validation all have to come back too
    options = {
        "--data": folder / "data.tar", "--val": folder / "data.tar", "--out": out,
        "--model": f"local-dir:{folder / 'pair'}", "--text-field": "captions.en",
        "--epochs": 6, "--batch-size": 4, "--lr": "1e-3", "--ema": "0.9", "--threads": 1,
        "--eval-every": 2, "--device": "cpu", "--checkpoint-steps": 5, "--patience": 0,
    }  # fmt: skip
    words = [str(word) for pair in options.items() for word in pair]
    start = "import sys; from service.cli.main import main; sys.argv[0] = 'diptych'; main()"
    return [sys.executable, "-c", start, "train", *words, *more]


def finish(arguments: list[str]) -> Result:
    """The same command in this process, which has imported everything already."""
    from service.cli.train.command import train

    before = torch.get_num_threads()
    try:
        return CliRunner().invoke(train, arguments[4:], standalone_mode=False)
    finally:
        torch.set_num_threads(before)


def kill_after(arguments: list[str], out: Path, steps: int) -> None:
    """SIGKILL as soon as the metrics hold so many steps."""
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL)
    metrics = out / "metrics.jsonl"
    until = time.monotonic() + 200
    while time.monotonic() < until:
        text = metrics.read_text() if metrics.exists() else ""
        if text.count('"loss"') >= steps:
            break
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def steps_of(out: Path) -> list[int]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "step" in line]


def same_end(whole: Path, broken: Path) -> None:
    assert steps_of(whole) == steps_of(broken) == list(range(1, STEPS + 1))
    name = "open_clip_model.safetensors"
    assert (whole / name).read_bytes() == (broken / name).read_bytes()
    results = [json.loads((out / "result.json").read_text()) for out in (whole, broken)]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run that nobody disturbed."""
    out = folder / "whole"
    done = finish(command(folder, out))
    assert done.exception is None, done.output
    return out


def test_killed_it_ends_bit_for_bit_as_if_it_had_not_been(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    kill_after(command(folder, broken), broken, 8)  # after a checkpoint and a few steps
    assert not (broken / "result.json").exists()
    again = finish(command(folder, broken))
    assert again.exception is None, again.output
    assert "continuing after step" in again.stderr
    same_end(whole, broken)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4, 5, 9, 13, 17, 23, 24])
def test_killed_twice_anywhere_it_ends_the_same(
    folder: Path, whole: Path, tmp_path: Path, steps: int
) -> None:
    broken = tmp_path / "broken"
    kill_after(command(folder, broken), broken, max(1, steps // 2))
    kill_after(command(folder, broken), broken, steps)
    finish(command(folder, broken))
    same_end(whole, broken)


class UnpluggedError(Exception):
    pass


def test_another_setting_is_refused_unless_the_run_is_dropped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def unplug(*_: object) -> None:
        raise UnpluggedError

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "step", unplug)
        assert isinstance(finish(command(folder, out)).exception, UnpluggedError)
    other = ("--weight-decay", "0.2", "--grad-clip", "2")
    refused = finish(command(folder, out, *other)).exception
    assert isinstance(refused, TrainingError)
    assert refused.code == "resume-mismatch"
    assert "grad_clip: 1.0 -> 2.0; weight_decay: 0.1 -> 0.2" in str(refused)
    assert "--restart" in str(refused.hint)
    dropped = finish(command(folder, out, *other, "--restart"))
    assert dropped.exception is None
    assert "continuing" not in dropped.stderr
    finished = finish(command(folder, out, *other)).exception
    assert isinstance(finished, TrainingError)
    assert finished.code == "run-finished"


def test_other_data_and_a_damaged_checkpoint_are_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = TrainConfig(epochs=1, batch_size=4, lr=1e-3)
    pair = load_pair(parse_model_id(f"local-dir:{folder / 'pair'}"))
    written = Checkpoints(out, config, {"data_digest": "a"}).save(
        pair, Progress(step=3), optimiser={"step/x": torch.ones(1)}
    )
    again = Checkpoints(out, config, {"data_digest": "a"}).load()
    assert again is not None
    assert again.progress == Progress(step=3)
    with pytest.raises(TrainingError, match="data_digest") as caught:
        Checkpoints(out, config, {"data_digest": "b"}).load()
    assert caught.value.code == "resume-mismatch"
    path = written / "optimiser.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(TrainingError, match="damaged") as caught:
        Checkpoints(out, config, {"data_digest": "a"}).load()
    assert caught.value.code == "checkpoint-damaged"


def test_a_folder_of_that_name_keeps_what_no_run_made(folder: Path, tmp_path: Path) -> None:
    """`--out .` beside a folder `training` full of pictures."""
    theirs = [tmp_path / "training" / name for name in ("a.jpg", "more/b.jpg", ".hidden")]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    states = Checkpoints(tmp_path, TrainConfig(epochs=1, batch_size=4, lr=1e-3), {})
    pair = load_pair(parse_model_id(f"local-dir:{folder / 'pair'}"))
    best = {"x": torch.ones(1)}
    for step in (3, 6):
        progress = Progress(step=step, best_step=step)
        states.save(pair, progress, optimiser={"step/x": torch.ones(1)}, best=best)
    names = {path.name for path in states.folder.iterdir()}
    ours = {"state.json", "step-00000006", "best-00000006.safetensors"}
    assert names == ours | {"a.jpg", "more", ".hidden"}
    states.clear()
    assert [path.read_text() for path in theirs] == ["mine"] * 3
    assert {path.name for path in states.folder.iterdir()} == {"a.jpg", "more", ".hidden"}
