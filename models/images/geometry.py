"""The part of a model's preprocessing that moves pixels: resize, crop, pad, on Pillow images.

Split from the arithmetic that follows so that it can run where pictures are decoded, in a process
that has no tensor library: what travels from there is one small picture of known size. Every step
is torchvision's on Pillow images, as open_clip uses it, rounding included, so the pixels are equal,
not alike. It knows no model, and nothing of means and deviations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

# Pillow is imported where a picture is at hand: a text query reads this file and has none
if TYPE_CHECKING:
    from PIL import Image

    from models.encoder import PreparedImage

Resize: TypeAlias = Literal["squash", "shortest", "longest"]
Filter: TypeAlias = Literal["bicubic", "bilinear"]
Pixels: TypeAlias = npt.NDArray[np.uint8]
"""[H, W, 3], sRGB."""

RESIZES: Final[tuple[Resize, ...]] = ("squash", "shortest", "longest")
FILTERS: Final[tuple[Filter, ...]] = ("bicubic", "bilinear")


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a picture becomes `width` x `height`.

    Attributes:
        resize: `squash` ignores the picture's proportions; `shortest` fits the shorter side and
            crops the middle; `longest` fits the longer side and pads.
        filter: how pixels are weighed, always with antialiasing.
        fill: the grey level of padding.
    """

    width: int
    height: int
    resize: Resize = "squash"
    filter: Filter = "bicubic"
    fill: int = 0

    def fit(self, image: Image.Image) -> Image.Image:
        """An RGB picture -> one of exactly `width` x `height`."""
        if self.resize == "squash":
            return self._resized(image, (self.width, self.height), self.filter)
        if self.resize == "longest":
            return self._padded_and_cropped(self._in_proportion(image, max), self.fill)
        if self.width == self.height:
            return self._padded_and_cropped(self._by_shorter_side(image), 0)
        return self._padded_and_cropped(self._in_proportion(image, min), 0)

    def _by_shorter_side(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        long = int(self.width * max(image.size) / min(image.size))
        size = (self.width, long) if width <= height else (long, self.width)
        return self._resized(image, size, self.filter)

    def _in_proportion(
        self, image: Image.Image, choose: Callable[[float, float], float]
    ) -> Image.Image:
        ratio = choose(image.height / self.height, image.width / self.width)
        size = round(image.width / ratio), round(image.height / ratio)
        # open_clip hands its filter on for `longest` only
        return self._resized(image, size, self.filter if self.resize == "longest" else "bicubic")

    def _padded_and_cropped(self, image: Image.Image, fill: int) -> Image.Image:
        wide, high = max(self.width - image.width, 0), max(self.height - image.height, 0)
        if wide or high:
            border = (wide // 2, high // 2, (wide + 1) // 2, (high + 1) // 2)
            from PIL import ImageOps

            image = ImageOps.expand(image, border, fill=(fill, fill, fill))
        left = round((image.width - self.width) / 2.0)
        top = round((image.height - self.height) / 2.0)
        if image.size == (self.width, self.height):
            return image
        return image.crop((left, top, left + self.width, top + self.height))

    @staticmethod
    def _resized(image: Image.Image, size: tuple[int, int], name: Filter) -> Image.Image:
        if image.size == size:
            return image
        from PIL.Image import Resampling

        return image.resize(size, Resampling[name.upper()])


@runtime_checkable
class SplitPreparation(Protocol):
    """What an `Encoder` may offer besides: its `prepare_image` in two halves.

    `prepare_image(image)` equals `finish_image(np.asarray(geometry.fit(image)))`, bit for bit.
    """

    @property
    def geometry(self) -> Geometry: ...

    def finish_image(self, pixels: Pixels) -> PreparedImage:
        """uint8 [height, width, 3] -> what `embed_images` takes; thread-safe."""
        ...
