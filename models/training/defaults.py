"""Settings nobody named: what is safe for a model, an amount of data and a machine.

Small sets ruin pretrained pairs quickly, so whatever is not asked for is chosen to do little harm:
low rates, few steps, the result half way back to where it started, or wherever validation likes it
best. docs/training.md gives the reasons. Pure functions.
"""

from __future__ import annotations

from typing import Final, Literal

import torch

from models.devices import resolve_precision

FINE_TUNE_RATE: Final = 1e-5
FRESH_RATE: Final = 5e-4
LORA_RATE: Final = 1e-4
_FINE_TUNE_STEPS: Final = 1_000
_FINE_TUNE_EPOCHS: Final = (1, 10)
_FRESH_EPOCHS: Final = 32
_BATCH: Final = 128


def batch_size_for(pairs: int, ranks: int) -> int:
    """128, or all there are; a multiple of the number of ranks.

    Example:
        >>> batch_size_for(10_000, 1), batch_size_for(30, 1), batch_size_for(30, 4)
        (128, 30, 28)
    """
    wanted = min(_BATCH, max(2, pairs))
    return max(ranks, wanted // ranks * ranks)


def epochs_for(pairs: int, batch: int, *, fresh: bool) -> int:
    """About a thousand steps of fine-tuning, but no more than ten passes; 32 passes from scratch.

    Example:
        >>> [epochs_for(n, 128, fresh=False) for n in (16, 5_000, 50_000, 5_000_000)]
        [10, 10, 3, 1]
    """
    if fresh:
        return _FRESH_EPOCHS
    per_epoch = max(1, pairs // batch)
    few, many = _FINE_TUNE_EPOCHS
    return max(few, min(many, round(_FINE_TUNE_STEPS / per_epoch)))


def rate_for(*, fresh: bool, lora: bool = False) -> float:
    if lora:
        return LORA_RATE
    return FRESH_RATE if fresh else FINE_TUNE_RATE


def interpolation_for(*, fresh: bool, measured: bool) -> float | Literal["val"]:
    """WiSE-FT is on where there is something to lose; without validation, half way."""
    if fresh:
        return 1.0
    return "val" if measured else 0.5


def patience_for(*, fresh: bool, measured: bool) -> int:
    return 3 if measured and not fresh else 0


def precision_for(name: str, device: torch.device) -> str:
    """`auto` is what the device multiplies natively on a GPU, and fp32 on a CPU, where the same
    bits on every machine of a kind are worth more than speed.

    Raises:
        ModelError: an unknown name.
    """
    if name == "auto" and device.type != "cuda":
        return "fp32"
    return resolve_precision(name, device)
