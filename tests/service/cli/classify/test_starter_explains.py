"""The starter's maps: a photograph pasted into each corner lights that corner up."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from models.encoders.registry import load_encoder
from models.encoders.starter.pair import StarterEncoder
from models.explainer import Explainer

skimage = pytest.importorskip("skimage.data")

CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.fixture(scope="module")
def starter() -> StarterEncoder:
    encoder = load_encoder("starter", device="cpu", precision="fp32")
    assert isinstance(encoder, StarterEncoder)
    assert isinstance(encoder, Explainer)
    return encoder


def pasted(photo: Image.Image, corner: tuple[int, int]) -> Image.Image:
    """The photograph in one quarter of a grey picture."""
    picture = Image.new("RGB", (400, 400), (128, 128, 128))
    picture.paste(photo.resize((200, 200)), (200 * corner[1], 200 * corner[0]))
    return picture


def quarters(map_HW: np.ndarray) -> dict[tuple[int, int], float]:  # type: ignore[type-arg]
    """Mean of each quarter; the cells in the middle belong to none."""
    half = map_HW.shape[0] // 2
    sides = (slice(0, half), slice(-half, None))
    return {(r, c): float(map_HW[sides[r], sides[c]].mean()) for r, c in CORNERS}


@pytest.mark.parametrize("corner", CORNERS)
def test_a_pasted_photograph_lights_its_corner_up(
    starter: StarterEncoder, corner: tuple[int, int]
) -> None:
    photo = Image.fromarray(skimage.chelsea())
    words = starter.embed_texts([starter.prepare_text("a cat")])[0]
    found = starter.relevance_map(starter.prepare_image(pasted(photo, corner)), words)
    assert found.shape == (9, 9)
    assert (found.min(), found.max()) == (0.0, 1.0)
    by_quarter = quarters(found)
    assert max(by_quarter, key=by_quarter.__getitem__) == corner, by_quarter


def test_two_photographs_are_told_apart(starter: StarterEncoder) -> None:
    picture = Image.new("RGB", (400, 200))
    picture.paste(Image.fromarray(skimage.chelsea()).resize((200, 200)), (0, 0))
    picture.paste(Image.fromarray(skimage.coffee()).resize((200, 200)), (200, 0))
    prepared = starter.prepare_image(picture)
    lean = []
    for text in ("a cat", "a cup of coffee"):
        found = starter.relevance_map(
            prepared, starter.embed_texts([starter.prepare_text(text)])[0]
        )
        lean.append(float(found[:, :4].mean() - found[:, -4:].mean()))
    # the same picture, and each text leans to its own side
    assert lean[0] > 0 > lean[1]


def test_a_map_is_the_same_whatever_the_length_of_the_direction(starter: StarterEncoder) -> None:
    image = starter.prepare_image(Image.fromarray(skimage.astronaut()))
    words = starter.embed_texts([starter.prepare_text("a woman smiling")])[0]
    once, again = starter.relevance_map(image, words), starter.relevance_map(image, 7.0 * words)
    np.testing.assert_allclose(once, again, atol=1e-5)
