"""The linear probe on classes a plane can and cannot separate; the fit has tests of its own."""

from __future__ import annotations

import numpy as np
import pytest

from models.errors import InvalidLabelsError, SourceError
from models.evaluation.linear_probe import evaluate_linear_probe
from models.sources.embedded import Collected
from models.vectors import Vectors, unit_rows


def clusters(seed: int, count: int = 60, classes: int = 6) -> tuple[Vectors, list[int]]:
    centres = unit_rows(np.random.default_rng(7).normal(size=(classes, 9)))
    target = [at % classes for at in range(count)]
    noise = np.random.default_rng(seed).normal(size=(count, 9))
    return unit_rows(centres[target] + 0.05 * noise), target


def collected(x: Vectors, target: list[int]) -> Collected:
    return Collected(x, labels=[f"class {label}" for label in target])


def test_separable_classes_are_separated_and_shuffled_ones_are_not() -> None:
    train, test = clusters(0), clusters(1)
    found = evaluate_linear_probe(collected(*train), collected(*test))
    assert found["lp_acc1"] == found["lp_acc5"] == found["lp_mean_per_class_recall"] == 1.0
    assert (found["pictures"], found["classes"], found["train_pictures"]) == (60, 6, 60)
    shuffled = np.random.default_rng(2).permutation(train[1]).tolist()
    control = evaluate_linear_probe(collected(train[0], shuffled), collected(*test))
    assert control["lp_acc1"] < 0.5


def test_shots_limit_what_is_learned_from() -> None:
    train, test = collected(*clusters(0)), collected(*clusters(1))
    first = evaluate_linear_probe(train, test, shots=2, seed=1)
    assert first["train_pictures"] == 12
    assert evaluate_linear_probe(train, test, shots=2, seed=1) == first
    assert evaluate_linear_probe(train, test, shots=1)["train_pictures"] == 6


def test_classes_the_training_set_lacks_count_as_missed() -> None:
    x, target = clusters(0)
    known = [at for at, label in enumerate(target) if label < 3]
    train = collected(x[known], [target[at] for at in known])
    found = evaluate_linear_probe(train, collected(*clusters(1)))
    assert found["lp_acc1"] == found["lp_mean_per_class_recall"] == 0.5
    assert "lp_acc5" not in found


def test_nothing_to_learn_is_refused() -> None:
    x, target = clusters(0)
    silent = Collected(x, labels=[None] * len(x))
    with pytest.raises(SourceError, match="training set holds no labels"):
        evaluate_linear_probe(silent, collected(x, target))
    with pytest.raises(SourceError, match="the source holds no labels"):
        evaluate_linear_probe(collected(x, target), silent)
    with pytest.raises(InvalidLabelsError, match="at least 2"):
        evaluate_linear_probe(collected(x, [0] * 60), collected(x, target))
