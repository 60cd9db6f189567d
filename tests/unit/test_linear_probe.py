"""The linear probe: the minimum of its loss, classes that a line can and cannot separate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import ColourEncoder

from models.errors import InvalidLabelsError, SourceError
from models.evaluation.collect import Collected
from models.evaluation.linear_probe import evaluate_linear_probe, fit_linear_probe
from models.vectors import Vectors, unit_rows


def clusters(
    seed: int, count: int = 60, classes: int = 6, spread: float = 0.15, dim: int = 9
) -> tuple[Vectors, list[int]]:
    centres = np.random.default_rng(7).normal(size=(classes, dim))
    centres /= np.sqrt((centres**2).sum(axis=1, keepdims=True))
    rng = np.random.default_rng(seed)
    target = [at % classes for at in range(count)]
    return unit_rows(centres[target] + spread * rng.normal(size=(count, dim)) / 3), target


def loss(
    weight: torch.Tensor, bias: torch.Tensor, x: Vectors, target: list[int], penalty: float
) -> torch.Tensor:
    """The module's formula as a loop over pictures, in units of x * sqrt(D)."""
    total = torch.zeros((), dtype=torch.float64)
    for row, label in zip(torch.from_numpy(x).double(), target, strict=True):
        logits = weight @ row + bias
        total = total - (logits[label] - torch.logsumexp(logits, dim=0))
    scaled = weight / x.shape[1] ** 0.5
    return total / len(target) + penalty / 2 * (scaled**2).sum()


@pytest.mark.parametrize("penalty", [1.0, 1e-2])
def test_the_loss_has_its_minimum_there(penalty: float) -> None:
    x, target = clusters(0)
    probe = fit_linear_probe(x, target, penalty=penalty)
    weight = torch.from_numpy(probe.weight_CD).double().requires_grad_(True)
    bias = torch.from_numpy(probe.bias_C).double().requires_grad_(True)
    value = loss(weight, bias, x, target, penalty)
    value.backward()
    # convex, so a vanishing gradient is the minimum
    assert weight.grad is not None
    assert bias.grad is not None
    assert float(weight.grad.abs().max()) < 1e-5
    assert float(bias.grad.abs().max()) < 1e-5
    assert probe.penalty == penalty


def collected(x: Vectors, target: list[int]) -> Collected:
    return Collected(x, labels=[f"class {label}" for label in target])


def test_separable_classes_are_separated_and_shuffled_ones_are_not() -> None:
    encoder = ColourEncoder()
    train, test = clusters(0), clusters(1)
    found = evaluate_linear_probe(collected(*train), collected(*test), encoder)
    assert found["lp_acc1"] == found["lp_acc5"] == found["lp_mean_per_class_recall"] == 1.0
    assert (found["pictures"], found["classes"], found["train_pictures"]) == (60, 6, 60)
    shuffled = np.random.default_rng(2).permutation(train[1]).tolist()
    control = evaluate_linear_probe(collected(train[0], shuffled), collected(*test), encoder)
    assert control["lp_acc1"] < 0.5


def test_two_fits_are_the_same_and_the_penalty_is_chosen_by_held_out_pictures() -> None:
    x, target = clusters(3, count=200, spread=1.5)
    one, two = fit_linear_probe(x, target), fit_linear_probe(x, target)
    assert np.array_equal(one.weight_CD, two.weight_CD)
    assert 1e-6 < one.penalty <= 0.1
    test = clusters(4, count=300, spread=1.5)

    def right(penalty: float | None) -> float:
        probe = fit_linear_probe(x, target, penalty=penalty)
        return float((probe.logits(test[0]).argmax(axis=1) == test[1]).mean())

    assert right(None) >= max(right(1.0), right(1e-6)) - 0.02


def test_shots_limit_what_is_learned_from() -> None:
    encoder = ColourEncoder()
    train, test = collected(*clusters(0)), collected(*clusters(1))
    first = evaluate_linear_probe(train, test, encoder, shots=2, seed=1)
    assert first["train_pictures"] == 12
    assert evaluate_linear_probe(train, test, encoder, shots=2, seed=1) == first
    assert evaluate_linear_probe(train, test, encoder, shots=1)["weight_decay"] == 1e-3


def test_classes_the_training_set_lacks_count_as_missed() -> None:
    x, target = clusters(0)
    test = collected(*clusters(1))
    known = [at for at, label in enumerate(target) if label < 3]
    train = collected(x[known], [target[at] for at in known])
    found = evaluate_linear_probe(train, test, ColourEncoder())
    assert found["lp_acc1"] == found["lp_mean_per_class_recall"] == 0.5
    assert "lp_acc5" not in found


def test_nothing_to_learn_is_refused() -> None:
    x, target = clusters(0)
    silent = Collected(x, labels=[None] * len(x))
    with pytest.raises(SourceError, match="training set holds no labels"):
        evaluate_linear_probe(silent, collected(x, target), ColourEncoder())
    with pytest.raises(SourceError, match="the source holds no labels"):
        evaluate_linear_probe(collected(x, target), silent, ColourEncoder())
    with pytest.raises(InvalidLabelsError, match="at least 2"):
        evaluate_linear_probe(collected(x, [0] * 60), collected(x, target), ColourEncoder())
