"""The sigmoid loss: closed forms, its loop form, open_clip, groups, hard negatives, chunks."""

from __future__ import annotations

import math

import pytest
import torch
from loss_inputs import Largest, assert_same, gradients, unit
from open_clip.loss import SigLipLoss
from torch import Tensor

from models.training.losses import sigmoid_loss, sigmoid_rows

B, D, H = 12, 6, 5
IMAGE, TEXT, HARD = unit(B, D, 1), unit(B, D, 2), unit(H, D, 3)
SCALE = torch.tensor(9.0, dtype=torch.float64)
BIAS = torch.tensor(-4.0, dtype=torch.float64)
GROUP = torch.tensor([0, 1, 1, 2, 3, 4, 5, 5, 5, 6, 7, 8])
SAID = torch.stack([GROUP, torch.arange(B) % 7 + 50, torch.arange(B) % 5 + 50], dim=1)
GROUPS = [None, GROUP, SAID]


def loop(groups: list[int] | list[list[int]], hard: bool) -> float:
    """The docstring, word for word."""

    def fits(one: int | list[int], other: int | list[int]) -> bool:
        if isinstance(one, int) or isinstance(other, int):
            return one == other
        return one[0] == other[0] or other[1] in one[1:]

    total = 0.0
    for i in range(B):
        for j in range(B):
            z = 1 if fits(groups[i], groups[j]) else -1
            total += math.log(1 + math.exp(-z * float(SCALE * IMAGE[i] @ TEXT[j] + BIAS)))
        for row in HARD if hard else []:
            total += math.log(1 + math.exp(float(SCALE * IMAGE[i] @ row + BIAS)))
    return total / B


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("group_B", GROUPS)
def test_loop_form(group_B: Tensor | None, hard: bool) -> None:
    groups = list(range(B)) if group_B is None else group_B.tolist()
    hard_HD = HARD if hard else None
    value = sigmoid_loss(IMAGE, TEXT, SCALE, BIAS, group_B=group_B, hard_HD=hard_HD)
    assert float(value) == pytest.approx(loop(groups, hard), rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 9])
def test_closed_forms(size: int) -> None:
    same_BD = unit(1, D).expand(size, D)
    # every logit is 0 where scale and bias cancel: log 2 for each of B texts
    assert float(sigmoid_loss(same_BD, same_BD, 10.0, -10.0)) == pytest.approx(size * math.log(2))
    basis_BD = torch.eye(size, dtype=torch.float64)
    expected = math.log(1 + math.exp(-5)) + (size - 1) * math.log(1 + math.exp(-5))
    assert float(sigmoid_loss(basis_BD, basis_BD, 10.0, -5.0)) == pytest.approx(expected)


def test_open_clip_gives_the_same_values_and_gradients() -> None:
    def ours(image_BD: Tensor, text_BD: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return sigmoid_loss(image_BD, text_BD, scale, bias)

    inputs = (IMAGE, TEXT, SCALE, BIAS)
    assert_same(ours, SigLipLoss(), *inputs)
    with pytest.raises(AssertionError):  # negative control: without the bias it is another loss
        assert_same(lambda i, t, s, b: sigmoid_loss(i, t, s, 0 * b), SigLipLoss(), *inputs)


def test_two_captions_of_one_picture_are_both_right() -> None:
    image_BD = unit(1, 4).expand(2, 4).clone()
    group_B = torch.tensor([5, 5])
    value = sigmoid_loss(image_BD, image_BD, 100.0, 0.0, group_B=group_B)
    assert float(value) == pytest.approx(0.0, abs=1e-12)
    assert float(sigmoid_loss(image_BD, image_BD, 100.0, 0.0)) == pytest.approx(100.0)


@pytest.mark.parametrize("group_B", GROUPS)
def test_rows_and_chunks_are_parts_of_the_whole(group_B: Tensor | None) -> None:
    def whole(*inputs: Tensor) -> Tensor:
        return sigmoid_loss(*inputs[:4], group_B=group_B, hard_HD=inputs[4])

    def parts(*inputs: Tensor) -> Tensor:
        return (
            sigmoid_rows(*inputs[:4], rows=slice(0, 6), group_B=group_B, hard_HD=inputs[4], chunk=4)
            + sigmoid_rows(*inputs[:4], rows=slice(6, 12), group_B=group_B, hard_HD=inputs[4])
        ) / 2

    def chunked(*inputs: Tensor) -> Tensor:
        return sigmoid_loss(*inputs[:4], group_B=group_B, hard_HD=inputs[4], chunk=5)

    inputs = (IMAGE, TEXT, SCALE, BIAS, HARD)
    assert_same(whole, parts, *inputs)
    assert_same(whole, chunked, *inputs)


def test_chunks_never_hold_the_whole_matrix() -> None:
    size, chunk = 256, 8
    inputs = unit(size, 4, 1), unit(size, 4, 2)
    with Largest() as chunked:
        gradients(lambda i, t: sigmoid_loss(i, t, 9.0, -9.0, chunk=chunk), *inputs)
    with Largest() as plain:
        gradients(lambda i, t: sigmoid_loss(i, t, 9.0, -9.0), *inputs)
    assert (chunked.numbers, plain.numbers) == (chunk * size, size * size)


def test_large_logits_do_not_overflow() -> None:
    def loss(image_BD: Tensor, text_BD: Tensor) -> Tensor:
        return sigmoid_loss(image_BD, text_BD, 1e4, -1e4)

    value, found = gradients(loss, IMAGE.float(), TEXT.float())
    assert bool(value.isfinite())
    assert all(bool(gradient.isfinite().all()) for gradient in found)
