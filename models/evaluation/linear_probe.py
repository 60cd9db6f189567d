"""A linear probe: how well classes can be told apart in a pair's picture embeddings.

Multinomial logistic regression on frozen, unit-length picture embeddings, fitted by L-BFGS with
the L2 penalty chosen on held-out training pictures: Radford et al. 2021 (CLIP), appendix A.3.

    loss(W, b) = mean over i of -log softmax(W x[i] + b)[y[i]] + penalty / 2 * sum(W ** 2)

The loss is convex: the same data give the same probe, whatever its start. Knows vectors and class
numbers, no pictures. Legend: N pictures, D embedding, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.encoder import Encoder
from models.errors import InvalidLabelsError, SourceError
from models.evaluation.collect import Collected
from models.evaluation.metrics import class_hits
from models.vectors import Vectors

PENALTIES: Final = tuple(10.0**-power for power in range(7))
"""Tried from the strongest to the weakest, each starting where the last one ended."""
UNTUNED: Final = 1e-3
"""Where no class has two pictures, so that nothing can be held out."""
_HELD_OUT: Final = 5
_TUNING, _FINAL = 60, 300
"""Iterations at most: a penalty is judged well before its loss has stopped falling."""


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """Weight float32 [C, D] and bias [C] on unit rows; `penalty` is what was chosen."""

    weight_CD: Vectors
    bias_C: npt.NDArray[np.float32]
    penalty: float

    def logits(self, image_ND: Vectors) -> Vectors:
        """float32 [N, C]."""
        return image_ND @ self.weight_CD.T + self.bias_C


def fit_linear_probe(
    image_ND: Vectors, class_N: Sequence[int], *, penalty: float | None = None
) -> LinearProbe:
    """Fit the probe.

    Args:
        image_ND: unit rows.
        class_N: 0 to C - 1; each occurs.
        penalty: instead of the one that is best on one in five pictures of each class.

    Raises:
        InvalidLabelsError: fewer than two classes.
    """
    target_N = torch.tensor(list(class_N), dtype=torch.long)
    classes = int(target_N.max()) + 1 if len(target_N) else 0
    if classes < 2:
        raise InvalidLabelsError(f"{classes} classes; a linear probe needs at least 2")
    dim = image_ND.shape[1]
    # entries around 1 instead of 1 / sqrt(D): the penalties then mean the same for every D
    x_ND = torch.from_numpy(np.asarray(image_ND, dtype=np.float64)) * dim**0.5
    if penalty is None:
        penalty = _best_penalty(x_ND, target_N, classes)
    weight_CD, bias_C = _minimise(x_ND, target_N, penalty, _start(classes, dim), _FINAL)
    return LinearProbe(
        (weight_CD * dim**0.5).numpy().astype(np.float32),
        bias_C.numpy().astype(np.float32),
        penalty,
    )


def evaluate_linear_probe(
    train: Collected,
    test: Collected,
    encoder: Encoder,
    *,
    shots: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Fit on one set's labelled pictures, measure on another's, in CLIP_benchmark's names.

    Args:
        train, test: embedded by `encoder`.
        shots: at most so many training pictures a class, drawn at random.
        seed: of the drawing.

    Returns:
        {`lp_acc1`, `lp_acc5`, `lp_mean_per_class_recall`, `weight_decay`, `pictures`, `classes`,
        `train_pictures`}. Pictures of classes that the training set lacks count as missed; with
        fewer than five classes there is no `lp_acc5`.

    Raises:
        SourceError: no labelled picture in one of the sets.
        InvalidLabelsError: fewer than two classes to learn.
    """
    assert train.image_ND.shape[1] == test.image_ND.shape[1] == encoder.dim
    train_rows, train_labels = _labelled(train, "training set", shots, seed)
    test_rows, test_labels = _labelled(test, "source", None, seed)
    names = sorted(set(train_labels))
    position = {name: at for at, name in enumerate(names)}
    probe = fit_linear_probe(
        train.image_ND[train_rows], [position[label] for label in train_labels]
    )
    known = [at for at, label in enumerate(test_labels) if label in position]
    target_B = [position[test_labels[at]] for at in known]
    score_BC = probe.logits(test.image_ND[[test_rows[at] for at in known]])
    hit1_B = class_hits(score_BC, target_B, 1)
    hit5_B = class_hits(score_BC, target_B, 5)
    per_class: dict[str, list[float]] = {label: [] for label in sorted(set(test_labels))}
    for at, hit in zip(known, hit1_B.tolist(), strict=True):
        per_class[test_labels[at]].append(hit)
    recalls = [sum(hits) / len(hits) if hits else 0.0 for hits in per_class.values()]
    top5 = {"lp_acc5": float(hit5_B.sum()) / len(test_labels)} if len(names) >= 5 else {}
    return {
        "lp_acc1": float(hit1_B.sum()) / len(test_labels),
        **top5,
        "lp_mean_per_class_recall": sum(recalls) / len(recalls),
        "weight_decay": probe.penalty,
        "pictures": len(test_labels),
        "classes": len(names),
        "train_pictures": len(train_labels),
    }


