"""A picture as training may see it: whole, or a random crop, flipped and with other light.

A frozen tower makes every picture one point; heads trained on one point a picture learn its
accidents. A few more points, of views that a caption fits as well, are cheap augmentation because
they are computed once. Each view is decided by the picture's pixels and the view's number alone, so
it is the same in every run. Knows nothing of towers.
"""

from __future__ import annotations

import hashlib
import math
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

WHOLE = 0
"""The number of the view that the encoder itself uses."""
_AREA = (0.5, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_LIGHT = (0.8, 1.2)
_COLOUR = (0.7, 1.3)
_TRIES = 20


def see(image: Image, view: int) -> Image:
    """View number `view` of an upright RGB picture; 0 is the picture itself."""
    from PIL import ImageEnhance, ImageOps

    if view == WHOLE:
        return image
    pixels = hashlib.sha256(image.tobytes()).hexdigest()
    chance = random.Random(f"{pixels}/{view}")  # noqa: S311 - not for secrets
    seen = image.crop(_box(*image.size, chance))
    if chance.random() < 0.5:
        seen = ImageOps.mirror(seen)
    for enhance, (low, high) in (
        (ImageEnhance.Brightness, _LIGHT),
        (ImageEnhance.Contrast, _LIGHT),
        (ImageEnhance.Color, _COLOUR),
    ):
        seen = enhance(seen).enhance(chance.uniform(low, high))
    return seen


def _box(width: int, height: int, chance: random.Random) -> tuple[int, int, int, int]:
    """A part of the picture: half to all of its area, its aspect changed by up to a third."""
    for _ in range(_TRIES):
        area = chance.uniform(*_AREA) * width * height
        aspect = math.exp(chance.uniform(*map(math.log, _ASPECT))) * width / height
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = chance.randint(0, width - w), chance.randint(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height
