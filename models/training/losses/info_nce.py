"""InfoNCE on unit vectors. Torch only; knows nothing of towers, data or optimisers.

Legend: B pairs, R rows of them, D embedding, H hard negative texts, N columns (B, or B + H);
`logits_BB` has pictures in rows and texts in columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.training.losses.chunks import over_chunks

_EXCLUDED = -1e4
"""Finite stand-in for minus infinity: exp(-1e4) is exactly 0, and 0 * -inf would be NaN."""


def info_nce(
    image_BD: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor | float,
    *,
    group_B: Tensor | None = None,
    hard_HD: Tensor | None = None,
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
        hard_HD: unit rows, float [H, D], optional: texts that are wrong for every picture, such as
            captions with their words swapped (Yuksekgonul et al. 2023, NegCLIP, section 5). They
            are further columns for the pictures and no rows: no picture is right for them.
        label_smoothing: weight of the uniform distribution over the allowed columns in the target
            (Jia et al. 2021, ALIGN, section 4).

    Returns:
        A scalar; log(B) for a batch of identical vectors without groups.
    """
    if hard_HD is not None:
        return info_nce_rows(
            image_BD,
            text_BD,
            logit_scale,
            rows=slice(0, len(image_BD)),
            group_B=group_B,
            hard_HD=hard_HD,
            label_smoothing=label_smoothing,
        )
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


def info_nce_rows(
    image_BD: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor | float,
    *,
    rows: slice,
    group_B: Tensor | None = None,
    hard_HD: Tensor | None = None,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
) -> Tensor:
    """The part of `info_nce` that belongs to some pairs, each still among all B columns.

    The mean over a partition of the batch into equal slices is `info_nce` of the batch: that is
    how ranks share one large batch. With `chunk`, no more than [chunk, N] logits exist at a time,
    in the backward pass too, at the price of computing them twice.

    Args:
        rows: which pairs, with a start, a stop and no step.
        chunk: rows whose logits are held at once; None holds them all.
    """

    def part(begin: int, end: int) -> Tensor:
        image_loss = _rows_sum(
            image_BD[begin:end], text_BD, logit_scale, begin, group_B, hard_HD, label_smoothing
        )
        text_loss = _rows_sum(
            text_BD[begin:end], image_BD, logit_scale, begin, group_B, None, label_smoothing
        )
        return (image_loss + text_loss) / 2

    loss: Tensor = over_chunks(part, rows, chunk) / (rows.stop - rows.start)
    return loss


def _rows_sum(
    anchor_RD: Tensor,
    other_BD: Tensor,
    logit_scale: Tensor | float,
    begin: int,
    group_B: Tensor | None,
    hard_HD: Tensor | None,
    smoothing: float,
) -> Tensor:
    """Sum over rows of the cross entropy whose right answer is column `begin` + row."""
    column_RN = logit_scale * anchor_RD @ other_BD.T
    target_R = begin + torch.arange(len(anchor_RD), device=anchor_RD.device)
    allowed_RN = None
    if group_B is not None:
        allowed_RN = group_B[begin : begin + len(anchor_RD), None] != group_B[None, :]
        allowed_RN.scatter_(1, target_R[:, None], True)
        column_RN = column_RN.masked_fill(~allowed_RN, _EXCLUDED)
    if hard_HD is not None:
        column_RN = torch.cat([column_RN, logit_scale * anchor_RD @ hard_HD.T], dim=1)
        if allowed_RN is not None:
            allowed_RN = functional.pad(allowed_RN, (0, len(hard_HD)), value=True)
    log_probability_RN = functional.log_softmax(column_RN, dim=1)
    loss = -log_probability_RN.gather(1, target_R[:, None]).sum()
    if smoothing:
        if allowed_RN is None:
            uniform_R = -log_probability_RN.mean(dim=1)
        else:
            kept_RN = log_probability_RN.masked_fill(~allowed_RN, 0.0)
            uniform_R = -kept_RN.sum(dim=1) / allowed_RN.sum(dim=1)
        loss = (1 - smoothing) * loss + smoothing * uniform_R.sum()
    return loss
