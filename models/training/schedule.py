"""The learning rate of every step: linear warm-up, then half a cosine. Pure functions."""

from __future__ import annotations

import math


def learning_rate(
    step: int, *, steps: int, peak: float, warmup: float, floor: float = 0.0
) -> float:
    """The rate of step `step`, counted from 0.

    Rises linearly over the first `warmup` share of the steps, then falls along half a cosine to
    `floor` times the peak (Loshchilov & Hutter 2017).

    Example:
        >>> [round(learning_rate(s, steps=4, peak=1.0, warmup=0.5), 2) for s in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    warm = max(1, round(warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
