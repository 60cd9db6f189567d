"""Objectives: around an open_clip pair's own parameters, in half precision, at their limits."""

from __future__ import annotations

import math

import open_clip
import pytest
import torch
from loss_inputs import assert_same, objective_for, unit
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor, nn

from models.training.losses import (
    InfoNCEObjective,
    SigmoidObjective,
    info_nce,
    sigmoid_loss,
)

IMAGE, TEXT, HARD = (unit(rows, 6, rows, torch.float32) for rows in (10, 11, 4))
TEXT = TEXT[:10]
GROUP = torch.tensor([0, 0, 1, 2, 3, 4, 5, 5, 6, 7])
TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 1, "layers": 1},
}


def test_an_objective_is_its_loss() -> None:
    soft = InfoNCEObjective(label_smoothing=0.1, chunk=3)
    assert_same(
        lambda i, t, h: soft(i, t, group_B=GROUP, hard_HD=h),
        lambda i, t, h: info_nce(i, t, 1 / 0.07, group_B=GROUP, hard_HD=h, label_smoothing=0.1),
        IMAGE,
        TEXT,
        HARD,
    )
    hard = SigmoidObjective(chunk=3)
    assert_same(
        lambda i, t, h: hard(i, t, group_B=GROUP, hard_HD=h),
        lambda i, t, h: sigmoid_loss(i, t, 10.0, -10.0, group_B=GROUP, hard_HD=h),
        IMAGE,
        TEXT,
        HARD,
    )


def test_a_pair_is_trained_as_it_was_trained_with_its_own_parameters() -> None:
    soft_pair = open_clip.CLIP(**TINY)
    soft = objective_for(soft_pair)
    assert isinstance(soft, InfoNCEObjective)
    assert soft.log_scale is soft_pair.logit_scale
    expected = ClipLoss()(IMAGE, TEXT, soft_pair.logit_scale.exp())
    torch.testing.assert_close(soft(IMAGE, TEXT), expected)
    sigmoid_pair = open_clip.CLIP(
        **TINY, init_logit_bias=-10.0, init_logit_scale=math.log(10), nonscalar_logit_scale=True
    )
    sigmoid = objective_for(sigmoid_pair)
    assert isinstance(sigmoid, SigmoidObjective)
    assert sigmoid.bias is sigmoid_pair.logit_bias
    expected = SigLipLoss()(IMAGE, TEXT, sigmoid_pair.logit_scale.exp(), sigmoid_pair.logit_bias)
    torch.testing.assert_close(sigmoid(IMAGE, TEXT), expected)
    sigmoid(IMAGE, TEXT).backward()
    assert sigmoid_pair.logit_scale.grad is not None
    assert sigmoid_pair.logit_bias.grad is not None


def test_a_parameter_of_zero_is_adopted_too() -> None:
    zero = nn.Parameter(torch.tensor(0.0))
    assert InfoNCEObjective(zero).log_scale is zero
    assert SigmoidObjective(zero, zero).bias is zero


def test_the_scale_stops_at_100_and_can_come_back() -> None:
    objective = InfoNCEObjective(nn.Parameter(torch.tensor(9.0)))
    assert objective.scale().item() == pytest.approx(100.0, rel=1e-6)
    objective.clamp()
    assert objective.log_scale.item() == pytest.approx(math.log(100.0))
    assert objective.scale().item() <= 100
    objective(IMAGE, TEXT).backward()  # random pairs: a lower scale would be better
    assert objective.log_scale.grad is not None
    assert float(objective.log_scale.grad) > 0
    stuck = InfoNCEObjective(nn.Parameter(torch.tensor(9.0)))  # control: never clamped
    stuck(IMAGE, TEXT).backward()
    assert stuck.log_scale.grad is not None
    assert float(stuck.log_scale.grad) == 0


def test_a_sigmoid_pair_keeps_a_scale_above_100() -> None:
    objective = SigmoidObjective(nn.Parameter(torch.tensor(4.8)))  # as published SigLIP pairs have
    objective.clamp()
    assert objective.scale().item() == pytest.approx(math.exp(4.8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [InfoNCEObjective, SigmoidObjective])
def test_half_precision_rows_are_compared_in_fp32(
    kind: type[InfoNCEObjective | SigmoidObjective], dtype: torch.dtype
) -> None:
    objective = kind()
    image_BD, text_BD = IMAGE.to(dtype), TEXT.to(dtype)
    expected = objective(image_BD.float(), text_BD.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value: Tensor = objective(image_BD, text_BD)
    assert value.dtype == torch.float32
    assert value.item() == expected.item()
