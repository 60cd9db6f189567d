"""A part of labelled pictures held back, so that a setting is chosen on what was not learned from.

Knows labels only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SHARE = 0.2


def held_back(target_N: npt.NDArray[np.int64], *, seed: int = 0) -> npt.NDArray[np.bool_]:
    """True for about a fifth of each class's pictures, drawn by `seed`.

    At least one of two or more; none of a class with a single picture, which is needed to learn it.
    """
    dice = np.random.default_rng(seed)
    held_N = np.zeros(len(target_N), dtype=bool)
    for number in np.unique(target_N):
        members = dice.permutation(np.flatnonzero(target_N == number))
        if len(members) > 1:
            held_N[members[: max(1, round(SHARE * len(members)))]] = True
    return held_N
