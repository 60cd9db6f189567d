"""The 1,000 things the image tower was taught to name, as points of the text space.

The names are WordNet's, as timm ships them for ImageNet-1k. Knows nothing of heads or training.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.encoders.starter.towers import IMAGENET_CLASSES, TextTower, as_tensor
from models.labels.prompts import build_prompts

TEMPLATES = (
    "{c}",
    "a {c}",
    "A {c}.",
    "a photo of a {c}.",
    "a close-up photo of a {c}",
    "a picture of the {c}",
)


def class_names() -> list[list[str]]:
    """The synonyms of every ImageNet class, in the classifier's order."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return [
        [name.strip() for name in info.index_to_description(index).split(",")]
        for index in range(IMAGENET_CLASSES)
    ]


def concept_matrix(tower: TextTower) -> Tensor:
    """One direction per class, float32 [C, S], unit rows: the mean over synonyms and templates."""
    rows = []
    for names in class_names():
        prompts = [prompt for row in build_prompts(names, TEMPLATES) for prompt in row]
        features_TS = as_tensor(tower.features([tower.prepare(prompt) for prompt in prompts]))
        rows.append(features_TS.mean(dim=0))
    return functional.normalize(torch.stack(rows), dim=1)
