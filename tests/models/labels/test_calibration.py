"""Temperature scaling and calibration error: loops, a grid search, closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.errors import InvalidLabelsError
from models.labels.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    calibrate,
    calibrate_each,
    fit_offset,
    fit_temperature,
    negative_log_likelihood,
    platt_smoothing,
)
from models.labels.zeroshot import chances
from models.metrics import expected_calibration_error, reliability

DICE = np.random.default_rng(11)


def overconfident(pictures: int, factor: float) -> tuple[np.ndarray, list[int]]:
    """Logits whose softmax at temperature `factor` is the very distribution of the targets."""
    honest = DICE.normal(size=(pictures, 5)) * 2
    weights = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    targets = [int(DICE.choice(5, p=row)) for row in weights]
    return honest * factor, targets


def ece_loop(chance: np.ndarray, targets: list[int], bins: int) -> float:
    total = 0.0
    for i in range(bins):
        inside = [b for b in range(len(chance)) if i / bins < chance[b].max() <= (i + 1) / bins]
        if inside:
            sure = sum(float(chance[b].max()) for b in inside) / len(inside)
            right = sum(int(chance[b].argmax()) == targets[b] for b in inside) / len(inside)
            total += len(inside) / len(chance) * abs(right - sure)
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_equals_the_loop(bins: int) -> None:
    chance = DICE.dirichlet(np.ones(4), size=200)
    targets = DICE.integers(4, size=200).tolist()
    assert math.isclose(
        expected_calibration_error(chance, targets, bins), ece_loop(chance, targets, bins)
    )


def test_ece_closed_forms() -> None:
    sure = np.tile([1.0, 0.0], (10, 1))
    assert expected_calibration_error(sure, [0] * 10) == 0
    assert expected_calibration_error(sure, [1] * 10) == 1
    even = np.tile([0.5, 0.5], (10, 1))
    assert expected_calibration_error(even, [0] * 5 + [1] * 5) == 0


def test_every_picture_is_in_one_bin_borders_included() -> None:
    confidence = np.array([0.0, 0.1, 0.5, 1.0])
    rows = reliability(confidence, np.array([True, False, True, True]), bins=10)
    assert [count for count, _, _ in rows] == [2, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert rows[0][2] == 0.5


def test_nll_equals_the_loop_and_survives_extremes() -> None:
    logits, targets = overconfident(20, 3)
    expected = -sum(
        math.log(math.exp(row[t] / 2) / sum(math.exp(z / 2) for z in row))
        for row, t in zip(logits.tolist(), targets, strict=True)
    )
    assert math.isclose(negative_log_likelihood(logits, targets, 2.0), expected / 20)
    assert negative_log_likelihood(np.array([[0.0, 1e4]]), [0]) == 1e4


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_is_the_one_a_grid_finds(factor: float) -> None:
    logits, targets = overconfident(400, factor)
    grid = np.geomspace(0.05, 20, 2000)
    best = min(
        grid,
        key=lambda t: negative_log_likelihood(
            logits, targets, float(t), smoothing=platt_smoothing(400)
        ),
    )
    assert fit_temperature(logits, targets) == pytest.approx(best, rel=0.005)


def test_the_true_temperature_is_recovered() -> None:
    logits, targets = overconfident(6000, 3.0)
    assert fit_temperature(logits, targets) == pytest.approx(3.0, rel=0.06)


def test_calibration_mends_what_is_overconfident_and_leaves_the_order() -> None:
    logits, targets = overconfident(1000, 4.0)
    found = calibrate(logits, targets)
    assert found.ece_before > 0.15
    assert found.ece_after < 0.06
    assert found.nll_after < found.nll_before
    after = chances(logits, temperature=found.temperature)
    assert (after.argmax(axis=1) == logits.argmax(axis=1)).all()
    assert found.accuracy == np.mean(logits.argmax(axis=1) == targets)
    assert found.chance_B.shape == found.correct_B.shape == found.before_B.shape == (1000,)


def test_what_needs_no_calibration_keeps_a_temperature_of_one() -> None:
    logits, targets = overconfident(4000, 1.0)
    assert calibrate(logits, targets).temperature == pytest.approx(1.0, abs=0.07)


def test_a_temperature_that_is_worse_on_other_pictures_is_not_taken() -> None:
    """Twelve pictures cannot better the temperature that they were drawn at."""
    kept = 0
    for seed in range(20):
        dice = np.random.default_rng(seed)
        z_BC = dice.normal(0, 2, (12, 5))
        targets = [int(dice.choice(5, p=row)) for row in chances(z_BC)]
        for current in (1.0, 1.5):
            found = calibrate(z_BC, targets, current=current)
            assert found.nll_after <= found.nll_before
            assert found.nll_before == pytest.approx(
                negative_log_likelihood(z_BC, targets, current)
            )
            if found.temperature == current:
                kept += 1
                assert (found.nll_after, found.ece_after) == (found.nll_before, found.ece_before)
                assert np.array_equal(found.chance_B, found.before_B)
    assert 5 < kept < 40


def test_bounds() -> None:
    right = np.eye(3)[[0, 1, 2] * 4]
    assert fit_temperature(right / 100, [0, 1, 2] * 4) == pytest.approx(MIN_TEMPERATURE)
    assert fit_temperature(right, [1, 2, 0] * 4) == pytest.approx(MAX_TEMPERATURE)
    with pytest.raises(InvalidLabelsError, match="at least 10"):
        calibrate(right[:9], [0] * 9)


def test_smoothed_nll_equals_the_loop() -> None:
    logits, targets = overconfident(12, 2)
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        log_p = np.log(chances(row[None])[0])
        for c in range(5):
            total -= (0.9 * (c == target) + 0.1 / 5) * log_p[c]
    assert negative_log_likelihood(logits, targets, smoothing=0.1) == pytest.approx(total / 12)


def test_a_few_pictures_all_right_do_not_make_it_certain() -> None:
    """With B all right, the target of a smoothed fit is 1 - e (1 - 1/C): here the closed form."""
    right = np.eye(2)[[0, 1] * 6] * 20
    temperature = fit_temperature(right, [0, 1] * 6)
    wrong = 0.5 * platt_smoothing(12)
    assert 20 / temperature == pytest.approx(np.log((1 - wrong) / wrong), rel=1e-6)


def one_by_one(pictures: int, temperature: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Margins [B, 6] and truths that `temperature` and `offset` make the very chances of."""
    honest = DICE.normal(size=(pictures, 6)) * 2 - 1
    true = DICE.random(honest.shape) < 1 / (1 + np.exp(-honest))
    return honest * temperature + offset, true


