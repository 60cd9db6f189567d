"""`unit_rows`: the one normaliser."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InvalidVectorError
from models.vectors import unit_rows, weighted_sum

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(st.lists(finite, min_size=1, max_size=8))
def test_rows_have_unit_length_and_keep_direction(row: list[float]) -> None:
    if not any(row):
        with pytest.raises(InvalidVectorError):
            unit_rows([row])
        return
    unit = unit_rows([row])[0]
    assert unit.dtype == np.float32
    assert math.isclose(math.fsum(float(x) ** 2 for x in unit), 1.0, rel_tol=1e-5)
    peak = max(row, key=abs)
    assert math.copysign(1, unit[row.index(peak)]) == math.copysign(1, peak)


def test_matches_the_definition() -> None:
    assert unit_rows([[3.0, 4.0], [0.0, -2.0]]).tolist() == pytest.approx(
        np.array([[0.6, 0.8], [0.0, -1.0]])
    )


@pytest.mark.parametrize(
    "bad",
    [
        [[0.0, 0.0]],
        [[1.0, math.nan]],
        [[1.0, math.inf]],
        [1.0, 2.0],
        [[1.0], [1.0, 2.0]],
        [["a", "b"]],
    ],
)
def test_refuses_what_has_no_direction(bad: list[object]) -> None:
    with pytest.raises(InvalidVectorError):
        unit_rows(bad)  # type: ignore[arg-type]


def test_empty_batch_stays_empty() -> None:
    assert unit_rows(np.zeros((0, 4))).shape == (0, 4)


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.floats(-100, 100).filter(lambda w: abs(w) > 1e-3), min_size=1, max_size=6),
)
def test_weighted_sum_is_the_loop_of_its_definition(seed: int, weights: list[float]) -> None:
    parts = np.random.default_rng(seed).standard_normal((len(weights), 5)) * 37.0
    total = [0.0] * 5
    for weight, part in zip(weights, parts, strict=True):
        length = math.sqrt(math.fsum(x * x for x in part))
        total = [t + weight * x / length for t, x in zip(total, part, strict=True)]
    length = math.sqrt(math.fsum(x * x for x in total))
    if length < 1e-3 * sum(map(abs, weights)):
        return  # close to cancelling out: float32 parts do not say where it points
    found = weighted_sum(parts, weights)
    assert found.shape == (1, 5)
    assert found[0].tolist() == pytest.approx([x / length for x in total], abs=1e-4)


def test_parts_that_cancel_out_have_no_direction() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 512))
    for parts, weights in [
        ([first, first * 3.0], [1.0, -1.0]),
        ([first, second, first, second], [1.0, -2.5, -1.0, 2.5]),
        ([first, -first], [50.0, 50.0]),
    ]:
        with pytest.raises(InvalidVectorError, match="cancel out"):
            weighted_sum(parts, weights)
    # close to it is not there: a hundredth of a part is a direction
    assert weighted_sum([first, second, first], [1.0, 0.01, -1.0])[0] == pytest.approx(
        unit_rows(second[None])[0], abs=1e-4
    )
