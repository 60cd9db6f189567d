"""Normalises and adds vectors, for all three packages, and says the type they travel in.

Numpy only, and the one place that divides by a length. Shape legend used across the project: B
pairs or batch, D embedding, L tokens, C classes, K neighbours, N rows, Q queries, T templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from models.errors import InvalidVectorError

Vectors: TypeAlias = npt.NDArray[np.float32]
"""float32 [*, D]; rows have unit length once they left `unit_rows`."""

# float32 rows are off by about 6e-8 an entry: a weighted sum shorter than this, for weights that
# add up to one, is rounding and not a direction
_CANCELLED: Final = 1e-5


def unit_rows(vectors_ND: npt.ArrayLike) -> Vectors:
    """Scale every row to unit Euclidean length.

    Args:
        vectors_ND: array-like [N, D] of any real dtype.

    Returns:
        float32 [N, D], a new array, every row of length 1.

    Raises:
        InvalidVectorError: not two-dimensional, a NaN or infinite entry, or a zero row. A vector
            without a direction has no cosine; storing or returning one would be a silent lie.
    """
    try:
        # float64: rows as large as 1e38 would overflow the sum of squares in float32
        wide_ND = np.asarray(vectors_ND, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidVectorError("vectors must be numbers in rows of equal length") from error
    if wide_ND.ndim != 2:
        raise InvalidVectorError(f"expected vectors in rows [N, D], got {wide_ND.ndim} dimensions")
    if not np.isfinite(wide_ND).all():
        raise InvalidVectorError("a vector holds NaN or infinity")
    # scaling by the largest entry first keeps 1e-300 and 1e300 rows away from under- and overflow
    peak_N1 = np.abs(wide_ND).max(axis=1, initial=0.0, keepdims=True)
    if (peak_N1 == 0.0).any():
        raise InvalidVectorError("a vector is zero and has no direction")
    wide_ND = wide_ND / peak_N1
    unit_ND: Vectors = (wide_ND / np.linalg.norm(wide_ND, axis=1, keepdims=True)).astype(np.float32)
    return unit_ND


def weighted_sum(vectors_PD: npt.ArrayLike, weights_P: Sequence[float]) -> Vectors:
    """The direction of `sum(w * v / |v| for w, v in zip(weights_P, vectors_PD))`.

    Every part is scaled to unit length first, so that weights mean the same whatever the parts
    are, and the sum is normalised once.

    Args:
        vectors_PD: array-like [P, D], P at least 1.
        weights_P: finite, one a part; a negative one points away from its part.

    Returns:
        float32 [1, D], unit length.

    Raises:
        InvalidVectorError: as `unit_rows`, or the parts cancel out.
    """
    directions_PD = unit_rows(vectors_PD)
    wide_P = np.asarray(weights_P, dtype=np.float64)
    assert wide_P.shape == (len(directions_PD),)
    assert np.isfinite(wide_P).all()
    if len(wide_P) == 1 and wide_P[0] > 0.0:
        return directions_PD
    unit_PD = directions_PD.astype(np.float64)
    total = np.abs(wide_P).sum()
    sum_1D = (wide_P / total)[None] @ unit_PD if total else np.zeros_like(unit_PD[:1])
    if np.linalg.norm(sum_1D) < _CANCELLED:
        raise InvalidVectorError("the weighted parts cancel out and leave no direction")
    return unit_rows(sum_1D)
