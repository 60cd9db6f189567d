"""Pictures as a model meets them in training: a random crop, and, if asked, a flip and colours.

The result has the size and the interpolation of the pair's own preprocessing; normalising is left
to the device, which is given bytes. Every draw comes from the sample's own generator, so that it
depends neither on threads nor on what was drawn before.

Pictures are never mirrored unless asked, because captions speak of left and right and pictures
hold letters; asked to, a picture whose captions name a side is left as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

Pixels = npt.NDArray[np.uint8]
"""uint8 [3, H, W]"""

_RATIO: Final = (3 / 4, 4 / 3)
_TRIES: Final = 10
_SIDES: Final = re.compile(
    r"\b(left|right|links|rechts|gauche|droite?|izquierd[ao]|derech[ao]|esquerd[ao]|direit[ao]|"
    r"sinistr[ao]|destr[ao])\b|左|右|왼|오른|лев|прав",
    re.IGNORECASE,
)
_INTERPOLATION: Final = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
_Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What may happen to a picture.

    Attributes:
        crop: smallest and largest share of the picture's area that is kept. CLIP and open_clip
            crop mildly, (0.9, 1): a caption describes the whole picture.
        flip: mirror half of the pictures whose captions name no side.
        colour: brightness, contrast and saturation each change by a factor within 1 +- this.
    """

    crop: tuple[float, float] = (0.9, 1.0)
    flip: bool = False
    colour: float = 0.0


class Augmenter:
    """Draws training pixels for one pair's preprocessing."""

    def __init__(self, preprocess: Mapping[str, Any], augmentation: Augmentation) -> None:
        height, width = preprocess["size"]
        self._size = (int(width), int(height))
        self._resample = _INTERPOLATION.get(preprocess["interpolation"], Image.Resampling.BICUBIC)
        self._mode = preprocess["resize_mode"]
        self._fill = preprocess["fill_color"]
        self._augmentation = augmentation

    def __call__(self, picture: Image.Image, texts: Iterable[str], random: Random) -> Pixels:
        """An upright RGB picture -> uint8 [3, H, W]."""
        box = self._box(*picture.size, random)
        if self._mode == "longest":
            picture = _letterbox(picture.crop(_whole(box)), self._size, self._resample, self._fill)
        else:
            # what the pyramid step skips is below a grey level, and it saves most of the time
            picture = picture.resize(self._size, self._resample, box=box, reducing_gap=3.0)
        wanted = self._augmentation
        # drawn whatever the captions say, so that a caption does not move the draws after it
        if wanted.flip and random.random() < 0.5 and not names_a_side(texts):
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if wanted.colour:
            for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                factor = 1 + wanted.colour * (2 * random.random() - 1)
                picture = kind(picture).enhance(factor)
        return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))

    def _box(self, width: int, height: int, random: Random) -> _Box:
        if self._mode == "squash":
            # such a pair sees whole pictures pressed into a square: the crop keeps their shape
            return _same_shape(width, height, self._augmentation.crop, random)
        return random_box(width, height, self._augmentation.crop, random)


def names_a_side(texts: Iterable[str]) -> bool:
    """Whether any of the captions speaks of left or right.

    Example:
        >>> names_a_side(["a man on the left"]), names_a_side(["a bright leftover"])
        (True, False)
    """
    return any(_SIDES.search(text) for text in texts)


def random_box(width: int, height: int, area: tuple[float, float], random: Random) -> _Box:
    """(left, top, right, bottom) of a crop as in Szegedy et al. 2015, as torchvision draws it.

    The share of the area is uniform, the logarithm of the aspect ratio too; after ten boxes that
    leave the picture, the largest central one of the nearest allowed ratio.
    """
    low, high = (math.log(ratio) for ratio in _RATIO)
    for _ in range(_TRIES):
        wanted = width * height * random.uniform(*area)
        ratio = math.exp(random.uniform(low, high))
        w, h = math.sqrt(wanted * ratio), math.sqrt(wanted / ratio)
        if w <= width and h <= height:
            left, top = random.uniform(0, width - w), random.uniform(0, height - h)
            return left, top, left + w, top + h
    w = min(width, height * _RATIO[1])
    h = min(height, width / _RATIO[0])
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def _same_shape(width: int, height: int, area: tuple[float, float], random: Random) -> _Box:
    share = math.sqrt(random.uniform(*area))
    w, h = width * share, height * share
    left, top = random.uniform(0, width - w), random.uniform(0, height - h)
    return left, top, left + w, top + h


def _whole(box: _Box) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(value) for value in box)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _letterbox(
    picture: Image.Image, size: tuple[int, int], resample: Image.Resampling, fill: Any
) -> Image.Image:
    """The whole picture within `size`, centred, the rest filled."""
    share = min(size[0] / picture.width, size[1] / picture.height)
    inner = (max(1, round(picture.width * share)), max(1, round(picture.height * share)))
    colour = tuple(fill) if isinstance(fill, list | tuple) else (int(fill),) * 3
    canvas = Image.new("RGB", size, colour)
    resized = picture.resize(inner, resample)
    canvas.paste(resized, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return canvas
