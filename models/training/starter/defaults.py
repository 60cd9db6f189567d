"""Settings of the heads' training that nobody named, by the amount of data. Pure functions.

Fresh heads train as the recipe of the shipped ones does. Heads that are good already are moved
little: four pictures, two epochs at 1e-3 took R@1 on the very same four from 100 to 25 %.
"""

from __future__ import annotations

import math
from typing import Final, Literal

FRESH_RATE: Final = 1e-3
FRESH_EPOCHS: Final = 30
BATCH: Final = 2048
_EPOCHS: Final = 10
_MANY: Final = 20_000


def rate_for(pictures: int, *, fresh: bool) -> float:
    """Grows with the square root of the amount, up to that of fresh heads at 20,000 pictures.

    Example:
        >>> [round(rate_for(n, fresh=False), 6) for n in (4, 200, 5_000, 1_000_000)]
        [1.4e-05, 0.0001, 0.0005, 0.001]
    """
    return FRESH_RATE if fresh else FRESH_RATE * math.sqrt(min(1.0, pictures / _MANY))


def epochs_for(*, fresh: bool) -> int:
    return FRESH_EPOCHS if fresh else _EPOCHS


def interpolation_for(*, fresh: bool, measured: bool) -> float | Literal["val"]:
    """WiSE-FT towards the heads it started from; without validation, half way."""
    if fresh:
        return 1.0
    return "val" if measured else 0.5


def keep_for(*, fresh: bool, measured: bool) -> Literal["last", "best"]:
    return "best" if measured and not fresh else "last"


def patience_for(*, fresh: bool, measured: bool) -> int:
    return 3 if measured and not fresh else 0
