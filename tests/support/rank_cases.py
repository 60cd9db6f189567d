"""What two ranks of `test_distributed` compute. A file of its own: each rank imports it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from models.training import distributed
from models.training.distributed import (
    AcrossRanks,
    average_gradients,
    broadcast_from_main,
    gather_rows,
    join_world,
    leave_world,
    wait_for_all,
)
from models.training.losses import InfoNCEObjective, SigmoidObjective
from models.training.step import cached_backward

B, MICRO = 12, 2
IMAGE = torch.randn(B, 10, generator=torch.Generator().manual_seed(1))
TEXT = torch.randn(B, 6, generator=torch.Generator().manual_seed(2))
HARD = torch.randn(B, 6, generator=torch.Generator().manual_seed(3))
GROUP = torch.tensor([0, 1, 1, 2, 3, 4, 4, 1, 0, 5, 6, 6])  # some lie on both sides of the cut
# the ranks' pictures have not equally many captions
SAID = [[at % 5, at % 3][: 1 if at < B // 2 else 2] for at in range(B)]
CASES = [
    f"{loss}-{way}-{extra}"
    for loss in ("infonce", "sigmoid")
    for way in ("ddp", "cached", "manual")
    for extra in ("plain", "groups", "captions", "hard")
]


class Towers(nn.Module):
    def __init__(self, loss: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(10, 16), nn.GELU(), nn.Linear(16, 8))
        self.text = nn.Linear(6, 8)
        # parameters of the loss that belong to the pair, as open_clip's do
        self.objective = InfoNCEObjective() if loss == "infonce" else SigmoidObjective()

    def forward(self, image_bX: Tensor, text_bX: Tensor, hard_bX: Tensor) -> tuple[Tensor, ...]:
        return (
            functional.normalize(self.image(image_bX), dim=1),
            functional.normalize(self.text(text_bX), dim=1),
            functional.normalize(self.text(hard_bX), dim=1),
        )


def run(case: str, rows: slice, *, broken: bool = False) -> tuple[float, dict[str, Tensor]]:
    """One step on some rows, by this rank -> its loss and the gradients it would step with."""
    loss_name, way, extra = case.split("-")
    towers = Towers(loss_name)
    objective: Any = towers.objective if broken else AcrossRanks(towers.objective)
    alone = not torch.distributed.is_initialized()
    module: Any = towers if alone or way == "manual" else DistributedDataParallel(towers)
    group_B = GROUP[rows] if extra in ("groups", "captions") else None
    if extra == "captions":
        widest = max(len(said) for said in SAID[rows])
        said_BC = torch.tensor([said + said[-1:] * (widest - len(said)) for said in SAID[rows]])
        group_B = torch.cat([torch.arange(B)[rows, None], said_BC], dim=1)

    def encode(piece: slice) -> tuple[Tensor, ...]:
        inputs = (IMAGE[rows][piece], TEXT[rows][piece], HARD[rows][piece])
        embedded: tuple[Tensor, ...] = module(*inputs)
        return embedded if extra == "hard" else embedded[:2]

    def loss(image_bD: Tensor, text_bD: Tensor, hard_bD: Tensor | None = None) -> Tensor:
        value: Tensor = objective(image_bD, text_bD, group_B=group_B, hard_HD=hard_bD)
        return value

    size = rows.stop - rows.start
    if way == "cached":
        pieces = [slice(begin, begin + MICRO) for begin in range(0, size, MICRO)]
        value = cached_backward(pieces, encode, loss, module=module, objective=objective)
    else:
        value = loss(*encode(slice(0, size)))
        value.backward()
    if way == "manual":
        average_gradients(towers.parameters())
    found = {
        name: parameter.grad
        for name, parameter in towers.named_parameters()
        if parameter.grad is not None
    }
    return value.item(), found


def main(folder: Path) -> None:
    world = join_world("cpu")
    distributed._BUCKET = 100  # several messages even for towers this small
    size = B // world.size
    rows = slice(world.rank * size, (world.rank + 1) * size)
    values: dict[str, float] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    for case in CASES:
        values[case], tensors[case] = run(case, rows)
    case = "infonce-ddp-plain"
    values["broken"], tensors["broken"] = run(case, rows, broken=True)

    torch.manual_seed(7 + world.rank)
    layer = nn.Linear(2, 2)
    values["before"] = float(layer.weight.sum().detach())
    broadcast_from_main(layer)
    values["after"] = float(layer.weight.sum().detach())
    values["gathered"] = float(gather_rows(torch.tensor([[world.rank + 1.0]])).sum())
    if world.main:
        (folder / "written-by-main").write_text(str(world.size))
    wait_for_all()
    values["seen"] = float((folder / "written-by-main").exists())
    plain = {
        case: {name: value.tolist() for name, value in found.items()}
        for case, found in tensors.items()
    }
    content = {"rank": world.rank, "pid": os.getpid(), "values": values, "gradients": plain}
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(content))
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
