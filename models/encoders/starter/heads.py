"""The starter's trained part: two small heads into one space, and their file.

Both heads start where the towers already agree and learn a correction. The text head starts as
the identity on the sentence embedding. The image head starts as ConSE (Norouzi et al. 2014,
"Zero-Shot Learning by Convex Combination of Semantic Embeddings"): the ImageNet classifier that
came with the image tower says how much a picture is each of 1,000 named things, and the mean of
those names' sentence embeddings, so weighted, is a point of the text space. That keeps the breadth
of ImageNet's names; what is learned from captions is added to it.

Knows nothing of pictures, tokenizers or training loops. Legend: B batch, D embedding, F image
features (1,280), S sentence features (512), C ImageNet classes (1,000), H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoders.base.logit_scale import LogitScale
from models.encoders.starter.description import (
    IMAGE_FEATURES,
    IMAGENET_CLASSES,
    TEXT_FEATURES,
    Description,
    HeadsConfig,
    read_description,
    write_description,
)
from models.encoders.starter.head_arrays import CLASSIFIER, HeadArrays, read_heads, write_heads
from models.encoders.starter.image_tower import as_tensor, load_classifier
from models.encoders.starter.text_tower import TextTower
from models.encoders.starter.tuned_weights import as_array
from models.labels.prompts import build_prompts

TEMPLATES = (
    "{c}",
    "a {c}",
    "A {c}.",
    "a photo of a {c}.",
    "a close-up photo of a {c}",
    "a picture of the {c}",
)
"""Sentences that a class's name is put into before it becomes a direction."""


class ImageHead(nn.Module):
    """Image features [B, F] -> [B, D], not normalised."""

    weight_CF: Tensor
    bias_C: Tensor
    concept_CD: Tensor

    def __init__(
        self, config: HeadsConfig, classifier: tuple[Tensor, Tensor] | None = None
    ) -> None:
        super().__init__()
        weight_CF, bias_C = load_classifier() if classifier is None else classifier
        self.register_buffer("weight_CF", weight_CF)
        self.register_buffer("bias_C", bias_C)
        self.register_buffer("concept_CD", torch.zeros(IMAGENET_CLASSES, TEXT_FEATURES))
        self.temperature = config.concept_temperature
        self.concept_map = nn.Linear(TEXT_FEATURES, TEXT_FEATURES, bias=False)
        nn.init.eye_(self.concept_map.weight)
        self.norm = nn.LayerNorm(IMAGE_FEATURES)
        self.correction = Correction(IMAGE_FEATURES, config.image_hidden, config.image_dropout)

    def forward(self, features_BF: Tensor) -> Tensor:
        logits_BC = features_BF @ self.weight_CF.T + self.bias_C
        probability_BC = (logits_BC / self.temperature).softmax(dim=1)
        concept_BD = functional.normalize(probability_BC @ self.concept_CD, dim=1)
        correction_BD: Tensor = self.correction(self.norm(features_BF))
        mapped_BD: Tensor = self.concept_map(concept_BD)
        return mapped_BD + correction_BD


class TextHead(nn.Module):
    """Sentence features [B, S], unit rows -> [B, D], not normalised; D = S."""

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.correction = Correction(TEXT_FEATURES, config.text_hidden, config.text_dropout)

    def forward(self, features_BS: Tensor) -> Tensor:
        # unit rows have entries around 1/sqrt(S): scaled to 1, where GELU is not just linear
        correction_BD: Tensor = self.correction(features_BS * TEXT_FEATURES**0.5)
        return features_BS + correction_BD


class Correction(nn.Module):
    """A two-layer perceptron plus a linear path, both starting at zero."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, TEXT_FEATURES)
        self.linear = nn.Linear(width, TEXT_FEATURES, bias=False)
        self.dropout = nn.Dropout(dropout)
        for zero in (self.down.weight, self.down.bias, self.linear.weight):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(x)
        result: Tensor = self.down(self.dropout(functional.gelu(self.up(x)))) + self.linear(x)
        return result


class StarterHeads(nn.Module):
    """Both heads and the logit scale.

    Args:
        classifier: weight and bias over ImageNet's classes; None takes the image tower package's.
    """

    def __init__(
        self,
        config: HeadsConfig,
        *,
        initial_scale: float = 1 / 0.07,
        classifier: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.image = ImageHead(config, classifier)
        self.text = TextHead(config)
        self.scale = LogitScale(initial_scale)

    @property
    def dim(self) -> int:
        return TEXT_FEATURES

    @property
    def device(self) -> torch.device:
        return self.image.weight_CF.device

    def embed_images(self, features_BF: Tensor) -> Tensor:
        """Unit rows [B, D]."""
        return functional.normalize(self.image(features_BF), dim=1)

    def embed_texts(self, features_BS: Tensor) -> Tensor:
        """Unit rows [B, D]."""
        return functional.normalize(self.text(features_BS), dim=1)


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


def head_arrays(heads: StarterHeads) -> HeadArrays:
    """The same heads in numpy, as they are now; a copy."""
    state = {name: as_array(value).copy() for name, value in heads.state_dict().items()}
    return HeadArrays.of(state, heads.config)


def save_heads(
    heads: StarterHeads,
    directory: Path,
    *,
    parts: Mapping[str, str] | None = None,
    compact: bool = False,
    name: str = "",
) -> None:
    """Write `heads.safetensors` and, last, `diptych_starter.json` into a directory.

    Args:
        heads: what to save.
        directory: made if it is missing.
        parts: name -> sha256 of tuned weights of the towers, already in the directory.
        compact: most matrices in 8 bits, the others in fp16.
        name: see `models.encoders.starter.description.Description`.

    Raises:
        ModelError: `weights-not-finite`; nothing is written.
    """
    state = {key: as_array(value) for key, value in heads.state_dict().items()}
    sha256 = write_heads(state, directory, compact=compact)
    description = Description(heads.config, dict(parts or {}), name, sha256 if name else "")
    write_description(directory, description)


def load_heads(directory: Path) -> tuple[StarterHeads, str]:
    """Read what `save_heads` wrote -> (heads in evaluation mode, sha256 of the weights file).

    Raises:
        ModelError: missing, damaged, of another format, or with values that are not finite.
    """
    array, names, sha256 = read_heads(directory)
    state = {name: torch.from_numpy(np.array(array(name))) for name in sorted(names)}
    classifier = None
    if names.issuperset(CLASSIFIER):
        classifier = state[CLASSIFIER[0]], state[CLASSIFIER[1]]
    heads = StarterHeads(read_description(directory).heads, classifier=classifier)
    heads.load_state_dict({**heads.state_dict(), **state})
    return heads.eval().requires_grad_(False), sha256
