"""Hard negatives, rows and chunks of InfoNCE: against loops, against the plain form, in memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from loss_inputs import Largest, assert_same, gradients, unit
from torch import Tensor

from models.training.losses import info_nce, info_nce_rows

B, D, H = 12, 6, 5
IMAGE, TEXT, HARD = unit(B, D, 1), unit(B, D, 2), unit(H, D, 3)
SCALE = torch.tensor(9.0, dtype=torch.float64)
GROUP = torch.tensor([0, 1, 1, 2, 3, 4, 5, 5, 5, 6, 7, 8])
# what each is of, what its text says, what else is said of its picture: rows 0 and 9 share a
# caption, row 3's picture has the one of row 4 as another, row 10 that of row 11, and 1 of itself
SAID = torch.tensor([
    [0, 50, 50], [1, 51, 51], [1, 52, 52], [2, 53, 54], [3, 54, 54], [4, 55, 55],
    [5, 56, 56], [5, 57, 57], [5, 58, 58], [6, 50, 50], [7, 59, 60], [8, 60, 1],
])  # fmt: skip
OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"group_B": GROUP},
    {"group_B": GROUP, "label_smoothing": 0.1},
    {"group_B": SAID},
    {"group_B": SAID, "label_smoothing": 0.1},
]


def fitting(groups: list[Any] | None, i: int, j: int) -> bool:
    """Whether text j fits picture i, though it is another's."""
    if groups is None or not isinstance(groups[i], list):
        return groups is not None and bool(groups[i] == groups[j])
    return bool(groups[i][0] == groups[j][0] or groups[j][1] in groups[i][1:])


def loop(groups: list[Any] | None, hard: bool, smoothing: float) -> float:
    """The docstring, word for word, with the hard negatives as further columns of pictures."""
    total = 0.0
    for one, other, more in ((IMAGE, TEXT, HARD if hard else []), (TEXT, IMAGE, [])):
        for i in range(B):
            ways = [(i, j) if one is IMAGE else (j, i) for j in range(B)]
            allowed = [j for j in range(B) if j == i or not fitting(groups, *ways[j])]
            logits = {j: float(SCALE * one[i] @ other[j]) for j in allowed}
            logits |= {B + h: float(SCALE * one[i] @ row) for h, row in enumerate(more)}
            log_sum = math.log(sum(math.exp(logit) for logit in logits.values()))
            uniform = sum(log_sum - logit for logit in logits.values()) / len(logits)
            total += (1 - smoothing) * (log_sum - logits[i]) + smoothing * uniform
    return total / B / 2


def test_equal_captions_are_not_each_others_negatives() -> None:
    """Three captions for twelve pictures: told apart, the loss is nothing, and not ln 4."""
    of, said = torch.arange(B), torch.arange(B) % 3
    text_BD = torch.eye(3, 6, dtype=torch.float64)[said]
    told = info_nce(text_BD, text_BD, 50.0, group_B=torch.stack([of, said], dim=1))
    assert float(told) < 1e-6
    # negative control: grouped by picture alone
    assert float(info_nce(text_BD, text_BD, 50.0, group_B=of)) == pytest.approx(math.log(4))


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_loop_form(options: dict[str, Any], hard: bool) -> None:
    groups = options["group_B"].tolist() if "group_B" in options else None
    expected = loop(groups, hard, options.get("label_smoothing", 0.0))
    hard_HD = HARD if hard else None
    value = info_nce(IMAGE, TEXT, SCALE, hard_HD=hard_HD, **options)
    assert float(value) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("options", OPTIONS)
def test_rows_are_the_parts_of_the_whole(options: dict[str, Any]) -> None:
    """Values and gradients, in slices of unequal and of equal length."""

    def whole(image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
        return info_nce(image_BD, text_BD, scale, **options)

    def parts(image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for rows in (slice(0, 4), slice(4, 11), slice(11, 12)):
            part = info_nce_rows(image_BD, text_BD, scale, rows=rows, **options)
            total = total + part * (rows.stop - rows.start)
        return total / B

    assert_same(whole, parts, IMAGE, TEXT, SCALE)
    # broken twin: slices that forget where they begin
    wrong = info_nce_rows(IMAGE[4:8], TEXT[4:8], SCALE, rows=slice(0, 4))
    assert not torch.isclose(wrong, info_nce_rows(IMAGE, TEXT, SCALE, rows=slice(4, 8)))


@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
@pytest.mark.parametrize("options", OPTIONS)
def test_chunks_change_neither_value_nor_gradient(options: dict[str, Any], chunk: int) -> None:
    def plain(image_BD: Tensor, text_BD: Tensor, scale: Tensor, hard_HD: Tensor) -> Tensor:
        return info_nce(image_BD, text_BD, scale, hard_HD=hard_HD, **options)

    def chunked(image_BD: Tensor, text_BD: Tensor, scale: Tensor, hard_HD: Tensor) -> Tensor:
        return info_nce_rows(
            image_BD, text_BD, scale, rows=slice(0, B), hard_HD=hard_HD, chunk=chunk, **options
        )

    assert_same(plain, chunked, IMAGE, TEXT, SCALE, HARD)


def test_chunks_never_hold_the_whole_matrix() -> None:
    size, chunk = 256, 8
    image_BD, text_BD = unit(size, 4, 1), unit(size, 4, 2)

    def loss(image_BD: Tensor, text_BD: Tensor, chunk: int | None) -> Tensor:
        return info_nce_rows(image_BD, text_BD, 9.0, rows=slice(0, size), chunk=chunk)

    with Largest() as chunked:
        gradients(lambda image, text: loss(image, text, chunk), image_BD, text_BD)
    with Largest() as plain:  # the control: what is measured can be larger
        gradients(lambda image, text: loss(image, text, None), image_BD, text_BD)
    assert chunked.numbers == chunk * size
    assert plain.numbers == size * size


def test_a_hard_negative_is_one_more_wrong_column_for_pictures_only() -> None:
    basis_BD = torch.eye(9, dtype=torch.float64)
    image_BD = text_BD = basis_BD[:4]
    # orthogonal to everything: one more column with logit 0
    expected = (math.log(1 + 4 * math.exp(-7)) + math.log(1 + 3 * math.exp(-7))) / 2
    value = info_nce(image_BD, text_BD, 7.0, hard_HD=basis_BD[4:5])
    assert float(value) == pytest.approx(expected)
    # equal to the right text: the picture can do no better than one half
    expected = (math.log(2 + 3 * math.exp(-7)) + 3 * math.log(1 + 4 * math.exp(-7))) / 4
    expected = (expected + math.log(1 + 3 * math.exp(-7))) / 2
    value = info_nce(image_BD, text_BD, 7.0, hard_HD=text_BD[:1])
    assert float(value) == pytest.approx(expected)


def test_no_hard_negatives_is_the_plain_loss() -> None:
    value = info_nce(IMAGE, TEXT, SCALE, hard_HD=HARD[:0])
    torch.testing.assert_close(value, info_nce(IMAGE, TEXT, SCALE))
