"""Training on several processes: who is who, and one batch made of every process's pairs.

Started by `torchrun`; everything here is also correct, and does nothing, in a single process.
Knows nothing of models, data or optimisers. Legend: W ranks, b pairs of one rank, B = W * b.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from models.devices import resolve_device
from models.environment import torchrun_place
from models.training.losses import Objective

_BUCKET = 6_000_000
"""Numbers that travel together when gradients are averaged: about what DDP sends at once."""


@dataclass(frozen=True)
class World:
    """This process among its peers.

    Attributes:
        rank: 0 to size - 1; rank 0 alone writes files and speaks.
        size: processes in all; 1 outside `torchrun`.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0


def join_world(device: str = "auto") -> World:
    """Find this process's place and, under `torchrun`, meet the others (nccl on CUDA, else gloo).

    Raises:
        ModelError: the device does not exist.
    """
    place = torchrun_place()
    if place is None:
        return World(0, 1, resolve_device(device))
    rank, local_rank, size = place
    where = resolve_device(device)
    if where.type == "cuda":
        where = torch.device("cuda", where.index if where.index is not None else local_rank)
        torch.cuda.set_device(where)
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if where.type == "cuda" else "gloo",
            rank=rank,
            world_size=size,
            # rank 0 measures while the others wait: ten minutes, nccl's own limit, are too few
            timeout=timedelta(hours=4),
        )
    return World(rank, size, where)


def leave_world() -> None:
    """Part from the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    """Return when every rank has come here: after rank 0 wrote what the others will read."""
    if dist.is_initialized():
        dist.barrier()


def broadcast_from_main(module: nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers. DDP does it by itself."""
    if world_size() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over ranks: what DDP does, for parameters outside it.

    A parameter without a gradient here but with one elsewhere counts as zero here.
    """
    if world_size() == 1:
        return
    waiting: list[Tensor] = []
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if waiting and (
            sum(gradient.numel() for gradient in waiting) + parameter.numel() > _BUCKET
            or waiting[0].dtype != parameter.dtype
        ):
            _average(waiting)
            waiting = []
        waiting.append(parameter.grad)
    if waiting:
        _average(waiting)


def _average(gradients: Sequence[Tensor]) -> None:
    """In place, in one message: hundreds of small ones would wait for each other."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    sizes = [gradient.numel() for gradient in gradients]
    parts = torch.split(flat, sizes)
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def gather_rows(row_bD: Tensor) -> Tensor:
    """Every rank's rows, [B, D] in rank order, differentiable; all ranks give equally many.

    The gradient of a row is the sum of what all ranks' losses say about it. With a loss that is
    the mean over the rank's own rows, the mean of the parameters' gradients over ranks, which DDP
    takes, is the gradient of the whole batch's loss.
    """
    if world_size() == 1:
        return row_bD
    gathered: Tensor = _GatherRows.apply(row_bD)
    return gathered


class _GatherRows(torch.autograd.Function):
    """torch.distributed.nn's all_gather needs all_to_all backward, which gloo lacks."""

    @staticmethod
    def forward(ctx: Any, row_bD: Tensor) -> Tensor:
        ctx.own = slice(dist.get_rank() * len(row_bD), (dist.get_rank() + 1) * len(row_bD))
        return _gathered(row_bD)

    @staticmethod
    def backward(ctx: Any, gradient_BD: Tensor) -> Tensor:
        gradient_BD = gradient_BD.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient_BD)
        return gradient_BD[ctx.own]


def _gathered(row_b: Tensor) -> Tensor:
    parts = [torch.empty_like(row_b) for _ in range(world_size())]
    dist.all_gather(parts, row_b.contiguous())
    return torch.cat(parts)


def _as_wide_everywhere(group_b: Tensor) -> Tensor:
    """A rank's pictures may have fewer captions than another's: the last number is repeated."""
    if group_b.ndim == 1:
        return group_b
    width = torch.tensor(group_b.shape[1], device=group_b.device)
    dist.all_reduce(width, op=dist.ReduceOp.MAX)
    missing = int(width) - group_b.shape[1]
    return torch.cat([group_b, group_b[:, -1:].expand(-1, missing)], dim=1)


class AcrossRanks(nn.Module):
    """An objective over every rank's pairs, called with this rank's.

    Each rank computes the rows of its own pairs against all columns, so that the work is shared;
    the value is this rank's part, and the mean over ranks is the loss of the whole batch. The same
    object as the objective where there is one process only.

    Groups must be numbered alike on all ranks. Every rank must bring equally many pairs, and
    equally many hard negatives.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def scale(self) -> Tensor:
        return self.objective.scale()

    def clamp(self) -> None:
        self.objective.clamp()

    def forward(
        self,
        image_bD: Tensor,
        text_bD: Tensor,
        *,
        group_B: Tensor | None = None,
        hard_HD: Tensor | None = None,
        rows: slice | None = None,
    ) -> Tensor:
        if world_size() == 1:
            return self.objective(image_bD, text_bD, group_B=group_B, hard_HD=hard_HD, rows=rows)
        assert rows is None, "a rank's rows are its own pairs"
        begin = dist.get_rank() * len(image_bD)
        return self.objective(
            gather_rows(image_bD),
            gather_rows(text_bD),
            group_B=None if group_B is None else _gathered(_as_wide_everywhere(group_B)),
            hard_HD=None if hard_HD is None else gather_rows(hard_HD),
            rows=slice(begin, begin + len(image_bD)),
        )
