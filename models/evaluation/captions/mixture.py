"""How many captions are wrong, and below which score, judged from two samples of scores.

Some captions of a set belong to their pictures (share 1 - p, scores distributed as G), the others
might as well stand beside any picture (share p, distributed as H). Seen are F = (1 - p) G + p H,
the scores of the captions with their own pictures, and H, their scores with other pictures.
Nothing is assumed of the shape of G or H.

Numpy only, pure functions.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating]

FEWEST: Final = 50
"""Captions below which a share is not worth saying."""
_SHARES: Final = np.arange(0.2, 0.61, 0.05)


def wrong_share(own_M: Scores, other_M: Scores) -> float | None:
    """An estimate of p.

    F(t) / H(t) = p + (1 - p) G(t) / H(t), so each is an upper bound of p, and a close one where
    right captions hardly ever score below t (Blanchard et al. 2010, "Semi-supervised novelty
    detection", section 4). In loop form, with t = quantile(other, q):

        p = min over q in 0.2, 0.25 ... 0.6 of share(own <= t) / share(other <= t)

    Returns:
        0 to 1; None with fewer than 50 captions.
    """
    own, other = _known(own_M), _known(other_M)
    if min(len(own), len(other)) < FEWEST:
        return None
    ends = np.quantile(other, _SHARES)
    ratios = np.array([(own <= end).mean() / (other <= end).mean() for end in ends])
    return float(min(1.0, ratios.min()))


def best_floor(own_M: Scores, other_M: Scores, share: float | None = None) -> float | None:
    """The score below which dropping captions makes the fewest mistakes.

    Kept right ones and dropped wrong ones together are

        (1 - p) (1 - G(t)) + p H(t) = (1 - p) - F(t) + 2 p H(t)

    so the t is wanted that makes 2 p H(t) - F(t) largest; of several, the smallest.

    Args:
        share: p, instead of `wrong_share`.

    Returns:
        A score; minus infinity where nothing should be dropped, None with fewer than 50 captions.
    """
    own, other = _known(own_M), _known(other_M)
    if min(len(own), len(other)) < FEWEST:
        return None
    found = wrong_share(own, other)
    p = found if share is None else share
    assert p is not None
    # a caption goes if it scores below t, so F and H count what is strictly below
    ends = np.unique(np.concatenate([own, other]))
    gain = 2.0 * p * _below(other, ends) - _below(own, ends)
    at = int(gain.argmax())
    return float(ends[at]) if gain[at] > 0.0 else float("-inf")


def _known(values: Scores) -> Scores:
    flat: Scores = np.asarray(values, dtype=np.float64)
    return flat[np.isfinite(flat)]


def _below(values: Scores, ends: Scores) -> Scores:
    """The share of values below each end."""
    return np.searchsorted(np.sort(values), ends, side="left") / len(values)
