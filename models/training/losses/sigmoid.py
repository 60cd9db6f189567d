"""SigLIP's pairwise sigmoid loss. Torch only; knows nothing of towers, data or optimisers.

Legend: B pairs, R rows of them, D embedding, H hard negative texts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.training.losses.chunks import over_chunks


def sigmoid_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    group_B: Tensor | None = None,
    hard_HD: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Each picture and text are judged by themselves: do they belong together or not.

    Zhai et al. 2023 (SigLIP), section 3.2 and algorithm 1. In loop form:

        logits[i][j] = logit_scale * dot(image[i], text[j]) + logit_bias
        loss = sum over i and j of log(1 + exp(-z[i][j] * logits[i][j])) / B

    with z = 1 where i = j or where i and j are of one group, and -1 elsewhere.

    Pairs of one group are positives here, while InfoNCE leaves them out. A softmax has one right
    answer and may only look away from the others; a sigmoid asks of every pair whether text and
    picture fit, and for two captions of one picture the true answer is yes (so labels define the
    targets in Yang et al. 2022, UniCL, equations 1 to 3).

    Args:
        image_BD: unit rows, float [B, D].
        text_BD: unit rows, float [B, D]; row i belongs to picture i.
        logit_scale: what cosines are multiplied by; the paper starts at 10.
        logit_bias: what is added; the paper starts at -10, since nearly all pairs are negatives.
        group_B: integers [B], optional; equal numbers describe the same thing.
        hard_HD: unit rows, float [H, D], optional: texts that are wrong for every picture.
        chunk: rows whose logits are held at once (see
        `models.training.losses.info_nce.info_nce_rows`).
    """
    return sigmoid_rows(
        image_BD,
        text_BD,
        logit_scale,
        logit_bias,
        rows=slice(0, len(image_BD)),
        group_B=group_B,
        hard_HD=hard_HD,
        chunk=chunk,
    )


def sigmoid_rows(
    image_BD: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    rows: slice,
    group_B: Tensor | None = None,
    hard_HD: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The part of `sigmoid_loss` that belongs to some pictures, each still against all texts.

    The mean over a partition of the batch into equal slices is `sigmoid_loss` of the batch.
    """

    def part(begin: int, end: int) -> Tensor:
        image_RD = image_BD[begin:end]
        logit_RB = logit_scale * image_RD @ text_BD.T + logit_bias
        if group_B is None:
            fits_RB = torch.zeros_like(logit_RB, dtype=torch.bool)
            fits_RB.diagonal(offset=begin).fill_(True)
        else:
            fits_RB = group_B[begin:end, None] == group_B[None, :]
        # log(1 + exp(-x)) = -logsigmoid(x), which does not overflow
        loss = -functional.logsigmoid(torch.where(fits_RB, logit_RB, -logit_RB)).sum()
        if hard_HD is not None:
            hard_RH = logit_scale * image_RD @ hard_HD.T + logit_bias
            loss = loss - functional.logsigmoid(-hard_RH).sum()
        return loss

    loss: Tensor = over_chunks(part, rows, chunk) / (rows.stop - rows.start)
    return loss
