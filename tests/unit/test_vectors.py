"""`unit_rows`: the one normaliser."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InvalidVectorError
from models.vectors import unit_rows

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
