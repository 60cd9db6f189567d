"""Several pairs of heads, trained alike from different seeds, made into one.

The mean of the cosines that the members give ranks better than any member. It is itself a cosine:
of the members' embeddings laid end to end. Since every member is a sum of a hidden layer, a linear
path and, for pictures, the concepts, the whole can be written as one such head with all hidden
layers side by side; only two things are approximate. The members' embeddings are brought to length
1 by one number a member, not one a row; and K times 512 numbers are brought back to 512 by the
principal directions of what pictures and texts at hand give.

Knows heads and samples of features; nothing of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from models.encoders.starter.heads import StarterHeads
from models.encoders.starter.towers import TEXT_FEATURES


@torch.no_grad()
def merge(members: Sequence[StarterHeads], image_NF: Tensor, text_MS: Tensor) -> StarterHeads:
    """One pair that scores as the members do together, all but exactly.

    Args:
        members: of one shape and one set of concepts, in evaluation mode.
        image_NF: features of pictures, to measure lengths and directions on.
        text_MS: the same of texts.
    """
    image_KND = [member.image(image_NF) for member in members]
    text_KMD = [member.text(text_MS) for member in members]
    direction_DE = _principal(_end_to_end(image_KND), _end_to_end(text_KMD))
    # what each member's rows are multiplied by, on their way into the merged space
    blocks = torch.split(direction_DE, TEXT_FEATURES, dim=1)
    image_maps = [b / x.norm(dim=1).mean() for b, x in zip(blocks, image_KND, strict=True)]
    text_maps = [b / x.norm(dim=1).mean() for b, x in zip(blocks, text_KMD, strict=True)]
    config = members[0].config
    merged = StarterHeads(
        replace(
            config,
            image_hidden=config.image_hidden * len(members),
            text_hidden=config.text_hidden * len(members),
        )
    ).eval()
    merged.scale.log_scale.copy_(torch.stack([m.scale.log_scale for m in members]).mean())
    merged.image.concept_CD.copy_(members[0].image.concept_CD)
    merged.image.concept_map.weight.copy_(
        _sum(m @ h.image.concept_map.weight for m, h in zip(image_maps, members, strict=True))
    )
    _join(merged, members, image_maps, text_maps)
    return merged


def _join(
    merged: StarterHeads,
    members: Sequence[StarterHeads],
    image_maps: Sequence[Tensor],
    text_maps: Sequence[Tensor],
) -> None:
    """Fill in the corrections, and for texts the identity that a head adds to its own."""
    image, text = merged.image.correction, merged.text.correction
    up_weight, up_bias, down_bias = [], [], []
    for to_merged, member in zip(image_maps, members, strict=True):
        own, norm = member.image.correction, member.image.norm
        # a member's norm has weights of its own: they go into what follows it
        up_weight.append(own.up.weight * norm.weight)
        up_bias.append(own.up.bias + own.up.weight @ norm.bias)
        down_bias.append(to_merged @ (own.down.bias + own.linear.weight @ norm.bias))
    image.up.weight.copy_(torch.cat(up_weight))
    image.up.bias.copy_(torch.cat(up_bias))
    image.down.bias.copy_(_sum(down_bias))
    pairs = list(zip(image_maps, members, strict=True))
    image.down.weight.copy_(torch.cat([m @ h.image.correction.down.weight for m, h in pairs], 1))
    image.linear.weight.copy_(
        _sum(m @ (h.image.correction.linear.weight * h.image.norm.weight) for m, h in pairs)
    )
    pairs = list(zip(text_maps, members, strict=True))
    text.up.weight.copy_(torch.cat([h.text.correction.up.weight for _, h in pairs]))
    text.up.bias.copy_(torch.cat([h.text.correction.up.bias for _, h in pairs]))
    text.down.weight.copy_(torch.cat([m @ h.text.correction.down.weight for m, h in pairs], 1))
    text.down.bias.copy_(_sum(m @ h.text.correction.down.bias for m, h in pairs))
    root = TEXT_FEATURES**0.5  # the correction reads features scaled by it, the identity does not
    text.linear.weight.copy_(
        _sum(m @ h.text.correction.linear.weight for m, h in pairs)
        + (_sum(text_maps) - torch.eye(TEXT_FEATURES)) / root
    )


def _end_to_end(rows_KND: Sequence[Tensor]) -> Tensor:
    return torch.cat([functional.normalize(rows_ND, dim=1) for rows_ND in rows_KND], dim=1)


def _principal(image_NE: Tensor, text_ME: Tensor) -> Tensor:
    """Orthonormal rows [512, E]: the directions that pictures and texts together vary most in."""
    moment_EE = image_NE.T @ image_NE / len(image_NE) + text_ME.T @ text_ME / len(text_ME)
    # double: the sign and order of close directions must not hang on the last bits
    _, vector_EE = torch.linalg.eigh(moment_EE.double())
    kept_DE: Tensor = vector_EE[:, -TEXT_FEATURES:].T.float().contiguous()
    return kept_DE


def _sum(matrices: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(matrices)).sum(dim=0)
