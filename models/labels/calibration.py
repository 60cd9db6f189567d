"""Temperature scaling: one number that makes a classifier as sure as it is right, or two.

Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv:1706.04599), section 4.2: divide
the logits by the T that minimises the negative log-likelihood of a few labelled pictures. The
order of the labels, and with it the accuracy, stays as it is. Labels that are judged one by one
have a zero besides, which an offset puts right (Platt 1999, "Probabilistic outputs for support
vector machines"). Numpy only; knows logits, not where they come from.

Legend: B pictures, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.errors import InvalidLabelsError
from models.labels.zeroshot import chances
from models.metrics import calibration_gap, expected_calibration_error, top_k_accuracy

Logits = npt.NDArray[np.float64]

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
MAX_OFFSET = 200.0
"""In logits: more than any pair's scale times its cosines can make up for."""
FEWEST_EXAMPLES = 10
"""Below this a temperature says more about the sample than about the classifier."""
_FOLDS = 5
_STEPS = 60


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted temperature and what it changed.

    `*_before` and `*_after` are measured on pictures the temperature was not fitted on: in five
    folds, each is judged with the temperature fitted on the other four. `temperature` itself is
    fitted on all, or the one there was where the fitted ones were no better; both sides are then
    the same. `chance_B` and `correct_B` are the top label's held-out probability after, and
    whether it was right; `before_B` is its probability before. Of labels judged one by one, the
    three hold every picture with every label, [B * C], and `offset` is not None.
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
    offset: float | None = None

    def to_dict(self) -> dict[str, float | int]:
        return {
            "temperature": self.temperature,
            **({} if self.offset is None else {"offset": self.offset}),
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


def calibrate(logits_BC: Logits, target_B: Sequence[int], *, current: float = 1.0) -> Calibration:
    """Fit the temperature and measure honestly what it is worth.

    Where pictures that it was not fitted on are told worse with it than with the current one, the
    current one stays.

    Args:
        logits_BC: at temperature 1.
        target_B: the right class of each picture.
        current: the temperature in use.

    Raises:
        InvalidLabelsError: fewer than ten labelled pictures.
    """
    z_BC = _enough(logits_BC)
    target = np.asarray(target_B)
    fold_B = np.arange(len(z_BC)) % _FOLDS
    held_out_BC = np.empty_like(z_BC)
    for fold in range(_FOLDS):
        inside = fold_B == fold
        held_out_BC[inside] = z_BC[inside] / fit_temperature(
            z_BC[~inside], target[~inside].tolist()
        )
    temperature = fit_temperature(z_BC, target_B)
    before_BC, after_BC = chances(z_BC / current), chances(held_out_BC)
    nll_before = negative_log_likelihood(z_BC / current, target_B)
    if negative_log_likelihood(held_out_BC, target_B) >= nll_before:
        temperature, held_out_BC, after_BC = current, z_BC / current, before_BC
    return Calibration(
        temperature=temperature,
        pictures=len(z_BC),
        accuracy=top_k_accuracy(z_BC, target_B, 1),
        nll_before=nll_before,
        nll_after=negative_log_likelihood(held_out_BC, target_B),
        ece_before=expected_calibration_error(before_BC, target_B),
        ece_after=expected_calibration_error(after_BC, target_B),
        before_B=before_BC.max(axis=1),
        chance_B=after_BC.max(axis=1),
        correct_B=z_BC.argmax(axis=1) == target,
    )


def calibrate_each(
    margin_BC: Logits, target_B: Sequence[int], *, current: tuple[float, float] = (1.0, 0.0)
) -> Calibration:
    """`calibrate` for labels that are judged one by one: a temperature and an offset.

    Every picture counts once for each label: true of its own, untrue of all others.

    Args:
        margin_BC: logits above the zero of each picture, at temperature 1 and offset 0.
        target_B: the right class of each picture.
        current: the temperature and the offset in use.

    Raises:
        InvalidLabelsError: fewer than ten labelled pictures.
    """
    m_BC = _enough(margin_BC)
    true_BC = np.zeros(m_BC.shape, dtype=bool)
    true_BC[np.arange(len(m_BC)), np.asarray(target_B)] = True
    fold_B = np.arange(len(m_BC)) % _FOLDS
    held_out_BC = np.empty_like(m_BC)
    for fold in range(_FOLDS):
        inside = fold_B == fold
        temperature, offset = fit_offset(m_BC[~inside], true_BC[~inside])
        held_out_BC[inside] = (m_BC[inside] - offset) / temperature
    temperature, offset = fit_offset(m_BC, true_BC)
    before, after = ((m_BC - current[1]) / current[0]).ravel(), held_out_BC.ravel()
    true = true_BC.ravel()
    if _binary_loss(after, true) >= _binary_loss(before, true):
        (temperature, offset), after = current, before
    before_B, chance_B = np.exp(-np.logaddexp(0.0, -before)), np.exp(-np.logaddexp(0.0, -after))
    return Calibration(
        temperature=temperature,
        offset=offset,
        pictures=len(m_BC),
        accuracy=top_k_accuracy(m_BC, target_B, 1),
        nll_before=_binary_loss(before, true),
        nll_after=_binary_loss(after, true),
        ece_before=calibration_gap(before_B, true),
        ece_after=calibration_gap(chance_B, true),
        before_B=before_B,
        chance_B=chance_B,
        correct_B=true,
    )


def fit_offset(margin: Logits, true: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """The T in [0.05, 20] and the offset o that minimise the negative log-likelihood of
    sigmoid((m - o) / T), both arrays of one shape.

    Platt's targets (N+ + 1) / (N+ + 2) and 1 / (N- + 2) stand for one and zero, so that separable
    samples have an answer. The loss is convex in 1/T and -o/T; Newton's method with a step that
    is halved until it improves (Lin, Lin and Weng 2007).
    """
    m_N, true_N = np.asarray(margin, dtype=np.float64).ravel(), np.asarray(true).ravel()
    ours = int(true_N.sum())
    wanted_N = np.where(true_N, (ours + 1) / (ours + 2), 1 / (len(true_N) - ours + 2))
    x_N2 = np.stack([m_N, np.ones_like(m_N)], axis=1)
    low, high = 1.0 / MAX_TEMPERATURE, 1.0 / MIN_TEMPERATURE
    found = _logistic(x_N2, wanted_N, np.array([1.0, 0.0]), free=slice(0, 2))
    if not low <= found[0] <= high:
        found = np.array([np.clip(found[0], low, high), 0.0])
        found = _logistic(x_N2, wanted_N, found, free=slice(1, 2))
    offset = float(np.clip(-found[1] / found[0], -MAX_OFFSET, MAX_OFFSET))
    return float(1.0 / found[0]), offset


def _logistic(x_N2: Logits, wanted_N: Logits, start_2: Logits, *, free: slice) -> Logits:
    """The weights of a logistic regression with soft targets; those outside `free` stay."""

    def loss(weight_2: Logits) -> float:
        z_N = x_N2 @ weight_2
        return float((np.logaddexp(0.0, z_N) - wanted_N * z_N).mean())

    weight_2, now = start_2, loss(start_2)
    for _ in range(_STEPS):
        chance_N = np.exp(-np.logaddexp(0.0, -(x_N2 @ weight_2)))
        free_Nf = x_N2[:, free]
        slope_f = free_Nf.T @ (chance_N - wanted_N) / len(x_N2)
        bend_ff = (free_Nf * (chance_N * (1 - chance_N))[:, None]).T @ free_Nf / len(x_N2)
        step_f = np.linalg.solve(bend_ff + 1e-10 * np.eye(len(bend_ff)), slope_f)
        share = 1.0
        while share > 1e-6:
            tried_2 = weight_2.copy()
            tried_2[free] -= share * step_f
            then = loss(tried_2)
            if then <= now:
                break
            share /= 2
        else:
            break
        ended = now - then < 1e-12
        weight_2, now = tried_2, then
        if ended:
            break
    return weight_2


def _binary_loss(margin_N: Logits, true_N: npt.NDArray[np.bool_]) -> float:
    return float((np.logaddexp(0.0, margin_N) - true_N * margin_N).mean())


def _enough(logits_BC: Logits) -> Logits:
    z_BC = np.asarray(logits_BC, dtype=np.float64)
    if len(z_BC) < FEWEST_EXAMPLES:
        raise InvalidLabelsError(
            f"{len(z_BC)} labelled pictures; calibration needs at least {FEWEST_EXAMPLES}"
        )
    return z_BC
