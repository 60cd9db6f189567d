"""Zero-shot: closed forms, the loop from the docstring, and an encoder with known answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fakes import COLOURS, ColourEncoder, halves, solid
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InvalidLabelsError
from models.images.decode import decode_image
from models.labels.prompts import TEMPLATE_SETS
from models.labels.zeroshot import (
    ONE_IN_TWENTY,
    background_logits,
    background_matrix,
    chances,
    class_logits,
    class_matrix,
)
from models.vectors import Vectors, unit_rows

DICE = np.random.default_rng(7)


def directions(rows: int, dim: int = 6) -> Vectors:
    return unit_rows(DICE.normal(size=(rows, dim)))


def probabilities(
    image_BD: Vectors,
    class_CD: Vectors,
    *,
    logit_scale: float,
    background_D: Vectors | None = None,
    **options: Any,
) -> npt.NDArray[np.float64]:
    """`chances` of `class_logits`."""
    logits_BC = class_logits(image_BD, class_CD, logit_scale=logit_scale)
    if background_D is not None:
        background_B1 = class_logits(image_BD, background_D[None], logit_scale=logit_scale)
        options["background_B"] = background_B1[:, 0]
    return chances(logits_BC, **options)


def embed(encoder: ColourEncoder, *pictures: bytes) -> Vectors:
    return encoder.embed_images([encoder.prepare_image(decode_image(data)) for data in pictures])


def test_class_matrix_equals_the_loop() -> None:
    encoder = ColourEncoder()
    labels = ["red", "green and blue", "nothing"]
    templates = ["{c}", "a white {c}", "a black photo of {c}, yellow"]
    expected = []
    for label in labels:
        total = np.zeros(encoder.dim)
        for template in templates:
            prompt = template.replace("{c}", label)
            row = encoder.embed_texts([encoder.prepare_text(prompt)])[0].astype(float)
            total += row / math.sqrt(float(row @ row))
        mean = total / len(templates)
        expected.append(mean / math.sqrt(float(mean @ mean)))
    assert np.allclose(class_matrix(encoder, labels, templates), expected, atol=1e-6)


def test_more_prompts_than_one_batch_keep_their_order() -> None:
    encoder = ColourEncoder()
    names = list(COLOURS)
    labels = [f"{names[number % 8]} {number}" for number in range(500)]
    class_CD = class_matrix(encoder, labels, TEMPLATE_SETS["default"])
    assert class_CD.shape == (500, encoder.dim)
    assert class_CD.argmax(axis=1).tolist() == [number % 8 for number in range(500)]


def test_colours_are_classified() -> None:
    encoder = ColourEncoder()
    class_CD = class_matrix(encoder, ["red", "green", "blue"])
    image_BD = embed(encoder, solid("blue"), solid("red"))
    found = probabilities(image_BD, class_CD, logit_scale=encoder.logit_scale)
    assert found.dtype == np.float64
    assert found.argmax(axis=1).tolist() == [2, 0]
    assert found.max() > 0.99


def test_softmax_closed_forms() -> None:
    same = np.repeat(directions(1), 4, axis=0)
    assert np.allclose(probabilities(directions(2), same, logit_scale=50), 0.25)
    basis = np.eye(5, dtype=np.float32)
    for scale in (0.5, 3.0, 100.0):
        found = probabilities(basis[:1], basis, logit_scale=scale)[0]
        assert math.isclose(found[0], 1 / (1 + 4 * math.exp(-scale)), rel_tol=1e-9)


def test_softmax_equals_the_loop_and_ignores_a_bias() -> None:
    image_BD, class_CD = directions(5), directions(7)
    found = probabilities(image_BD, class_CD, logit_scale=13.0)
    for b, image in enumerate(image_BD):
        weights = [math.exp(13.0 * float(image.astype(float) @ row)) for row in class_CD]
        assert np.allclose(found[b], np.array(weights) / sum(weights))
    biased = probabilities(image_BD, class_CD, logit_scale=13.0, logit_bias=-8.0)
    assert np.allclose(found, biased)


def test_sigmoid_pair_judges_each_label_alone() -> None:
    image_BD, class_CD = directions(5), directions(7)
    found = probabilities(image_BD, class_CD, logit_scale=13.0, logit_bias=-2.0, multi_label=True)
    for b, image in enumerate(image_BD):
        for c, row in enumerate(class_CD):
            logit = 13.0 * float(image.astype(float) @ row.astype(float)) - 2.0
            assert math.isclose(found[b, c], 1 / (1 + math.exp(-logit)), rel_tol=1e-9)


def test_softmax_pair_compares_each_label_with_the_background() -> None:
    """Equal to a two-way softmax between the label and the background, one label at a time."""
    image_BD, class_CD, background_D = directions(5), directions(7), directions(1)[0]
    found = probabilities(
        image_BD, class_CD, logit_scale=13.0, multi_label=True, background_D=background_D
    )
    for c in range(7):
        pair = np.stack([class_CD[c], background_D])
        assert np.allclose(found[:, c], probabilities(image_BD, pair, logit_scale=13.0)[:, 0])


def test_multi_label_finds_both_colours_and_rejects_the_absent() -> None:
    encoder = ColourEncoder()
    labels = ["red", "blue", "green"]
    image_BD, scale = embed(encoder, halves("red", "blue")), encoder.logit_scale
    zero_B = background_logits(
        image_BD, background_matrix(encoder), logit_scale=scale, deviations=ONE_IN_TWENTY
    )
    found = probabilities(
        image_BD,
        class_matrix(encoder, labels),
        logit_scale=scale,
        multi_label=True,
        background_B=zero_B,
    )[0]
    assert found[0] > 0.9
    assert found[1] > 0.9
    assert found[2] <= 0.5
    exclusive = probabilities(
        embed(encoder, halves("red", "blue")),
        class_matrix(encoder, labels),
        logit_scale=encoder.logit_scale,
    )[0]
    assert exclusive[0] < 0.6  # a choice has to share


def test_an_offset_raises_the_line_of_labels_judged_alone() -> None:
    image_BD, class_CD, background_D = directions(5), directions(7), directions(1)[0]
    for options in ({"background_D": background_D}, {"logit_bias": -2.0}):
        plain = probabilities(
            image_BD, class_CD, logit_scale=13.0, multi_label=True, temperature=2.0, **options
        )
        raised = probabilities(
            image_BD,
            class_CD,
            logit_scale=13.0,
            multi_label=True,
            temperature=2.0,
            offset=3.0,
            **options,
        )
        odds = np.log(plain / (1 - plain)) - np.log(raised / (1 - raised))
        assert np.allclose(odds, 1.5)


def test_extreme_logits_stay_finite() -> None:
    image_BD = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    class_CD = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    for options in (
        {},
        {"multi_label": True, "logit_bias": -1e5},
        {"multi_label": True, "background_D": np.array([0, 1], dtype=np.float32)},
    ):
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            found = probabilities(image_BD, class_CD, logit_scale=1e5, **options)
        assert np.isfinite(found).all()


@given(
    st.integers(1, 4),
    st.integers(2, 9),
    st.floats(0.01, 1000),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_probabilities_are_probabilities(
    batch: int, classes: int, scale: float, seed: int, multi_label: bool
) -> None:
    dice = np.random.default_rng(seed)
    image_BD = unit_rows(dice.normal(size=(batch, 5)))
    class_CD = unit_rows(dice.normal(size=(classes, 5)))
    background_D = unit_rows(dice.normal(size=(1, 5)))[0]
    options = {"multi_label": multi_label, "background_D": background_D, "logit_scale": scale}
    found = probabilities(image_BD, class_CD, **options)
    assert ((found >= 0) & (found <= 1)).all()
    if not multi_label:
        assert np.allclose(found.sum(axis=1), 1)
    cosines = image_BD.astype(float) @ class_CD.astype(float).T
    assert (np.diff(np.take_along_axis(found, cosines.argsort(axis=1), axis=1)) >= -1e-12).all()
    order = dice.permutation(classes)
    assert np.allclose(probabilities(image_BD, class_CD[order], **options), found[:, order])


def test_misuse() -> None:
    with pytest.raises(InvalidLabelsError):
        probabilities(directions(2), directions(1), logit_scale=1.0)
    with pytest.raises(ValueError, match="background"):
        probabilities(directions(2), directions(3), logit_scale=1.0, multi_label=True)
    with pytest.raises(ValueError, match="do not fit"):
        probabilities(directions(2), directions(3, dim=5), logit_scale=1.0)
    with pytest.raises(InvalidLabelsError):
        class_matrix(ColourEncoder(), ["red", "red"])
