"""Two gloo ranks under torchrun against one process with the whole batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_cases
import torch
from torch import nn

from models.training.distributed import (
    AcrossRanks,
    average_gradients,
    gather_rows,
    join_world,
    leave_world,
    wait_for_all,
    world_size,
)
from models.training.losses import InfoNCEObjective

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*command, str(Path(rank_cases.__file__)), str(folder)],
        check=True,
        timeout=200,
        env={
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}",
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin",
        },
    )
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def compare(found: dict[str, Any], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", rank_cases.CASES)
def test_two_ranks_equal_one_process(ranks: list[dict[str, Any]], case: str) -> None:
    expected, gradients = rank_cases.run(case, slice(0, rank_cases.B))
    values = [rank["values"][case] for rank in ranks]
    assert sum(values) / 2 == pytest.approx(expected, rel=1e-6)
    for rank in ranks:
        compare(rank["gradients"][case], gradients)


def test_ranks_that_do_not_gather_give_another_gradient(ranks: list[dict[str, Any]]) -> None:
    """The broken twin: each rank compares its pairs with its own only."""
    _, gradients = rank_cases.run("infonce-ddp-plain", slice(0, rank_cases.B))
    with pytest.raises(AssertionError):
        compare(ranks[0]["gradients"]["broken"], gradients)


def test_ranks_are_two_processes_with_seeds_of_their_own(ranks: list[dict[str, Any]]) -> None:
    one, other = (rank["values"] for rank in ranks)
    assert ranks[0]["pid"] != ranks[1]["pid"]
    assert one["before"] != other["before"]
    assert one["after"] == other["after"] == one["before"]
    assert one["gathered"] == other["gathered"] == 3.0
    assert one["seen"] == other["seen"] == 1.0


def test_alone_everything_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    world = join_world("cpu")
    assert (world.rank, world.size, world.main, world_size()) == (0, 1, True, 1)
    rows_BD = torch.eye(3)
    assert gather_rows(rows_BD) is rows_BD
    layer = nn.Linear(2, 1)
    average_gradients(layer.parameters())
    assert layer.weight.grad is None
    objective = InfoNCEObjective()
    torch.testing.assert_close(
        AcrossRanks(objective)(rows_BD, rows_BD), objective(rows_BD, rows_BD)
    )
    wait_for_all()
    leave_world()
