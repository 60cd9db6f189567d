"""Low-rank updates of a frozen pair's weights, added into them at the end (LoRA).

Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models". While it trains, a weight W
is W + gain * up @ down with W at rest; when it is done the sum becomes the weight, and what is
saved is an ordinary pair of the same architecture. Knows no data, loss or optimiser.

Legend: O outputs, I inputs (of a convolution: channels times its window), R rank, P parts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.errors import TrainingError
from models.training.weights import Weights, copy_of

DEFAULT_RANK: Final = 8
GAIN: Final = 2.0
"""alpha / rank in the paper's terms, which sets alpha once and varies the rank."""


class LowRank(nn.Module):
    """W -> W + gain * up @ down, in W's own shape; at first up = 0, and W is unchanged.

    Args:
        weight: what it will be added to: any shape with the outputs first.
        rank: R; less where the weight itself has less.
        parts: matrices that lie in the weight on top of each other, each with an update of its
            own: 3 for queries, keys and values in one.
    """

    def __init__(
        self, weight: Tensor, rank: int, *, parts: int = 1, dice: torch.Generator | None = None
    ) -> None:
        super().__init__()
        outputs, inputs = weight.shape[0] // parts, weight[0].numel()
        rank = min(rank, outputs, inputs)
        # nn.Linear's own initialisation, as in the paper's code
        bound = 1 / math.sqrt(inputs)
        down_PRI = torch.empty(parts, rank, inputs).uniform_(-bound, bound, generator=dice)
        self.down = nn.Parameter(down_PRI.to(weight))
        self.up = nn.Parameter(weight.new_zeros(parts, outputs, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + GAIN * (self.up @ self.down).reshape(weight.shape)


def attach_lora(
    module: nn.Module,
    *,
    rank: int = DEFAULT_RANK,
    towers: Collection[str] = ("image", "text"),
    seed: int = 0,
) -> int:
    """Freeze an open_clip pair but for its scale and bias, and give towers low-rank updates.

    Linear layers, attention (queries, keys and values each their own) and convolutions without
    groups get one; norms, embeddings and bare projection matrices stay as they are.

    Returns:
        how many numbers learn now.

    Raises:
        TrainingError: nothing in the named towers can be updated so.
    """
    dice = torch.Generator().manual_seed(seed)
    module.requires_grad_(False)
    found = list(_updatable(module, towers))
    if not found:
        raise TrainingError(
            "the towers named have no layers for low-rank updates", code="nothing-to-train"
        )
    for layer, name, parts in found:
        weight = getattr(layer, name)
        update = LowRank(weight, rank, parts=parts, dice=dice)
        parametrize.register_parametrization(layer, name, update)
    for name in ("logit_scale", "logit_bias"):
        if isinstance(value := getattr(module, name, None), nn.Parameter):
            value.requires_grad_(True)
    return sum(value.numel() for value in module.parameters() if value.requires_grad)


def merge_lora(module: nn.Module) -> Weights:
    """Add every update into its weight -> the plain weights, which the module holds now, too."""
    for layer in list(module.modules()):
        if not parametrize.is_parametrized(layer):
            continue
        for name in list(layer.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
    return copy_of(module)


def _updatable(module: nn.Module, towers: Collection[str]) -> Iterator[tuple[nn.Module, str, int]]:
    """(layer, which of its weights, how many matrices lie in it)"""
    for path, layer in module.named_modules():
        tower = "image" if path.startswith("visual.") or path == "visual" else "text"
        if tower not in towers:
            continue
        if isinstance(layer, nn.MultiheadAttention):
            # its output projection is an nn.Linear of its own
            if getattr(layer, "in_proj_weight", None) is not None:
                yield layer, "in_proj_weight", 3
            else:
                for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
                    yield layer, name, 1
        elif isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
            yield layer, "weight", 1
