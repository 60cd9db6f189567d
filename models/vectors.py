"""The one place that normalises vectors, and the type they travel in.

Numpy only. Shape legend used across the project: B pairs or batch, D embedding, L tokens,
C classes, K neighbours, N rows, Q queries, T templates.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from models.errors import InvalidVectorError

Vectors: TypeAlias = npt.NDArray[np.float32]
"""float32 [*, D]; rows have unit length once they left `unit_rows`."""


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
