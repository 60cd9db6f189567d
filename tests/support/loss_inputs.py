"""What the loss tests share: unit rows, leaves to differentiate, and the largest tensor made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.training.losses import DEFAULT_CHUNK, InfoNCEObjective, SigmoidObjective


def unit(rows: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, width, generator=generator, dtype=dtype), dim=1)


def gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradient for each input, a missing one as zeros."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    value = loss(*leaves)
    found = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return value.detach(), list(found)


def assert_same(one: Callable[..., Tensor], other: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Two forms of a loss: equal values and equal gradients."""
    torch.testing.assert_close(gradients(one, *inputs), gradients(other, *inputs))


def objective_for(
    pair: Any, *, label_smoothing: float = 0.0, chunk: int | None = DEFAULT_CHUNK
) -> InfoNCEObjective | SigmoidObjective:
    """The objective an open_clip pair was trained with, around the pair's own parameters.

    A pair with a `logit_bias` was trained with the sigmoid loss; smoothing does not apply to it.
    """
    bias = getattr(pair, "logit_bias", None)
    if bias is None:
        return InfoNCEObjective(pair.logit_scale, label_smoothing=label_smoothing, chunk=chunk)
    return SigmoidObjective(pair.logit_scale, bias, chunk=chunk)


class Largest(TorchDispatchMode):
    """Records how many numbers the largest tensor held that was made inside, backward included."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numbers = max(self.numbers, leaf.numel())
        return result
