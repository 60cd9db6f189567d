"""AdamW with the groups that contrastive training wants, and its state by parameter name.

Knows no schedule: `set_rate` is told the rate of each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.training.config import TrainConfig
from models.training.tuning import places, trainable


def make_optimiser(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that learn, one group per rate and decay.

    No decay on what has one dimension or none (norms, biases, gains, the scale), as in CLIP, nor
    on position and class embeddings, as in timm.
    """
    where = places(module)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable(module):
        place = where[name]
        share = 1.0 if place.tower == "both" else config.layer_decay**place.from_top
        decay = config.weight_decay if decays(name, parameter) else 0.0
        groups.setdefault((share, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "share": share}
            for (share, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter."""
    embeds = ("positional_embedding", "pos_embed", "class_embedding", "cls_token", "cls_emb")
    return parameter.ndim > 1 and not name.endswith(embeds)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the coming step; each group takes its share of it."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["share"]


def optimiser_tensors(optimiser: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as tensors: `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`."""
    return {
        f"{kind}/{name}": value
        for name, parameter in trainable(module)
        for kind, value in optimiser.state[parameter].items()
    }


def load_optimiser(
    optimiser: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Inverse of `optimiser_tensors`; a parameter without a state never had a gradient."""
    for name, parameter in trainable(module):
        if f"step/{name}" not in tensors:
            continue
        state: dict[str, Any] = {}
        for kind in ("exp_avg", "exp_avg_sq"):
            state[kind] = tensors[f"{kind}/{name}"].to(parameter.device, parameter.dtype)
        state["step"] = tensors[f"step/{name}"].to(parameter.device, copy=True)
        optimiser.state[parameter] = state
