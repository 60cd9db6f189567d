"""The geometry half of preprocessing against open_clip's own transform, bit for bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from models.encoders.open_clip.assembly import geometry
from models.images.geometry import Geometry, SplitPreparation
from models.images.pictures import Wanted

SIZES = [(1, 1), (3, 200), (200, 3), (50, 37), (224, 224), (225, 224), (301, 227), (640, 481)]


def noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(size[0]).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("size", "mode", "name", "fill"),
    [
        ((224, 224), "shortest", "bicubic", 0),
        ((224, 224), "shortest", "bilinear", 0),
        ((48, 80), "shortest", "bicubic", 0),
        ((48, 80), "shortest", "bilinear", 0),
        ((224, 224), "squash", "bicubic", 0),
        ((48, 80), "squash", "bilinear", 0),
        ((224, 224), "longest", "bicubic", 127),
        ((48, 80), "longest", "bilinear", 3),
    ],
)
def test_pixels_equal_open_clips(size: tuple[int, int], mode: str, name: str, fill: int) -> None:
    cfg = {"size": list(size), "resize_mode": mode, "interpolation": name, "fill_color": fill}
    ours = geometry(cfg)
    # a mean of 0 and a deviation of 1/255 leave the pixels as they are
    theirs = image_transform_v2(
        PreprocessCfg(
            **{**cfg, "size": size, "mean": (0.0,) * 3, "std": (1 / 255,) * 3}  # type: ignore[arg-type]
        ),
        is_train=False,
    )
    for shape in SIZES:
        picture = noise(shape)
        expected = theirs(picture).round().to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal(np.asarray(ours.fit(picture)), expected), shape


def test_what_is_wanted_travels_whole() -> None:
    geometries = [None, Geometry(260, 260), Geometry(80, 48, "longest", "bilinear", 127)]
    for shape, side, draft in itertools.product(geometries, (None, 320), (False, True)):
        wanted = Wanted(shape, side, draft)
        assert Wanted.decode(wanted.encode()) == wanted


def test_only_encoders_that_split_have_a_geometry() -> None:
    class Whole:
        def prepare_image(self, image: Image.Image) -> None: ...

    assert not isinstance(Whole(), SplitPreparation)
