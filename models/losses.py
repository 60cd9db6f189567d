"""Contrastive losses on unit vectors. Torch only; knows nothing of towers, data or optimisers.

Legend: B pairs, D embedding; `logits_BB` has pictures in rows and texts in columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_LOGIT_SCALE = 100.0
"""CLIP section 2.5: a larger scale makes training unstable."""

_EXCLUDED = -1e4
"""Finite stand-in for minus infinity: exp(-1e4) is exactly 0, and 0 * -inf would be NaN."""


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


def info_nce(
    image_BD: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor | float,
    *,
    group_B: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Symmetric InfoNCE: each picture picks its text out of the batch, each text its picture.

    Radford et al. 2021 (CLIP), section 2.3; van den Oord et al. 2018, equation 4. In loop form,
    with N(i) the columns that may serve as negatives of row i:

        logits[i][j] = logit_scale * dot(image[i], text[j])
        image_loss = mean over i of -log(exp(logits[i][i]) / sum over j in N(i) + {i} of
                                         exp(logits[i][j]))
        text_loss  = the same on the transposed logits
        loss       = (image_loss + text_loss) / 2

    Args:
        image_BD: unit rows, float [B, D].
        text_BD: unit rows, float [B, D]; row i belongs to picture i.
        logit_scale: what cosines are multiplied by (the inverse temperature).
        group_B: integers [B], optional. Pairs with equal numbers describe the same thing (two
            captions of one picture, two pictures of one class) and are not each other's
            negatives: N(i) leaves them out. Without it every other pair is a negative.
        label_smoothing: weight of the uniform distribution over the allowed columns in the target
            (Jia et al. 2021, ALIGN, section 4).

    Returns:
        A scalar; log(B) for a batch of identical vectors without groups.
    """
    logits_BB = logit_scale * image_BD @ text_BD.T
    allowed_BB = None
    if group_B is not None:
        same_BB = group_B[:, None] == group_B[None, :]
        allowed_BB = ~same_BB | torch.eye(len(group_B), dtype=torch.bool, device=group_B.device)
    image_loss = _cross_entropy_diagonal(logits_BB, allowed_BB, label_smoothing)
    text_loss = _cross_entropy_diagonal(logits_BB.T, allowed_BB, label_smoothing)
    return (image_loss + text_loss) / 2


def _cross_entropy_diagonal(
    logits_BB: Tensor, allowed_BB: Tensor | None, smoothing: float
) -> Tensor:
    """Mean over rows of the cross entropy whose right answer is the diagonal."""
    if allowed_BB is not None:
        # symmetric, so it serves rows and columns alike
        logits_BB = logits_BB.masked_fill(~allowed_BB, _EXCLUDED)
    log_probability_BB = functional.log_softmax(logits_BB, dim=1)
    loss = -log_probability_BB.diagonal().mean()
    if smoothing:
        if allowed_BB is None:
            uniform = -log_probability_BB.mean(dim=1)
        else:
            # excluded columns hold about -1e4: they must leave the average, not enter it
            kept_BB = log_probability_BB.masked_fill(~allowed_BB, 0.0)
            uniform = -kept_BB.sum(dim=1) / allowed_BB.sum(dim=1)
        loss = (1 - smoothing) * loss + smoothing * uniform.mean()
    return loss
