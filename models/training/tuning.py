"""Which weights of an open_clip pair learn: whole towers, last blocks, or low-rank updates (LoRA).

Locking, unlocking and rates by layer go by where a parameter stands in its tower. Depth 0 is what
meets the input (patches, tokens, positions), then one depth a block, and on top the head (last
norm, pooling, projection). It is read from parameter names, of open_clip's own towers as of timm's
and Hugging Face's.

Low-rank updates are those of Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models".
While it trains, a weight W is W + gain * up @ down with W at rest; when it is done the sum becomes
the weight, and what is saved is an ordinary pair of the same architecture. Called by
`models.training.open_clip`; knows no data, loss or optimiser.

Legend: O outputs, I inputs (of a convolution: channels times its window), R rank, P parts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.errors import TrainingError
from models.training.weights import Weights, copy_of

Tower: TypeAlias = Literal["image", "text", "both"]

_BLOCK: Final = re.compile(r"(?:^|\.)(resblocks|blocks|layers?|stages|encoder\.layer|h)\.(\d+)\.")
_RESNET: Final = re.compile(r"(?:^|\.)layer(\d+)\.")
_STEM: Final = re.compile(
    r"(?:^|\.)(conv[123]|bn[123]|conv_stem|patch_embed\w*|stem|embeddings?|embed_tokens|"
    r"token_embedding|word_embeddings|positional_embedding|pos_embed\w*|class_embedding|cls_token|"
    r"cls_emb|reg_token|shared|ln_pre|norm_pre|wte|wpe)(?:\.|$)"
)


@dataclass(frozen=True, slots=True)
class Place:
    """A parameter's tower and depth, and the depth of that tower's head.

    What belongs to no tower (scale, bias) is of `both`, at the head.
    """

    tower: Tower
    depth: int
    top: int

    @property
    def from_top(self) -> int:
        """Blocks between it and the head: 0 for the head, 1 for the last block."""
        return self.top - self.depth


def places(module: nn.Module) -> dict[str, Place]:
    """The place of every parameter of an open_clip pair, by name."""
    depths = {name: (_tower(name), _depth(name)) for name, _ in module.named_parameters()}
    blocks: dict[Tower, int] = {"image": 0, "text": 0, "both": 0}
    for tower, depth in depths.values():
        blocks[tower] = max(blocks[tower], depth or 0)
    return {
        name: Place(tower, blocks[tower] + 1 if depth is None else depth, blocks[tower] + 1)
        for name, (tower, depth) in depths.items()
    }


def lock(module: nn.Module, *, image: bool, text: bool, unlock_blocks: int = 0) -> None:
    """Let some parameters rest: whole towers, or all of them but the head and their last blocks.

    With no tower named, `unlock_blocks` locks both but for these.
    """
    locked = {tower for tower, wanted in (("image", image), ("text", text)) if wanted}
    if unlock_blocks and not locked:
        locked = {"image", "text"}
    where = places(module)
    for name, parameter in module.named_parameters():
        place = where[name]
        if name.startswith("text_decoder."):  # CoCa's captioner: no contrastive loss reaches it
            parameter.requires_grad_(False)
            continue
        near_head = unlock_blocks > 0 and place.from_top <= unlock_blocks
        parameter.requires_grad_(place.tower not in locked or near_head)


def frozen_towers(module: nn.Module) -> set[Literal["image", "text"]]:
    """Towers of which nothing learns."""
    where = places(module)
    learning = {where[name].tower for name, p in module.named_parameters() if p.requires_grad}
    towers: tuple[Literal["image", "text"], ...] = ("image", "text")
    return {tower for tower in towers if tower not in learning}


def _tower(name: str) -> Tower:
    if name.startswith("visual."):
        return "image"
    if name in ("logit_scale", "logit_bias"):
        return "both"
    return "text"


def _depth(name: str) -> int | None:
    """0 at the input, 1 for the first block; None for the head."""
    # a block holds norms and embeddings of its own, so blocks go first
    found = _BLOCK.search(name)
    if found is not None:
        return int(found[2]) + 1
    if found := _RESNET.search(name):
        return int(found[1])
    return 0 if _STEM.search(name) else None


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
