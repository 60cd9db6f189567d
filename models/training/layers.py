"""Where in its tower each parameter stands: what locking, unlocking and layer-wise rates go by.

Depth 0 is what meets the input (patches, tokens, positions), then one depth a block, and on top
the head (last norm, pooling, projection). Read from parameter names, of open_clip's own towers as
of timm's and Hugging Face's. Knows no optimiser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from torch import nn

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


def frozen_towers(module: nn.Module) -> set[Tower]:
    """Towers of which nothing learns."""
    where = places(module)
    learning = {where[name].tower for name, p in module.named_parameters() if p.requires_grad}
    return {"image", "text"} - learning  # type: ignore[return-value]


def trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that learn, by name."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


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
