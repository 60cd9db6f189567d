"""None of these: the loop from the docstring, the luck of many labels, and known colours."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from fakes import ColourEncoder, halves, solid

from models.images.decode import decode_image
from models.labels.prompts import TEMPLATE_SETS
from models.labels.zeroshot import (
    DEFAULT_ABSTAIN,
    background_logits,
    background_matrix,
    background_words,
    best_of,
    class_logits,
    class_matrix,
    none_of_these,
)
from models.vectors import Vectors, unit_rows

DICE = np.random.default_rng(5)


def embed(encoder: ColourEncoder, *pictures: bytes) -> Vectors:
    return encoder.embed_images([encoder.prepare_image(decode_image(data)) for data in pictures])


def test_the_zero_equals_the_loop() -> None:
    images, words = unit_rows(DICE.normal(size=(4, 5))), unit_rows(DICE.normal(size=(9, 5)))
    found = background_logits(images, words, logit_scale=7.0, deviations=1.5)
    for b, image in enumerate(images.astype(float)):
        logits = [7.0 * float(image @ word) for word in words.astype(float)]
        expected = statistics.fmean(logits) + 1.5 * statistics.pstdev(logits)
        assert math.isclose(found[b], expected, rel_tol=1e-6)


def test_the_best_of_many_is_what_random_draws_reach() -> None:
    for labels in (1, 2, 3, 8, 20, 100, 1000):
        draws = DICE.normal(size=(20_000 // labels + 2_000, labels)).max(axis=1)
        # Blom's approximation is within 0.03; the draws' own error is smaller
        assert best_of(labels) == pytest.approx(float(draws.mean()), abs=0.06)


def test_the_share_is_a_softmax_of_two() -> None:
    logits, background = DICE.normal(size=(6, 3)) * 4, DICE.normal(size=6) * 4
    found = none_of_these(logits, background, temperature=1.5)
    for b in range(6):
        best = math.exp(logits[b].max() / 1.5)
        other = math.exp(background[b] / 1.5)
        assert math.isclose(found[b], other / (other + best))
    extreme = none_of_these(np.array([[1e5], [-1e5]]), np.zeros(2))
    assert extreme.tolist() == [0.0, 1.0]


def test_a_colour_is_itself_and_another_is_none_of_these() -> None:
    encoder = ColourEncoder()
    classes = class_matrix(encoder, ["red", "blue"])
    words = background_matrix(encoder)
    images = embed(encoder, solid("red"), halves("magenta", "cyan"))
    logits = class_logits(images, classes, logit_scale=encoder.logit_scale)
    background = background_logits(
        images, words, logit_scale=encoder.logit_scale, deviations=best_of(2)
    )
    share = none_of_these(logits, background)
    assert share[0] < DEFAULT_ABSTAIN <= share[1]


def test_words_come_in_the_language_of_the_templates() -> None:
    english, chinese = background_words(TEMPLATE_SETS["default"]), background_words(["{c}的照片"])
    assert "dog" in english
    assert "狗" in chinese
    for words in (english, chinese):
        assert len(words) == len(set(words)) > 80
