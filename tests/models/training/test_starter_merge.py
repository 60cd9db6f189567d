"""Merged heads score as their members do together."""

from __future__ import annotations

import pytest
import torch

from models.encoders.starter.description import (
    IMAGE_FEATURES,
    IMAGENET_CLASSES,
    TEXT_FEATURES,
    HeadsConfig,
)
from models.encoders.starter.heads import StarterHeads
from models.training.starter_stages import merge


def member(seed: int, strength: float) -> StarterHeads:
    """Heads away from their start in every parameter, the norm's included."""
    torch.manual_seed(seed)
    heads = StarterHeads(HeadsConfig(image_hidden=32, text_hidden=24))
    with torch.no_grad():
        for parameter in heads.parameters():
            if parameter.ndim:
                parameter.add_(strength * torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
        concepts = torch.randn(IMAGENET_CLASSES, TEXT_FEATURES, generator=seeded(9))
        heads.image.concept_CD.copy_(torch.nn.functional.normalize(concepts, dim=1))
    return heads.eval()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features() -> tuple[torch.Tensor, torch.Tensor]:
    image_NF = torch.rand(200, IMAGE_FEATURES, generator=seeded(1))
    text_MS = torch.nn.functional.normalize(
        torch.randn(300, TEXT_FEATURES, generator=seeded(2)), dim=1
    )
    return image_NF, text_MS


def test_one_member_stays_what_it_is() -> None:
    image_NF, text_MS = features()
    one = member(0, 0.5)
    merged = merge([one], image_NF, text_MS)
    expected = one.embed_images(image_NF) @ one.embed_texts(text_MS).T
    found = merged.embed_images(image_NF) @ merged.embed_texts(text_MS).T
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("count", [2, 3])
def test_several_score_as_their_mean_does(count: int) -> None:
    image_NF, text_MS = features()
    members = [member(seed, 0.3) for seed in range(count)]
    merged = merge(members, image_NF, text_MS)
    each = [m.embed_images(image_NF) @ m.embed_texts(text_MS).T for m in members]
    together = torch.stack(each).mean(dim=0)
    found = merged.embed_images(image_NF) @ merged.embed_texts(text_MS).T
    correlation = torch.corrcoef(torch.stack([found.flatten(), together.flatten()]))[0, 1]
    assert correlation > 0.99
    # and no member alone comes as near
    alone = max(torch.corrcoef(torch.stack([e.flatten(), together.flatten()]))[0, 1] for e in each)
    assert alone < correlation
    assert merged.config.image_hidden == 32 * count
