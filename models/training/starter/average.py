"""The mean of the weights along a run's way, which generalises better than where it ends.

An exponential moving average (Polyak & Juditsky 1992; Tarvainen & Valpola 2017). Knows nothing of
what the weights are for.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class MovingAverage:
    """Follows the parameters of a module.

    Args:
        parameters: what to follow; their values now are the first ones averaged.
        decay: weight of the past; 0.99 remembers about a hundred steps.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self._parameters = list(parameters)
        self._mean = [parameter.detach().clone() for parameter in self._parameters]
        self._decay = decay
        self._steps = 0

    @torch.no_grad()
    def follow(self) -> None:
        """Take the parameters as they are into the average."""
        self._steps += 1
        # early on the past is short, and the start is nothing to remember
        decay = min(self._decay, self._steps / (9 + self._steps))
        for mean, parameter in zip(self._mean, self._parameters, strict=True):
            mean.lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def settle(self) -> None:
        """Set the parameters to their average."""
        for parameter, mean in zip(self._parameters, self._mean, strict=True):
            parameter.copy_(mean)

    def state(self) -> tuple[int, list[torch.Tensor]]:
        """(steps followed, the averages in the order of the parameters)"""
        return self._steps, list(self._mean)

    @torch.no_grad()
    def restore(self, steps: int, mean: Iterable[torch.Tensor]) -> None:
        """Inverse of `state`."""
        self._steps = steps
        for own, value in zip(self._mean, mean, strict=True):
            own.copy_(value)
