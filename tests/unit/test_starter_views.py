"""Views of pictures for training, and the moving average of what is trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models.starter.training.average import MovingAverage
from models.starter.training.views import WHOLE, see


def noise(seed: int, width: int = 60, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_the_whole_picture_is_left_alone() -> None:
    picture = noise(0)
    assert see(picture, WHOLE) is picture


def test_a_view_is_the_same_every_time_and_another_one_is_another() -> None:
    first = see(noise(0), 1)
    assert first.tobytes() == see(noise(0), 1).tobytes()
    assert first.tobytes() != see(noise(0), 2).tobytes()
    boxes = {see(noise(seed), 1).size for seed in range(8)}
    assert len(boxes) > 1


@pytest.mark.parametrize("size", [(60, 40), (300, 20), (1, 1), (1, 50)])
def test_a_view_shows_at_least_half_of_the_picture(size: tuple[int, int]) -> None:
    picture = noise(1, *size)
    for view in range(1, 30):
        seen = see(picture, view)
        assert seen.width <= picture.width
        assert seen.height <= picture.height
        # rounding a side to whole pixels may take half a pixel off each
        least = 0.5 * picture.width * picture.height - (picture.width + picture.height) / 2
        assert seen.width * seen.height >= least


def test_the_average_equals_its_loop_form() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    average = MovingAverage([weight], decay=0.9)
    expected = weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 200):
        with torch.no_grad():
            weight.copy_(torch.randn(2, generator=generator))
        average.follow()
        decay = min(0.9, step / (9 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
    average.settle()
    torch.testing.assert_close(weight.detach(), expected)


def test_the_average_of_what_does_not_move_is_what_it_is() -> None:
    weight = nn.Parameter(torch.tensor([3.0]))
    average = MovingAverage([weight], decay=0.99)
    for _ in range(5):
        average.follow()
    average.settle()
    assert weight.item() == 3.0
