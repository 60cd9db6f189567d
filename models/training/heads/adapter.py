"""A residual bottleneck on image features, trained against fixed class directions.

Gao et al. 2021, "CLIP-Adapter: Better Vision-Language Models with Feature Adapters". Both towers
rest, so it works for any encoder pair. Knows no encoder and no file.

Legend: N pictures, C classes, D embedding, R the bottleneck's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.labels.class_head import Adapter
from models.training.heads.linear import held_back
from models.vectors import Vectors

_REDUCTION: Final = 4
"""D / R, as in the paper."""
_BATCH: Final = 64
_RATE: Final = 2e-3


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """The adapter, and how it was found.

    Attributes:
        epochs: chosen on the held-back pictures.
        held_back: how many these were.
        tried: accuracy on them after each epoch, the zero-shot answer first.
    """

    adapter: Adapter
    epochs: int
    held_back: int
    tried: tuple[float, ...]


def fit_adapter(
    image_ND: Vectors,
    target_N: npt.NDArray[np.int64],
    class_CD: Vectors,
    logit_scale: float,
    *,
    epochs: int = 100,
    seed: int = 0,
) -> TrainedAdapter:
    """Choose how long to train on a held-back fifth, then train so long on all pictures."""
    x_ND, y_N = torch.from_numpy(image_ND).float(), torch.from_numpy(target_N)
    classes = torch.from_numpy(class_CD).float()
    held_N = torch.from_numpy(held_back(target_N, seed=seed))
    tried: list[float] = []
    if bool(held_N.any()):
        for down_RD, up_DR in _epochs(
            x_ND[~held_N], y_N[~held_N], classes, logit_scale, epochs, seed
        ):
            guess_N = (adapted(x_ND[held_N], down_RD, up_DR) @ classes.T).argmax(dim=1)
            tried.append(float((guess_N == y_N[held_N]).double().mean()))
    chosen = int(np.argmax(tried)) if tried else epochs
    *_, (down_RD, up_DR) = _epochs(x_ND, y_N, classes, logit_scale, chosen, seed)
    adapter = Adapter(down_RD.numpy(), up_DR.numpy())
    return TrainedAdapter(adapter, chosen, int(held_N.sum()), tuple(tried))


def adapted(x_ND: Tensor, down_RD: Tensor, up_DR: Tensor) -> Tensor:
    """`models.labels.class_head.Adapter`, with gradients."""
    hidden_NR = functional.relu(x_ND @ down_RD.T)
    return functional.normalize(x_ND + hidden_NR @ up_DR.T, dim=1)


def _epochs(
    x_ND: Tensor, y_N: Tensor, class_CD: Tensor, logit_scale: float, epochs: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The weights before the first epoch and after each."""
    dice = torch.Generator().manual_seed(seed)
    dim = x_ND.shape[1]
    width = max(1, dim // _REDUCTION)
    bound = dim**-0.5
    down_RD = torch.empty(width, dim).uniform_(-bound, bound, generator=dice).requires_grad_()
    up_DR = torch.zeros(dim, width, requires_grad=True)
    optimiser = torch.optim.AdamW([down_RD, up_DR], lr=_RATE)
    yield down_RD.detach().clone(), up_DR.detach().clone()
    for _ in range(epochs):
        for rows in torch.randperm(len(x_ND), generator=dice).split(_BATCH):  # type: ignore[no-untyped-call]
            optimiser.zero_grad()
            logits = logit_scale * adapted(x_ND[rows], down_RD, up_DR) @ class_CD.T
            functional.cross_entropy(logits, y_N[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        yield down_RD.detach().clone(), up_DR.detach().clone()
