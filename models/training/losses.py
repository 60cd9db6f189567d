"""Contrastive losses on unit vectors: InfoNCE and SigLIP's sigmoids, for `models.training.step`.

`info_nce` and `sigmoid_loss` are plain functions; `*_rows` are their pieces for some rows of a
large batch; the objectives carry the parameters a loss learns. Knows nothing of towers, data or
optimisers.

Legend: B pairs, R rows of them, D embedding, H hard negative texts, N columns (B, or B + H);
`logits_BB` has pictures in rows and texts in columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.encoders.base.logit_scale import MAX_LOGIT_SCALE

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
        text_loss  = the same on the transposed logits, with the transposed N
        loss       = (image_loss + text_loss) / 2

    Args:
        image_BD: unit rows, float [B, D].
        text_BD: unit rows, float [B, D]; row i belongs to picture i.
        logit_scale: what cosines are multiplied by (the inverse temperature).
        group_B: integers [B] or [B, G], optional: what fits what, see `fits`. N(i) leaves out
            the texts that fit picture i. Without it every other pair is a negative.
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
    image_allowed_BB = text_allowed_BB = None
    if group_B is not None:
        eye_BB = torch.eye(len(group_B), dtype=torch.bool, device=group_B.device)
        image_allowed_BB = ~fits(group_B, group_B) | eye_BB
        text_allowed_BB = image_allowed_BB.T
    image_loss = _cross_entropy_diagonal(logits_BB, image_allowed_BB, label_smoothing)
    text_loss = _cross_entropy_diagonal(logits_BB.T, text_allowed_BB, label_smoothing)
    return (image_loss + text_loss) / 2


def fits(picture_R: Tensor, text_N: Tensor) -> Tensor:
    """Which texts fit which pictures, by their groups -> bool [R, N].

    Args:
        picture_R: of the pictures, integers [R] or [R, G]. Alone, or first in its row, the number
            of what the pair is of: equal numbers are one picture, or one class. The second is that
            of what its text says, and all from the second on are of what else is said of its
            picture; a row with less to tell repeats itself.
        text_N: the same of the texts.

    Example: the first picture has another caption, which is what the second's text says. No text
    of the first pair's fits the second picture:

        >>> group_BG = torch.tensor([[1, 7, 8], [2, 8, 8], [3, 9, 9]])
        >>> fits(group_BG, group_BG).int().tolist()
        [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    """
    if picture_R.ndim == 1:
        return picture_R[:, None] == text_N[None, :]
    same_RN = picture_R[:, 0, None] == text_N[None, :, 0]
    if picture_R.shape[1] == 1:
        return same_RN
    said_U, said_N = torch.unique(text_N[:, 1], return_inverse=True)
    known_RC = picture_R[:, 1:].contiguous()
    at_RC = torch.searchsorted(said_U, known_RC).clamp_(max=len(said_U) - 1)
    # what no text says goes into a column that none is in
    at_RC = torch.where(said_U[at_RC] == known_RC, at_RC, len(said_U))
    known_RU = same_RN.new_zeros(len(picture_R), len(said_U) + 1).scatter_(1, at_RC, True)
    return same_RN | known_RU[:, said_N]


def _cross_entropy_diagonal(
    logits_BB: Tensor, allowed_BB: Tensor | None, smoothing: float
) -> Tensor:
    """Mean over rows of the cross entropy whose right answer is the diagonal."""
    if allowed_BB is not None:
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
        image_fits_RN = text_fits_RN = None
        if group_B is not None:
            image_fits_RN = fits(group_B[begin:end], group_B)
            text_fits_RN = fits(group_B, group_B[begin:end]).T
        image_loss = _rows_sum(
            image_BD[begin:end],
            text_BD,
            logit_scale,
            begin,
            image_fits_RN,
            hard_HD,
            label_smoothing,
        )
        text_loss = _rows_sum(
            text_BD[begin:end], image_BD, logit_scale, begin, text_fits_RN, None, label_smoothing
        )
        return (image_loss + text_loss) / 2

    loss: Tensor = over_chunks(part, rows, chunk) / (rows.stop - rows.start)
    return loss


def _rows_sum(
    anchor_RD: Tensor,
    other_BD: Tensor,
    logit_scale: Tensor | float,
    begin: int,
    fits_RN: Tensor | None,
    hard_HD: Tensor | None,
    smoothing: float,
) -> Tensor:
    """Sum over rows of the cross entropy whose right answer is column `begin` + row."""
    column_RN = logit_scale * anchor_RD @ other_BD.T
    target_R = begin + torch.arange(len(anchor_RD), device=anchor_RD.device)
    allowed_RN = None
    if fits_RN is not None:
        allowed_RN = (~fits_RN).scatter_(1, target_R[:, None], True)
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

    with z = 1 where text j fits picture i, and -1 elsewhere.

    Texts that fit are positives here, while InfoNCE leaves them out. A softmax has one right
    answer and may only look away from the others; a sigmoid asks of every pair whether text and
    picture fit, and for two captions of one picture the true answer is yes (so labels define the
    targets in Yang et al. 2022, UniCL, equations 1 to 3).

    Args:
        image_BD: unit rows, float [B, D].
        text_BD: unit rows, float [B, D]; row i belongs to picture i.
        logit_scale: what cosines are multiplied by; the paper starts at 10.
        logit_bias: what is added; the paper starts at -10, since nearly all pairs are negatives.
        group_B: integers [B] or [B, G], optional: what fits what, see `fits`. Without it a
            picture's own text alone does.
        hard_HD: unit rows, float [H, D], optional: texts that are wrong for every picture.
        chunk: rows whose logits are held at once (see
        `models.training.losses.info_nce_rows`).
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
            fits_RB = fits(group_B[begin:end], group_B)
            fits_RB.diagonal(offset=begin).fill_(True)
        # log(1 + exp(-x)) = -logsigmoid(x), which does not overflow
        loss = -functional.logsigmoid(torch.where(fits_RB, logit_RB, -logit_RB)).sum()
        if hard_HD is not None:
            hard_RH = logit_scale * image_RD @ hard_HD.T + logit_bias
            loss = loss - functional.logsigmoid(-hard_RH).sum()
        return loss

    loss: Tensor = over_chunks(part, rows, chunk) / (rows.stop - rows.start)
    return loss


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
        chunk: rows whose logits are held at once; None holds them all, computed once for both
            ways.
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
            if rows is None and self.chunk is None:
                return info_nce(
                    _full(image_BD),
                    _full(text_BD),
                    self.scale(),
                    group_B=group_B,
                    hard_HD=None if hard_HD is None else _full(hard_HD),
                    label_smoothing=self.label_smoothing,
                )
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
