"""Masked self-attention without PyTorch's detour over transposed input.

`nn.MultiheadAttention` turns its input round to [L, B, W], and on a CPU `linear` with a bias then
becomes a product of matrices for each position, with a copy of the weights for each. In bf16 that
is most of the time of a text tower as soon as a batch holds two. The algebra here is the same on
[B, L, W] as it lies.

Shapes: A heads, B batch, L tokens, W width, X width of a head.
"""

from __future__ import annotations

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
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As its parent; only masked self-attention that nobody asks the weights of is direct.

        Without a mask the parent has a fused kernel of its own.
        """
        itself = query is key and key is value and query.dim() == 3
        plain = key_padding_mask is None and not (need_weights or is_causal or self.training)
        if attn_mask is None or not (itself and plain):
            return super().forward(
                query,
                key,
                value,
                key_padding_mask=key_padding_mask,
                need_weights=need_weights,
                attn_mask=attn_mask,
                average_attn_weights=average_attn_weights,
                is_causal=is_causal,
            )
        packed_BLW3 = functional.linear(query, self.in_proj_weight, self.in_proj_bias)
        batch, length, width = query.shape
        query, key, value = (
            part_BLW.view(batch, length, self.num_heads, -1).transpose(1, 2)
            for part_BLW in packed_BLW3.chunk(3, -1)
        )
        mixed_BALX = functional.scaled_dot_product_attention(query, key, value, attn_mask)
        return self.out_proj(mixed_BALX.transpose(1, 2).reshape(batch, length, width)), None
