"""None of these: the loop from the docstring, words too close to a label, and known colours."""

from __future__ import annotations

import math

import numpy as np
from fakes import ColourEncoder, halves, solid

from models.images.decode import decode_image
from models.labels.prompts import TEMPLATE_SETS
from models.labels.zeroshot import (
    CLOSEST,
    DEFAULT_ABSTAIN,
    background_logits,
    background_matrix,
    background_words,
    class_logits,
    class_matrix,
    none_of_these,
)
from models.vectors import Vectors, unit_rows

DICE = np.random.default_rng(5)


def embed(encoder: ColourEncoder, *pictures: bytes) -> Vectors:
    return encoder.embed_images([encoder.prepare_image(decode_image(data)) for data in pictures])


def test_the_best_word_that_is_no_label_equals_the_loop() -> None:
    images, words = unit_rows(DICE.normal(size=(4, 5))), unit_rows(DICE.normal(size=(9, 5)))
    classes = np.concatenate([unit_rows(DICE.normal(size=(2, 5))), words[3:4]])
    found = background_logits(images, words, classes, logit_scale=7.0)
    for b, image in enumerate(images.astype(float)):
        kept = [
            word
            for word in words.astype(float)
            if max(float(word @ label) for label in classes.astype(float)) < CLOSEST
        ]
        assert 0 < len(kept) < 9, "the word that is a label was left out"
        assert math.isclose(found[b], 7.0 * max(float(image @ word) for word in kept), rel_tol=1e-6)


def test_where_every_word_is_a_label_all_of_them_count() -> None:
    words = unit_rows(DICE.normal(size=(3, 5)))
    found = background_logits(words, words, words, logit_scale=2.0)
    assert np.allclose(found, 2.0)


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
    background = background_logits(images, words, classes, logit_scale=encoder.logit_scale)
    share = none_of_these(logits, background)
    assert share[0] < DEFAULT_ABSTAIN <= share[1]


def test_words_come_in_the_language_of_the_templates() -> None:
    english, chinese = background_words(TEMPLATE_SETS["default"]), background_words(["{c}的照片"])
    assert "dog" in english
    assert "狗" in chinese
    for words in (english, chinese):
        assert len(words) == len(set(words)) > 80
