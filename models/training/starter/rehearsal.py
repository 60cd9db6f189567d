"""Pairs made without pictures: the ImageNet classifier's own idea of each class, with its name.

The captions at hand speak of few things. The frozen tower knows a thousand, and its classifier
tells in which direction of feature space each lies: row c of its weights. A pseudo-picture of
class c is a feature vector moved from the mean in that direction, on the background of a real
picture (the scatter of real ones around it). Rehearsing these pairs keeps the names in reach, in
the manner of rehearsal against catastrophic forgetting (Robins 1995).

Knows the tower's classifier, no data. Legend: C classes, F image features, S sentence features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.encoders.starter.heads import TEMPLATES, class_names
from models.encoders.starter.towers import IMAGENET_CLASSES, load_classifier
from models.labels.prompts import build_prompts
from models.training.starter.features import FeatureMaker

BACKGROUND = 0.7
"""How much of a real picture's own deviation from the mean stays in a pseudo-picture."""


class Rehearsal:
    """Draws pseudo-pairs; every class is equally likely."""

    def __init__(self, image_NF: Tensor, maker: FeatureMaker) -> None:
        weight_CF, _ = load_classifier()
        self._direction_CF = functional.normalize(weight_CF - weight_CF.mean(dim=0), dim=1)
        self._image_NF = image_NF
        self._mean_F = image_NF.mean(dim=0)
        self._spread = (image_NF - self._mean_F).norm(dim=1).mean()
        prompts: list[str] = []
        counts = []
        for names in class_names():
            lines = [prompt for line in build_prompts(names, TEMPLATES) for prompt in line]
            prompts += lines
            counts.append(len(lines))
        self._text_MS = maker.texts(prompts)
        self._count_C = torch.tensor(counts)
        self._start_C = self._count_C.cumsum(0) - self._count_C

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(pseudo features [n, F], captions [n, S], class [n])."""
        class_B = torch.randint(IMAGENET_CLASSES, (size,), generator=generator)
        other_B = torch.randint(len(self._image_NF), (size,), generator=generator)
        strength_B1 = self._spread * (0.5 + torch.rand(size, 1, generator=generator))
        features_BF = (
            self._mean_F
            + strength_B1 * self._direction_CF[class_B]
            + BACKGROUND * (self._image_NF[other_B] - self._mean_F)
        ).relu()  # pooled ReLU6 features are never negative
        chance_B = torch.rand(size, generator=generator, dtype=torch.float64)
        caption_B = self._start_C[class_B] + (chance_B * self._count_C[class_B]).long()
        return features_BF, self._text_MS[caption_B], class_B
