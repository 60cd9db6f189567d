"""InfoNCE with soft targets: against its loop form, and the plain loss as its special case."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.losses import info_nce
from models.starter.training.soft_targets import caption_likeness, soft_info_nce

B, D = 7, 5
GROUPS = torch.tensor([0, 1, 1, 2, 3, 3, 3])


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image_BD, text_BD = torch.randn(2, B, D, generator=generator, dtype=torch.double)
    likeness_BB = 3 * torch.randn(B, B, generator=generator, dtype=torch.double)
    return functional.normalize(image_BD, dim=1), functional.normalize(text_BD, dim=1), likeness_BB


def loop(
    cosine: list[list[float]], likeness: list[list[float]], scale: float, share: float
) -> float:
    total = 0.0
    for i in range(B):
        allowed = [j for j in range(B) if j == i or GROUPS[i] != GROUPS[j]]
        soft = sum(math.exp(likeness[i][j]) for j in allowed)
        chance = sum(math.exp(scale * cosine[i][j]) for j in allowed)
        for j in allowed:
            target = (1 - share) * (i == j) + share * math.exp(likeness[i][j]) / soft
            total -= target * math.log(math.exp(scale * cosine[i][j]) / chance)
    return total / B


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_it_equals_its_loop_form(share: float) -> None:
    image_BD, text_BD, likeness_BB = batch()
    cosine_BB = image_BD @ text_BD.T
    found = soft_info_nce(
        image_BD, text_BD, 9.0, likeness_BB=likeness_BB, share=share, group_B=GROUPS
    )
    ways = [(cosine_BB, likeness_BB), (cosine_BB.T, likeness_BB.T)]
    expected = sum(loop(c.tolist(), t.tolist(), 9.0, share) for c, t in ways) / 2
    assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("group_B", [None, GROUPS])
def test_without_a_soft_share_it_is_info_nce(group_B: Tensor | None) -> None:
    image_BD, text_BD, likeness_BB = batch(1)
    image_BD.requires_grad_()
    values, gradients = [], []
    for loss in (
        soft_info_nce(image_BD, text_BD, 12.0, likeness_BB=likeness_BB, share=0.0, group_B=group_B),
        info_nce(image_BD, text_BD, 12.0, group_B=group_B),
    ):
        values.append(loss.item())
        gradients.append(torch.autograd.grad(loss, image_BD)[0])
    assert values[0] == pytest.approx(values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_it_is_least_where_the_cosines_say_what_the_targets_say() -> None:
    """Cross entropy is least at its target: no step away from it may lower the loss."""
    likeness_BB = torch.randn(B, B, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    likeness_BB = likeness_BB + likeness_BB.T  # both ways can agree only where it is symmetric
    image_BB = torch.eye(B, dtype=torch.double)
    best_BB = likeness_BB.clone().requires_grad_()
    loss = soft_info_nce(image_BB, best_BB, 1.0, likeness_BB=likeness_BB, share=1.0)
    assert torch.autograd.grad(loss, best_BB)[0].abs().max() < 1e-12
    plain = soft_info_nce(image_BB, best_BB, 1.0, likeness_BB=likeness_BB, share=0.5)
    assert torch.autograd.grad(plain, best_BB)[0].abs().max() > 1e-3


def test_likeness_is_a_cosine_over_the_temperature() -> None:
    mean_BS = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    caption_BS = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    found = caption_likeness(mean_BS, caption_BS, temperature=0.1)
    torch.testing.assert_close(found, torch.tensor([[10.0, 6.0], [0.0, 8.0]]))
