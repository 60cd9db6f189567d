"""What a trainer minimises: a loss together with the parameters it learns.

Either made fresh or around an open_clip pair's own `logit_scale` and `logit_bias`. Knows nothing of
towers, data or optimisers. Legend: B pairs, D embedding, H hard negative texts.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.encoders.base.logit_scale import MAX_LOGIT_SCALE
from models.training.losses.info_nce import info_nce_rows
from models.training.losses.sigmoid import sigmoid_rows

DEFAULT_CHUNK = 1024
"""Rows whose logits are held at once: a batch of 16,384 needs 64 MB of them, not 1 GB, and smaller
batches than this are computed in one piece."""
# rounded down to a number that fp32 has, so that a parameter clamped to it equals it
_MAX_LOG_SCALE = torch.nextafter(torch.tensor(math.log(MAX_LOGIT_SCALE)), torch.tensor(0.0)).item()


class Objective(Protocol):
    """A scalar to minimise, from unit rows of both towers.

    `rows` asks for the part of some pairs, still against the whole batch; the mean over equal
    slices is the whole loss. Half-precision inputs are computed in fp32, whatever autocast says.
    """

    def __call__(
        self,
        image_BD: Tensor,
        text_BD: Tensor,
        *,
        group_B: Tensor | None = None,
        hard_HD: Tensor | None = None,
        rows: slice | None = None,
    ) -> Tensor: ...

    def scale(self) -> Tensor:
        """What cosines are multiplied by, a scalar: worth showing while training."""
        ...

    def clamp(self) -> None:
        """Bring the parameters back into their range. Call it after each optimiser step."""
        ...

    def parameters(self, recurse: bool = True) -> Any:
        """The scale, and the bias where there is one. An adopted pair's are the pair's own: an
        optimiser that is given the pair must not be given them again."""
        ...


class InfoNCEObjective(nn.Module):
    """`info_nce` with a learned temperature.

    The logarithm of the scale is clamped to log(100) where it is used and, by `clamp`, in the
    parameter (CLIP section 2.5): a parameter that ran past the limit would get no gradient, and
    never come back.

    Args:
        log_scale: the parameter to adopt; by default a new one, at CLIP's 1 / 0.07.
        label_smoothing: see `info_nce`.
        chunk: rows whose logits are held at once; None holds them all.
    """

    def __init__(
        self,
        log_scale: nn.Parameter | None = None,
        *,
        label_smoothing: float = 0.0,
        chunk: int | None = DEFAULT_CHUNK,
    ) -> None:
        super().__init__()
        if log_scale is None:
            log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.log_scale = log_scale
        self.label_smoothing = label_smoothing
        self.chunk = chunk

    def scale(self) -> Tensor:
        log_scale = self.log_scale.reshape(())  # some open_clip pairs keep it as [1]
        # not clamp(): at the limit itself it passes no gradient, and none would ever lead back
        return log_scale.where(log_scale <= _MAX_LOG_SCALE, _MAX_LOG_SCALE).exp()

    @torch.no_grad()
    def clamp(self) -> None:
        self.log_scale.clamp_(max=_MAX_LOG_SCALE)

    def forward(
        self,
        image_BD: Tensor,
        text_BD: Tensor,
        *,
        group_B: Tensor | None = None,
        hard_HD: Tensor | None = None,
        rows: slice | None = None,
    ) -> Tensor:
        with torch.autocast(image_BD.device.type, enabled=False):
            return info_nce_rows(
                _full(image_BD),
                _full(text_BD),
                self.scale(),
                rows=rows or slice(0, len(image_BD)),
                group_B=group_B,
                hard_HD=None if hard_HD is None else _full(hard_HD),
                label_smoothing=self.label_smoothing,
                chunk=self.chunk,
            )


class SigmoidObjective(nn.Module):
    """`sigmoid_loss` with a learned scale and bias; the scale has no limit, as in SigLIP.

    Args:
        log_scale: the parameter to adopt; by default a new one, at the paper's log(10).
        bias: the parameter to adopt; by default a new one, at the paper's -10.
        chunk: rows whose logits are held at once; None holds them all.
    """

    def __init__(
        self,
        log_scale: nn.Parameter | None = None,
        bias: nn.Parameter | None = None,
        *,
        chunk: int | None = DEFAULT_CHUNK,
    ) -> None:
        super().__init__()
        if log_scale is None:
            log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.log_scale = log_scale
        self.bias = nn.Parameter(torch.tensor(-10.0)) if bias is None else bias
        self.chunk = chunk

    def scale(self) -> Tensor:
        return self.log_scale.reshape(()).exp()

    def clamp(self) -> None:
        """Nothing: published SigLIP pairs have scales above 100."""

    def forward(
        self,
        image_BD: Tensor,
        text_BD: Tensor,
        *,
        group_B: Tensor | None = None,
        hard_HD: Tensor | None = None,
        rows: slice | None = None,
    ) -> Tensor:
        with torch.autocast(image_BD.device.type, enabled=False):
            return sigmoid_rows(
                _full(image_BD),
                _full(text_BD),
                self.scale(),
                self.bias.reshape(()),
                rows=rows or slice(0, len(image_BD)),
                group_B=group_B,
                hard_HD=None if hard_HD is None else _full(hard_HD),
                chunk=self.chunk,
            )


def _full(rows: Tensor) -> Tensor:
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
