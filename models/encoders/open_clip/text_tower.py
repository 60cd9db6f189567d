"""Shortcuts through the text towers of open_clip pairs, for `OpenClipEncoder` and the trainer.

**The prefix.** open_clip always runs the whole context, 77 tokens for a search of five. Where
attention is causal and the embedding is read at the end of the text, no later position can reach
it, so leaving the padding out changes nothing but rounding, and costs in proportion to the longest
text of a batch.

**Direct attention.** `nn.MultiheadAttention` turns its input round to [L, B, W], and on a CPU
`linear` with a bias then becomes a product of matrices for each position, with a copy of the
weights for each. In bf16 that is most of the time of a text tower as soon as a batch holds two. The
algebra here is the same on [B, L, W] as it lies.

Shapes: A heads, B batch, D embedding, L tokens, W width, X width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

TextTower = Callable[[Tensor], Tensor]
"""int64 [B, L] -> [B, D], as open_clip's `encode_text`."""

# multiplications are prepared once a shape; a few shapes are met again, 77 lengths are not
_STEP: Final = 4


def text_tower(pair: Any) -> TextTower:
    """`pair.encode_text`, or its equal on shorter rows where the architecture allows it."""
    return _Prefix(pair) if _reads_a_prefix(pair) else pair.encode_text


def _reads_a_prefix(pair: Any) -> bool:
    from open_clip import CLIP

    # exactly this class: others have towers of their own, whose padding may count
    if type(pair) is not CLIP or pair.text_pool_type not in ("argmax", "eos"):
        return False
    mask_LL = pair.attn_mask
    if mask_LL is None:
        return False
    above = torch.ones(mask_LL.shape, dtype=torch.bool, device=mask_LL.device).triu(1)
    return bool((mask_LL[above] == float("-inf")).all())


class _Prefix:
    def __init__(self, pair: Any) -> None:
        self._pair = pair

    def __call__(self, text_BL: Tensor) -> Tensor:
        from open_clip.transformer import text_global_pool

        pair = self._pair
        text_BL = text_BL[:, : self._length(text_BL)]
        length = text_BL.shape[1]
        # from here on as open_clip.CLIP.encode_text, which cannot take fewer positions
        dtype = pair.transformer.get_cast_dtype()
        x_BLW = pair.token_embedding(text_BL).to(dtype)
        x_BLW = x_BLW + pair.positional_embedding[:length].to(dtype)
        x_BLW = pair.transformer(x_BLW, attn_mask=pair.attn_mask[:length, :length])
        x_BLW = pair.ln_final(x_BLW)
        pooled_BW: Tensor = text_global_pool(
            x_BLW, text_BL, pair.text_pool_type, eos_token_id=pair.text_eos_id
        )
        projection = pair.text_projection
        if projection is None:
            return pooled_BW
        linear = isinstance(projection, nn.Linear)
        projected_BD: Tensor = projection(pooled_BW) if linear else pooled_BW @ projection
        return projected_BD

    def _length(self, text_BL: Tensor) -> int:
        """Positions up to the last that any row is read at."""
        pair = self._pair
        end_BL = text_BL if pair.text_pool_type == "argmax" else (text_BL == pair.text_eos_id).int()
        last = int(end_BL.argmax(dim=-1).max()) + 1
        return min(text_BL.shape[1], -(-last // _STEP) * _STEP)


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
