"""Shortcuts through a text tower: against open_clip and PyTorch, which take the long way."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
from torch import nn

from models.encoders.open_clip.text_tower import text_tower, unturned

TEXT = {"context_length": 30, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
IMAGE = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
END = 49


def make(*, custom: bool = False, **text: object) -> nn.Module:
    torch.manual_seed(0)
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    pair = kind(embed_dim=24, vision_cfg=IMAGE, text_cfg={**TEXT, **text}).eval()
    for parameter in pair.requires_grad_(False).parameters():
        parameter.mul_(3)  # so that texts differ
    return pair


def texts(*lengths: int) -> torch.Tensor:
    rows = torch.zeros(len(lengths), 30, dtype=torch.long)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = torch.randint(1, END, (length,))
        row[length - 1] = END
    return rows


@pytest.mark.parametrize("text", [{}, {"pool_type": "eos", "eos_id": END}, {"proj_bias": True}])
@pytest.mark.parametrize("lengths", [(3,), (2, 9, 5), (30, 4), (29,), (1,)])
def test_the_prefix_is_embedded_as_the_whole(text: dict[str, object], lengths: tuple[int]) -> None:
    pair = make(**text)
    seen: list[int] = []
    text_BL = texts(*lengths)
    expected = pair.encode_text(text_BL)
    pair.transformer.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    found = text_tower(pair)(text_BL)
    assert (found - expected).abs().max() < 1e-5
    assert max(lengths) <= seen[0] < max(lengths) + 4
    assert seen[0] <= 30
    other = text_BL.clone()
    other[0, 0] += 1
    if lengths[0] > 1:
        assert (text_tower(pair)(other)[0] - expected[0]).abs().max() > 1e-3


def test_padding_that_counts_is_not_left_out() -> None:
    for pair in (
        make(no_causal_mask=True),
        make(pool_type="last"),
        make(custom=True, no_causal_mask=True, pool_type="last"),
    ):
        tower = text_tower(pair)
        assert tower == pair.encode_text
        full = texts(4)
        another = full.clone()
        another[0, 4:] = 7  # after the end
        assert (tower(full) - tower(another)).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_parents(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    plain = nn.MultiheadAttention(16, 4, batch_first=True).eval().requires_grad_(False).to(dtype)
    nn.init.normal_(plain.in_proj_bias)
    direct = copy.deepcopy(plain)
    unturned(nn.Sequential(direct))
    assert type(direct) is not type(plain)
    mask = torch.full((7, 7), float("-inf"), dtype=dtype).triu(1)
    x = torch.randn(3, 7, 16, dtype=dtype)
    for mask_or_not in (mask, None):
        expected, _ = plain(x, x, x, need_weights=False, attn_mask=mask_or_not)
        found, _ = direct(x, x, x, need_weights=False, attn_mask=mask_or_not)
        assert (found - expected).abs().max() < (1e-6 if dtype == torch.float32 else 0.05)
    masked, _ = direct(x, x, x, need_weights=False, attn_mask=mask)
    free, _ = direct(x, x, x, need_weights=False)
    assert (masked - free).abs().max() > 0.1
    # weights are still there for whoever asks, and attention to something else
    _, weights = direct(x, x, x, attn_mask=mask)
    assert weights is not None
    assert torch.allclose(weights, plain(x, x, x, attn_mask=mask)[1], atol=1e-6)
    y = torch.randn(3, 7, 16, dtype=dtype)
    crossed = direct(x, y, y, need_weights=False, attn_mask=mask)[0]
    assert torch.equal(crossed, plain(x, y, y, need_weights=False, attn_mask=mask)[0])


def test_attention_of_another_kind_is_left_alone() -> None:
    for other in (
        nn.MultiheadAttention(16, 4),
        nn.MultiheadAttention(16, 4, batch_first=True, kdim=8),
        nn.MultiheadAttention(16, 4, batch_first=True, add_zero_attn=True),
        nn.MultiheadAttention(16, 4, batch_first=True, add_bias_kv=True),
    ):
        unturned(nn.Sequential(other))
        assert type(other) is nn.MultiheadAttention
