"""InfoNCE whose targets know that another picture's caption may be nearly right.

In a batch of a thousand pictures of people and dogs many captions would do for many pictures. A
sentence encoder that takes no part in training says how well: it compares each caption with the
captions that people gave the other pictures (their mean). A share of the target goes to captions
in proportion, as in SoftCLIP (Gao et al. 2023), with sentence features in the place of object tags.

Knows nothing of heads or of where features come from. Legend: B pairs, D embedding, S features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_EXCLUDED = -1e4
"""Finite stand-in for minus infinity, as in `models.losses`."""


def soft_info_nce(
    image_BD: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor | float,
    *,
    likeness_BB: Tensor,
    share: float,
    group_B: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE with soft targets. In loop form, with N(i) the columns allowed for row i:

        target[i][j] = (1 - share) * (i == j) + share * softmax over N(i) + {i} of likeness[i][j]
        image_loss   = mean over i of -sum over j in N(i) + {i} of
                       target[i][j] * log softmax over N(i) + {i} of logit_scale * cosine[i][j]
        text_loss    = the same on the transposed likenesses and cosines
        loss         = (image_loss + text_loss) / 2

    Args:
        image_BD: unit rows.
        text_BD: unit rows; row i belongs to picture i.
        logit_scale: what cosines are multiplied by.
        likeness_BB: how well text j would do for picture i, as logits (see `caption_likeness`).
        share: of the target that is soft; 0 gives `models.losses.info_nce`.
        group_B: pairs with equal numbers are left out of each other's rows, as in `info_nce`.
    """
    logits_BB = logit_scale * image_BD @ text_BD.T
    if group_B is not None:
        other_BB = group_B[:, None] == group_B[None, :]
        other_BB = other_BB & ~torch.eye(len(group_B), dtype=torch.bool)
        logits_BB = logits_BB.masked_fill(other_BB, _EXCLUDED)
        likeness_BB = likeness_BB.masked_fill(other_BB, _EXCLUDED)
    image_loss = _cross_entropy(logits_BB, likeness_BB, share)
    text_loss = _cross_entropy(logits_BB.T, likeness_BB.T, share)
    return (image_loss + text_loss) / 2


def caption_likeness(mean_BS: Tensor, caption_BS: Tensor, *, temperature: float = 0.05) -> Tensor:
    """[B, B]: picture i by the mean of its captions, text j by its own features, cosine / T.

    Args:
        mean_BS: mean features of each picture's captions in the language of the batch's caption.
        caption_BS: unit rows; another language may use `mean_BS` itself in their place, so that
            the language which the encoder knows best speaks for it.
        temperature: at 0.05 the own caption gets about 0.6 of 1,000 in English.
    """
    return functional.normalize(mean_BS, dim=1) @ caption_BS.T / temperature


def _cross_entropy(logits_BB: Tensor, likeness_BB: Tensor, share: float) -> Tensor:
    target_BB = share * likeness_BB.softmax(dim=1)
    target_BB = target_BB + (1 - share) * torch.eye(len(target_BB)).to(target_BB)
    # an excluded column has a target of exactly 0 and a finite logarithm
    return -(target_BB * functional.log_softmax(logits_BB, dim=1)).sum(dim=1).mean()
