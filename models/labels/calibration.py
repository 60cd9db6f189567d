"""Temperature scaling: one number that makes a classifier as sure as it is right.

Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv:1706.04599), section 4.2: divide
the logits by the T that minimises the negative log-likelihood of a few labelled pictures. The
order of the labels, and with it the accuracy, stays as it is. Numpy only; knows logits, not where
they come from.

Legend: B pictures, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.errors import InvalidLabelsError
from models.labels.zeroshot import chances
from models.metrics import expected_calibration_error, top_k_accuracy

Logits = npt.NDArray[np.float64]

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
FEWEST_EXAMPLES = 10
"""Below this a temperature says more about the sample than about the classifier."""
_FOLDS = 5
_STEPS = 60


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted temperature and what it changed.

    `*_before` and `*_after` are measured on pictures the temperature was not fitted on: in five
    folds, each is judged with the temperature fitted on the other four. `temperature` itself is
    fitted on all. `chance_B` and `correct_B` are the top label's held-out probability after, and
    whether it was right; `before_B` is its probability before.
    """

    temperature: float
    pictures: int
    accuracy: float
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    before_B: npt.NDArray[np.float64]
    chance_B: npt.NDArray[np.float64]
    correct_B: npt.NDArray[np.bool_]

    def to_dict(self) -> dict[str, float | int]:
        return {
            "temperature": self.temperature,
            "pictures": self.pictures,
            "accuracy": self.accuracy,
            "nll_before": self.nll_before,
            "nll_after": self.nll_after,
            "ece_before": self.ece_before,
            "ece_after": self.ece_after,
        }


def negative_log_likelihood(
    logits_BC: Logits,
    target_B: Sequence[int],
    temperature: float = 1.0,
    *,
    smoothing: float = 0.0,
) -> float:
    """mean over b of -log softmax(z[b] / T)[target[b]].

    With `smoothing` e the target shares e of its weight with all classes alike:
    mean over b of -sum over c of w[b, c] * log softmax(z[b] / T)[c], w = (1 - e) one-hot + e / C.
    """
    z_BC = np.asarray(logits_BC, dtype=np.float64) / temperature
    peak_B1 = z_BC.max(axis=1, keepdims=True)
    # log-sum-exp rather than log of softmax: a class at -800 has a likelihood of zero otherwise
    log_total_B = np.log(np.exp(z_BC - peak_B1).sum(axis=1)) + peak_B1[:, 0]
    own_B = z_BC[np.arange(len(z_BC)), np.asarray(target_B)]
    wanted_B = (1.0 - smoothing) * own_B + smoothing * z_BC.mean(axis=1)
    return float((log_total_B - wanted_B).mean())


def platt_smoothing(pictures: int) -> float:
    """1 / (B + 2): how much a sample of B pictures leaves open.

    Platt 1999, "Probabilistic outputs for support vector machines", section 2.2. Ten pictures that
    happen to be all right would otherwise ask for a temperature of zero, and the first wrong
    answer to come would be one the classifier is certain of.
    """
    return 1.0 / (pictures + 2)


def fit_temperature(logits_BC: Logits, target_B: Sequence[int]) -> float:
    """The T in [0.05, 20] that minimises `negative_log_likelihood` with `platt_smoothing`.

    The loss is convex in 1/T; its derivative there,

        mean over b of (sum over c of (softmax(z[b] / T)[c] - w[b, c]) * z[b, c]),

    grows with 1/T, so its zero is found by bisection. Where it has none within the bounds, because
    the classifier is as good as random, T ends at one.
    """
    z_BC = np.asarray(logits_BC, dtype=np.float64)
    smoothing = platt_smoothing(len(z_BC))
    own_B = z_BC[np.arange(len(z_BC)), np.asarray(target_B)]
    wanted_B = (1.0 - smoothing) * own_B + smoothing * z_BC.mean(axis=1)

    def slope(inverse: float) -> float:
        expected_B = (chances(z_BC, temperature=1.0 / inverse) * z_BC).sum(axis=1)
        return float((expected_B - wanted_B).mean())

    low, high = 1.0 / MAX_TEMPERATURE, 1.0 / MIN_TEMPERATURE
    for _ in range(_STEPS):
        middle = float(np.sqrt(low * high))
        if slope(middle) <= 0:
            low = middle
        else:
            high = middle
    return float(np.clip(1.0 / np.sqrt(low * high), MIN_TEMPERATURE, MAX_TEMPERATURE))


def calibrate(logits_BC: Logits, target_B: Sequence[int]) -> Calibration:
    """Fit the temperature and measure honestly what it is worth.

    Args:
        logits_BC: at temperature 1.
        target_B: the right class of each picture.

    Raises:
        InvalidLabelsError: fewer than ten labelled pictures.
    """
    z_BC = np.asarray(logits_BC, dtype=np.float64)
    if len(z_BC) < FEWEST_EXAMPLES:
        raise InvalidLabelsError(
            f"{len(z_BC)} labelled pictures; calibration needs at least {FEWEST_EXAMPLES}"
        )
    target = np.asarray(target_B)
    fold_B = np.arange(len(z_BC)) % _FOLDS
    held_out_BC = np.empty_like(z_BC)
    for fold in range(_FOLDS):
        inside = fold_B == fold
        held_out_BC[inside] = z_BC[inside] / fit_temperature(
            z_BC[~inside], target[~inside].tolist()
        )
    before_BC, after_BC = chances(z_BC), chances(held_out_BC)
    return Calibration(
        temperature=fit_temperature(z_BC, target_B),
        pictures=len(z_BC),
        accuracy=top_k_accuracy(z_BC, target_B, 1),
        nll_before=negative_log_likelihood(z_BC, target_B),
        nll_after=negative_log_likelihood(held_out_BC, target_B),
        ece_before=expected_calibration_error(before_BC, target_B),
        ece_after=expected_calibration_error(after_BC, target_B),
        before_B=before_BC.max(axis=1),
        chance_B=after_BC.max(axis=1),
        correct_B=z_BC.argmax(axis=1) == target,
    )
