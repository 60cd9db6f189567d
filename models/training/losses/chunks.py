"""Sums over rows a few at a time, recomputed in the backward pass. Knows no loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def over_chunks(part: Callable[[int, int], Tensor], rows: slice, chunk: int | None) -> Tensor:
    """The sum of `part(begin, end)` over consecutive pieces of `rows`.

    Each piece's intermediate tensors are freed at once and made again for its gradient, so that
    memory is that of one piece. `part` may close over tensors that need gradients, but must not
    draw random numbers.
    """
    if chunk is None or rows.stop - rows.start <= chunk:
        return part(rows.start, rows.stop)
    sums = [
        checkpoint(
            part,
            begin,
            min(begin + chunk, rows.stop),
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for begin in range(rows.start, rows.stop, chunk)
    ]
    return torch.stack(sums).sum()
