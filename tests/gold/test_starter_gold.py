"""The starter pair gives the numbers it gave when its weights were committed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

_SPEC = importlib.util.spec_from_file_location(
    "starter_gold", Path(__file__).with_name("starter_gold.py")
)
assert _SPEC is not None
assert _SPEC.loader is not None
starter_gold = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(starter_gold)
EXPECTED = json.loads(starter_gold.GOLD.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("auto", 2e-2)])
def test_cosines_and_rankings_are_the_committed_ones(precision: str, tolerance: float) -> None:
    gold = np.array(EXPECTED["cosines"])
    cosines, encoder = starter_gold.measure(precision)
    assert encoder.fingerprint.digest == EXPECTED["fingerprint"]
    assert encoder.logit_scale == pytest.approx(EXPECTED["logit_scale"], abs=1e-3)
    np.testing.assert_allclose(cosines, gold, atol=tolerance)
    np.testing.assert_array_equal(cosines.argmax(axis=0)[:-1], gold.argmax(axis=0)[:-1])
    np.testing.assert_array_equal(cosines.argmax(axis=1), gold.argmax(axis=1))


def test_every_text_about_a_photograph_finds_it() -> None:
    """The gold itself is sane: not merely what came out, but what should."""
    best = np.array(EXPECTED["cosines"]).argmax(axis=0)
    assert best.tolist()[:7] == [0, 1, 2, 3, 4, 2, 2]


def test_a_wrong_picture_order_would_be_noticed() -> None:
    """Negative control for the tolerance."""
    gold = np.array(EXPECTED["cosines"])
    assert not np.allclose(gold[::-1], gold, atol=2e-2)