def _labelled(
    collected: Collected, what: str, shots: int | None, seed: int
) -> tuple[list[int], list[str]]:
    rows = [at for at, label in enumerate(collected.labels) if label is not None]
    if not rows:
        raise SourceError(
            f"the {what} holds no labels",
            code="no-labels",
            hint="name the field they are in: --label-field label",
        )
    if shots is not None:
        taken: Counter[str] = Counter()
        order = np.random.default_rng(seed).permutation(len(rows))
        chosen = []
        for at in order.tolist():
            label = str(collected.labels[rows[at]])
            if taken[label] < shots:
                taken[label] += 1
                chosen.append(rows[at])
        rows = sorted(chosen)
    return rows, [str(collected.labels[at]) for at in rows]


def _best_penalty(x_ND: Tensor, target_N: Tensor, classes: int) -> float:
    """The penalty with the most held-out pictures right; of equal ones the strongest."""
    place: Counter[int] = Counter()
    is_held_N = torch.zeros(len(target_N), dtype=torch.bool)
    for at, label in enumerate(target_N.tolist()):
        place[label] += 1
        is_held_N[at] = place[label] % _HELD_OUT == min(2, _HELD_OUT - 1)
    if not is_held_N.any():
        return UNTUNED
    best = (-1.0, UNTUNED)
    start = _start(classes, x_ND.shape[1])
    for penalty in PENALTIES:
        start = _minimise(x_ND[~is_held_N], target_N[~is_held_N], penalty, start, _TUNING)
        guess_N = (x_ND[is_held_N] @ start[0].T + start[1]).argmax(dim=1)
        right = float((guess_N == target_N[is_held_N]).double().mean())
        if right > best[0]:
            best = (right, penalty)
    return best[1]


def _start(classes: int, dim: int) -> tuple[Tensor, Tensor]:
    zero = torch.zeros(classes, dim, dtype=torch.float64)
    return zero, torch.zeros(classes, dtype=torch.float64)


def _minimise(
    x_ND: Tensor,
    target_N: Tensor,
    penalty: float,
    start: tuple[Tensor, Tensor],
    iterations: int,
) -> tuple[Tensor, Tensor]:
    weight_CD, bias_C = (part.clone().requires_grad_(True) for part in start)
    optimiser = torch.optim.LBFGS(
        [weight_CD, bias_C],
        max_iter=iterations,
        tolerance_grad=1e-7,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimiser.zero_grad()
        loss = functional.cross_entropy(x_ND @ weight_CD.T + bias_C, target_N)
        loss = loss + penalty / 2 * weight_CD.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimiser.step(closure)
    return weight_CD.detach(), bias_C.detach()
