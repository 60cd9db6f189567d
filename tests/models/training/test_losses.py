"""InfoNCE against closed forms, its own loop form, open_clip, and its symmetries."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from models.encoders.base.logit_scale import MAX_LOGIT_SCALE, LogitScale
from models.training.losses import info_nce


def unit(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(
        torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1
    )


def loop(
    image_BD: torch.Tensor, text_BD: torch.Tensor, scale: float, groups: list[int] | None = None
) -> float:
    """The docstring, word for word."""
    total = 0.0
    size = len(image_BD)
    for one, other in ((image_BD, text_BD), (text_BD, image_BD)):
        for i in range(size):
            logits = [scale * float(one[i] @ other[j]) for j in range(size)]
            negatives = [j for j in range(size) if groups is None or groups[j] != groups[i]]
            allowed = {*negatives, i}
            denominator = sum(math.exp(logits[j]) for j in allowed)
            total += -math.log(math.exp(logits[i]) / denominator) / size / 2
    return total


@pytest.mark.parametrize("size", [2, 7, 64])
def test_identical_embeddings_give_log_b(size: int) -> None:
    same_BD = unit(1, 8).expand(size, 8)
    assert float(info_nce(same_BD, same_BD, 50.0)) == pytest.approx(math.log(size))


@pytest.mark.parametrize("scale", [0.5, 5.0, 14.3, 100.0])
def test_orthonormal_pairs(scale: float) -> None:
    size = 9
    basis_BD = torch.eye(size, dtype=torch.float64)
    expected = math.log(1 + (size - 1) * math.exp(-scale))
    assert float(info_nce(basis_BD, basis_BD, scale)) == pytest.approx(expected)


@pytest.mark.parametrize("groups", [None, [0, 1, 2, 3, 4], [0, 0, 1, 2, 1], [3, 3, 3, 3, 3]])
def test_loop_form(groups: list[int] | None) -> None:
    image_BD, text_BD = unit(5, 4, 1), unit(5, 4, 2)
    group_B = None if groups is None else torch.tensor(groups)
    value = float(info_nce(image_BD, text_BD, 7.0, group_B=group_B))
    assert value == pytest.approx(loop(image_BD, text_BD, 7.0, groups))


def test_grouped_pairs_are_no_negatives_of_each_other() -> None:
    """Two captions of one picture: repelling them would push equal things apart."""
    image_BD = unit(1, 4).expand(2, 4).clone()
    text_BD = unit(2, 4, 3)
    assert float(info_nce(image_BD, text_BD, 10.0, group_B=torch.tensor([5, 5]))) == 0.0
    assert float(info_nce(image_BD, text_BD, 10.0)) > 0.1


def test_label_smoothing_is_the_mean_over_allowed_columns() -> None:
    image_BD, text_BD = unit(6, 4, 1), unit(6, 4, 2)
    logits_BB = 7.0 * image_BD @ text_BD.T
    target_B = torch.arange(6)
    expected = sum(
        functional.cross_entropy(logits, target_B, label_smoothing=0.2)
        for logits in (logits_BB, logits_BB.T)
    )
    value = info_nce(image_BD, text_BD, 7.0, label_smoothing=0.2)
    torch.testing.assert_close(value, expected / 2)
    group_B = torch.arange(6)  # no two alike: the mask must change nothing
    torch.testing.assert_close(
        info_nce(image_BD, text_BD, 7.0, label_smoothing=0.2, group_B=group_B), value
    )
    grouped = info_nce(
        image_BD, text_BD, 7.0, label_smoothing=0.2, group_B=torch.tensor([0, 0, 1, 2, 3, 4])
    )
    assert 0 < float(grouped) < 20


def test_open_clip_gives_the_same_value_and_gradient() -> None:
    from open_clip.loss import ClipLoss

    inputs = [unit(16, 8, 1).float(), unit(16, 8, 2).float(), torch.tensor(12.5)]
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    theirs = [tensor.clone().requires_grad_() for tensor in inputs]
    our_loss = info_nce(*ours)
    their_loss = ClipLoss()(*theirs)
    torch.testing.assert_close(our_loss, their_loss)
    our_loss.backward()
    their_loss.backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_the_order_of_pairs_and_of_towers_does_not_matter() -> None:
    image_BD, text_BD = unit(12, 6, 1), unit(12, 6, 2)
    group_B = torch.tensor([0, 1, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9])
    value = info_nce(image_BD, text_BD, 9.0, group_B=group_B)
    order_B = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = info_nce(image_BD[order_B], text_BD[order_B], 9.0, group_B=group_B[order_B])
    torch.testing.assert_close(shuffled, value)
    torch.testing.assert_close(info_nce(text_BD, image_BD, 9.0, group_B=group_B), value)
    # negative control: permuting one side only must matter
    assert not torch.isclose(info_nce(image_BD[order_B], text_BD, 9.0, group_B=group_B), value)


def test_masked_gradients_are_finite() -> None:
    image_BD = unit(4, 4, 1).requires_grad_()
    loss = info_nce(image_BD, unit(4, 4, 2), 100.0, group_B=torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert image_BD.grad is not None
    assert bool(image_BD.grad.isfinite().all())


def test_the_scale_is_clamped_where_it_is_used() -> None:
    assert LogitScale(14.0)().item() == pytest.approx(14.0)
    scale = LogitScale(500.0)
    assert scale().item() == MAX_LOGIT_SCALE
    (-scale()).backward()
    assert scale.log_scale.grad is not None
    assert float(scale.log_scale.grad) == 0.0  # nothing pushes it further up
