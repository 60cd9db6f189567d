"""Weights as plain tensors by name: copies, moving averages, and paths between two of them.

Knows modules only as state dicts; no data, no loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn

from models.errors import TrainingError
from models.training.record import Recall, score

Weights: TypeAlias = dict[str, Tensor]


def copy_of(module: nn.Module) -> Weights:
    """All parameters and buffers, detached copies on the CPU."""
    return {
        name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()
    }


def refuse_not_finite(module: nn.Module, kept: str = "") -> None:
    """Raise TrainingError `weights-not-finite` before a pair that answers nothing is saved.

    Args:
        kept: what is left of the run, for the hint.
    """
    for name, value in module.state_dict().items():
        # the scale is the one number that is used as a power of e
        used = value.exp() if name.endswith(("logit_scale", "log_scale")) else value
        if value.is_floating_point() and not bool(used.isfinite().all()):
            raise TrainingError(
                f"{name} of the trained pair is not finite, so the pair was not saved",
                code="weights-not-finite",
                hint=f"begin anew with a lower --lr or --precision fp32{kept}",
            )


def interpolated(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> Weights:
    """(1 - share) * start + share * end, tensor by tensor.

    Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", equation 1: on the straight
    line between pretrained and fine-tuned weights lie pairs that keep what the first knew and
    know most of what the second learned. Counters and the like are those of `end`.
    """
    if share == 1.0:
        return dict(end)
    return {
        name: torch.lerp(start[name].double(), value.double(), share).to(value.dtype)
        if value.is_floating_point() and name in start
        else value
        for name, value in end.items()
    }


class MovingAverage:
    """Exponential moving average of what learns.

    The decay rises to its value, min(decay, (1 + n) / (10 + n)) after n updates, so that a short
    run does not end as mostly the weights it started from.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average: Weights = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter]) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, average in self.average.items():
            average.lerp_(parameters[name].detach(), 1 - decay)

    def over(self, weights: Mapping[str, Tensor]) -> Weights:
        """`weights` with the averages in their places."""
        return {
            name: self.average[name].to(value.device, copy=True) if name in self.average else value
            for name, value in weights.items()
        }


SHARES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def interpolate(
    start: Weights,
    end: Weights,
    share: float | str,
    load: Callable[[Weights], object],
    measure: Callable[[], Recall] | None,
) -> tuple[float, dict[str, float], Recall | None]:
    """Load the interpolated weights -> (share, R@1 of each share tried, recall of the result).

    With `val` the best of `SHARES` by validation; of equal ones the one nearest to the middle,
    which is where both ends agree most.
    """
    if share != "val" or measure is None:
        value = 0.5 if share == "val" else float(share)
        load(interpolated(start, end, value))
        return value, {}, None if measure is None else measure()
    measured: dict[float, Recall] = {}
    for value in SHARES:
        load(interpolated(start, end, value))
        measured[value] = measure()
    best = max(SHARES, key=lambda value: (score(measured[value]), -abs(value - 0.5), value))
    load(interpolated(start, end, best))
    tried = {f"{value:.1f}": score(recall)[0] for value, recall in measured.items()}
    return best, tried, measured[best]


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> Weights:
    """The mean of each tensor: runs from one start lie in one valley, and their mean is at least
    as good as they are (a model soup, Wortsman et al. 2022)."""
    return {name: torch.stack([s[name] for s in states]).mean(dim=0) for name in states[0]}
