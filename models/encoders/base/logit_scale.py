"""The learned logit scale of softmax-trained pairs, for the starter's heads and the losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_LOGIT_SCALE = 100.0
"""CLIP section 2.5: a larger scale makes training unstable."""


class LogitScale(nn.Module):
    """The learned inverse temperature, kept as its logarithm and clamped to at most 100.

    The clamp is on the value that is used, as in CLIP: a parameter beyond the limit receives no
    gradient from the loss and cannot grow further.
    """

    def __init__(self, initial: float = 1 / 0.07) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self) -> Tensor:
        """The scale, a scalar in (0, 100]."""
        return self.log_scale.exp().clamp(max=MAX_LOGIT_SCALE)
