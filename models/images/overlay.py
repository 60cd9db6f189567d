"""Draw a relevance map over its picture and encode it: the picture people see, not the numbers.

Colours run along inferno, whose lightness rises with the value, so that the order survives grey
printing and colour blindness (Smith and van der Walt 2015, released as CC0). The picture is greyed
beneath, and shows through everywhere. Knows no models and no HTTP.
"""

from __future__ import annotations

from io import BytesIO
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from models.explainer import Area, RelevanceMap

MAX_SIDE: Final = 512
_INFERNO: Final = np.array(
    [
        (0, 0, 4),
        (31, 12, 72),
        (85, 15, 109),
        (136, 34, 106),
        (186, 54, 85),
        (227, 89, 51),
        (249, 140, 10),
        (249, 201, 50),
        (252, 255, 164),
    ],
    dtype=np.float64,
)
_LEAST_OPACITY: Final = 0.25
_MOST_OPACITY: Final = 0.70


def overlay_png(
    image: Image.Image, map_HW: RelevanceMap, area: Area, *, side: int = MAX_SIDE
) -> bytes:
    """The picture with its map laid over it, as PNG without metadata.

    Args:
        image: RGB, upright.
        map_HW: float32 [H, W] in 0..1.
        area: the part of the picture that the map covers; outside of it nothing is known, which
            looks like 0.
        side: longest side of the result; smaller pictures are not enlarged.
    """
    small = image.resize(shown_size(image.size, side), Image.Resampling.BICUBIC, reducing_gap=3.0)
    heat_HW = spread(map_HW, area, image.size, small.size)
    grey = np.asarray(ImageOps.grayscale(small), dtype=np.float64)[:, :, None]
    opacity = (_LEAST_OPACITY + (_MOST_OPACITY - _LEAST_OPACITY) * heat_HW)[:, :, None]
    mixed = grey * (1.0 - opacity) + colour(heat_HW) * opacity
    buffer = BytesIO()
    Image.fromarray(mixed.round().astype(np.uint8)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def shown_size(size: tuple[int, int], side: int = MAX_SIDE) -> tuple[int, int]:
    """(width, height) of the drawing of a picture of this size."""
    shrink = min(1.0, side / max(size))
    return max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))


def spread(
    map_HW: RelevanceMap, area: Area, full: tuple[int, int], size: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """The map as float64 [height, width] over a picture of `full` shown at `size` pixels."""
    across, down = size[0] / full[0], size[1] / full[1]
    # corners of the shown picture in cells of the map, where it is resampled in one step
    left, top, right, bottom = area
    cells_high, cells_wide = map_HW.shape
    x = ((np.arange(size[0]) + 0.5) / across - left) / (right - left) * cells_wide - 0.5
    y = ((np.arange(size[1]) + 0.5) / down - top) / (bottom - top) * cells_high - 0.5
    columns, rows = _linear(x, cells_wide), _linear(y, cells_high)
    wide: npt.NDArray[np.float64] = rows @ map_HW.astype(np.float64) @ columns.T
    return np.clip(wide, 0.0, 1.0)


def colour(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Inferno, float64 [..., 3] in 0..255, of values in 0..1."""
    stops = np.linspace(0.0, 1.0, len(_INFERNO))
    return np.stack([np.interp(values, stops, _INFERNO[:, i]) for i in range(3)], axis=-1)


def _linear(positions: npt.NDArray[np.float64], cells: int) -> npt.NDArray[np.float64]:
    """Weights [positions, cells] of linear interpolation between cell centres."""
    outside = (positions < -0.5) | (positions > cells - 0.5)
    near = np.clip(positions, 0.0, cells - 1.0)
    weights = np.maximum(0.0, 1.0 - np.abs(near[:, None] - np.arange(cells)[None, :]))
    weights[outside] = 0.0
    return weights
