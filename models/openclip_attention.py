"""Masked self-attention without PyTorch's detour over transposed input.

`nn.MultiheadAttention` turns its input round to [L, B, W], and on a CPU `linear` with a bias then
becomes a product of matrices for each position, with a copy of the weights for each. In bf16 that
is most of the time of a text tower as soon as a batch holds two. The algebra here is the same on
[B, L, W] as it lies.

Shapes: A heads, B batch, L tokens, W width, X width of a head.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional


def unturned(pair: nn.Module) -> nn.Module:
    """Give every plain attention of a pair in evaluation mode the direct way; in place."""
    for module in pair.modules():
        if (
            type(module) is nn.MultiheadAttention
            and module.batch_first
            and module.in_proj_weight is not None
            and module.bias_k is None
            and not module.add_zero_attn
        ):
            module.__class__ = _Direct  # still a MultiheadAttention, hooks and weights included
    return pair


class _Direct(nn.MultiheadAttention):
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As its parent; only masked self-attention that nobody asks the weights of is direct.

        Without a mask the parent has a fused kernel of its own.
        """
        itself = query is key and key is value and query.dim() == 3
        if args or options or need_weights or attn_mask is None or self.training or not itself:
            found: tuple[Tensor, Tensor | None] = super().forward(
                query, key, value, *args,
                need_weights=need_weights, attn_mask=attn_mask, **options,
            )  # fmt: skip
            return found
        packed_BLW3 = functional.linear(query, self.in_proj_weight, self.in_proj_bias)
        heads = (self.num_heads, self.head_dim)
        each_BALX = (
            part_BLW.unflatten(-1, heads).transpose(1, 2) for part_BLW in packed_BLW3.chunk(3, -1)
        )
        mixed_BALX = functional.scaled_dot_product_attention(*each_BALX, attn_mask=attn_mask)
        return self.out_proj(mixed_BALX.transpose(1, 2).flatten(-2)), None