def test_a_temperature_and_an_offset_are_found_together() -> None:
    margins, true = one_by_one(3000, 2.5, 4.0)
    temperature, offset = fit_offset(margins, true)
    assert temperature == pytest.approx(2.5, rel=0.06)
    assert offset == pytest.approx(4.0, abs=0.2)


def test_an_offset_has_its_minimum_there() -> None:
    margins, true = one_by_one(60, 0.7, -2.0)
    temperature, offset = fit_offset(margins, true)
    ours = int(true.sum())
    wanted = np.where(true, (ours + 1) / (ours + 2), 1 / (true.size - ours + 2))

    def loss(t: float, o: float) -> float:
        z = (margins - o) / t
        return float((np.logaddexp(0, z) - wanted * z).mean())

    best = loss(temperature, offset)
    for t in (0.97, 1.03):
        for o in (-0.1, 0.0, 0.1):
            assert loss(temperature * t, offset + o) > best


@pytest.mark.parametrize("sign", [1, -1])
def test_separable_and_hopeless_labels_end_within_bounds(sign: int) -> None:
    margins = np.array([[500.0, -500.0]] * 6 + [[-500.0, 500.0]] * 6) * sign
    found = calibrate_each(margins, [0] * 6 + [1] * 6)
    assert MIN_TEMPERATURE <= found.temperature <= MAX_TEMPERATURE
    assert found.offset is not None
    assert math.isfinite(found.offset)
    assert math.isfinite(found.nll_after)


def test_labels_judged_alone_become_as_sure_as_they_are_right() -> None:
    target = DICE.integers(6, size=900)
    margins = DICE.normal(size=(900, 6)) * 3 + 5.0
    margins[np.arange(900), target] += 5.0
    found = calibrate_each(margins, target.tolist())
    assert found.ece_before > 0.5
    assert found.ece_after < 0.05
    assert found.nll_after < found.nll_before / 4
    assert found.to_dict()["offset"] == found.offset
    assert len(found.chance_B) == len(found.correct_B) == 900 * 6
    with pytest.raises(InvalidLabelsError, match="at least 10"):
        calibrate_each(margins[:9], target[:9].tolist())
