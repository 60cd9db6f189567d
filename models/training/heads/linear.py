"""A linear head over frozen features: multinomial logistic regression.

Radford et al. 2021 (CLIP), section 3.2 and appendix A.3: features at rest, L-BFGS, and the strength
of the L2 penalty found on a split of the training pictures alone. Knows no encoder and no file.

Legend: N pictures, C classes, D embedding.

A part of labelled pictures held back, so that a setting is chosen on what was not learned from.

Knows labels only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.vectors import Vectors

SHARE = 0.2


def held_back(target_N: npt.NDArray[np.int64], *, seed: int = 0) -> npt.NDArray[np.bool_]:
    """True for about a fifth of each class's pictures, drawn by `seed`.

    At least one of two or more; none of a class with a single picture, which is needed to learn it.
    """
    dice = np.random.default_rng(seed)
    held_N: npt.NDArray[np.bool_] = np.zeros(len(target_N), dtype=bool)
    for number in np.unique(target_N):
        members = dice.permutation(np.flatnonzero(target_N == number))
        if len(members) > 1:
            held_N[members[: max(1, round(SHARE * len(members)))]] = True
    return held_N


STRENGTHS: Final = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
"""Penalties tried, strongest first."""
_TRIAL_STEPS: Final = 100
"""To rank penalties; each starts where the stronger one ended."""
_FALLBACK: Final = 1e-4
"""Where every class has a single picture and nothing can be held back."""


@dataclass(frozen=True, slots=True)
class LinearHead:
    """Weights, and how they were found.

    Attributes:
        weight_CD, bias_C: float32.
        strength: of the penalty that was chosen.
        held_back: pictures it was chosen on; 0 where it was not chosen.
        tried: accuracy on these, by strength.
    """

    weight_CD: Vectors
    bias_C: npt.NDArray[np.float32]
    strength: float
    held_back: int
    tried: dict[float, float]


def fit_linear(
    image_ND: Vectors, target_N: npt.NDArray[np.int64], classes: int, *, seed: int = 0
) -> LinearHead:
    """Choose the penalty on a held-back fifth, then fit on all pictures.

    Of equally accurate penalties the strongest is taken.
    """
    x_ND = torch.from_numpy(image_ND).double()
    y_N = torch.from_numpy(target_N)
    held_N = torch.from_numpy(held_back(target_N, seed=seed))
    tried: dict[float, float] = {}
    if bool(held_N.any()):
        start = None
        for strength in STRENGTHS:
            start = minimise(
                x_ND[~held_N], y_N[~held_N], classes, strength, start=start, steps=_TRIAL_STEPS
            )
            guess_N = (x_ND[held_N] @ start[0].T + start[1]).argmax(dim=1)
            tried[strength] = float((guess_N == y_N[held_N]).double().mean())
    strength = max(tried, key=lambda one: (tried[one], one)) if tried else _FALLBACK
    weight_CD, bias_C = minimise(x_ND, y_N, classes, strength)
    return LinearHead(
        weight_CD.float().numpy(), bias_C.float().numpy(), strength, int(held_N.sum()), tried
    )


def minimise(
    x_ND: Tensor,
    y_N: Tensor,
    classes: int,
    strength: float,
    *,
    start: tuple[Tensor, Tensor] | None = None,
    steps: int = 300,
) -> tuple[Tensor, Tensor]:
    """The weights [C, D] and bias [C] that minimise

        mean over n of cross_entropy(x[n] @ weight.T + bias, y[n]) + strength / 2 * |weight|^2

    The bias is not penalised. Convex in both, so that there is one minimum, up to a constant in
    the bias.
    """
    if start is None:
        start = x_ND.new_zeros(classes, x_ND.shape[1]), x_ND.new_zeros(classes)
    weight_CD, bias_C = (tensor.clone().requires_grad_() for tensor in start)
    optimiser = torch.optim.LBFGS(
        [weight_CD, bias_C],
        max_iter=steps,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = penalised(x_ND, y_N, weight_CD, bias_C, strength)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight_CD.detach(), bias_C.detach()


def penalised(
    x_ND: Tensor, y_N: Tensor, weight_CD: Tensor, bias_C: Tensor, strength: float
) -> Tensor:
    """What `minimise` minimises."""
    loss = functional.cross_entropy(x_ND @ weight_CD.T + bias_C, y_N)
    return loss + strength / 2 * weight_CD.square().sum()
