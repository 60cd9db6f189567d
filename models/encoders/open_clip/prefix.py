"""The text tower of a causal CLIP, run on the tokens that count.

open_clip always runs the whole context, 77 tokens for a search of five. Where attention is causal
and the embedding is read at the end of the text, no later position can reach it, so leaving the
padding out changes nothing but rounding, and costs in proportion to the longest text of a batch.

Shapes: B batch, D embedding, L tokens, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

TextTower = Callable[[torch.Tensor], torch.Tensor]
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

    def __call__(self, text_BL: torch.Tensor) -> torch.Tensor:
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
        pooled_BW: torch.Tensor = text_global_pool(
            x_BLW, text_BL, pair.text_pool_type, eos_token_id=pair.text_eos_id
        )
        projection = pair.text_projection
        if projection is None:
            return pooled_BW
        linear = isinstance(projection, torch.nn.Linear)
        projected_BD: torch.Tensor = projection(pooled_BW) if linear else pooled_BW @ projection
        return projected_BD

    def _length(self, text_BL: torch.Tensor) -> int:
        """Positions up to the last that any row is read at."""
        pair = self._pair
        end_BL = text_BL if pair.text_pool_type == "argmax" else (text_BL == pair.text_eos_id).int()
        last = int(end_BL.argmax(dim=-1).max()) + 1
        return min(text_BL.shape[1], -(-last // _STEP) * _STEP)
