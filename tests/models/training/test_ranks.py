"""Two processes with half a batch each end where one process with the whole batch does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file
from tiny import sixteen, tiny_pair

ROOT = Path(__file__).resolve().parents[3]
START = "import sys; from service.cli.main import main; sys.argv[0] = 'diptych'; main()"


def arguments(folder: Path, out: Path) -> list[str]:
    options = {
        "--data": folder / "data.tar", "--val": folder / "data.tar", "--out": out,
        "--model": f"local-dir:{folder / 'pair'}", "--text-field": "captions.en",
        "--epochs": 2, "--batch-size": 8, "--lr": "1e-3", "--threads": 1, "--device": "cpu",
    }  # fmt: skip
    return [str(word) for pair in options.items() for word in pair]


def launch(folder: Path, out: Path, rank: int, size: int, port: int) -> subprocess.Popen[str]:
    """As torchrun would, without its launcher."""
    environment = os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", START, "train", *arguments(folder, out)],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run_ranks(folder: Path, out: Path, size: int) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [launch(folder, out, rank, size, port) for rank in range(size)]
    ended = [process.communicate(timeout=250) for process in processes]
    for process, (_, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, errors
    return [shown for shown, _ in ended]


def run_alone(folder: Path, out: Path) -> None:
    """In this process, which has imported everything already."""
    from service.cli.train.command import train

    before = torch.get_num_threads()
    try:
        done = CliRunner().invoke(train, arguments(folder, out), standalone_mode=False)
    finally:
        torch.set_num_threads(before)
    assert done.exception is None, done.output


def test_two_ranks_train_as_one_does(tmp_path: Path) -> None:
    tiny_pair(tmp_path / "pair")
    sixteen(tmp_path / "data.tar")
    run_alone(tmp_path, tmp_path / "one")
    first, second = run_ranks(tmp_path, tmp_path / "two", 2)
    assert "saved to" in first
    assert second == ""  # rank 0 alone speaks and writes
    one, two = (load_file(tmp_path / out / "open_clip_model.safetensors") for out in ("one", "two"))
    start = load_file(tmp_path / "pair" / "open_clip_model.safetensors")
    for name, value in one.items():
        # Adam's first steps divide a gradient by itself, so rounding may turn one that is nothing
        moved = np.abs(value - start[name]).max()
        assert np.abs(value - two[name]).max() <= 0.05 * moved + 1e-6, name
    losses = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()
            if '"loss"' in line
        ]
        for out in ("one", "two")
    ]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
