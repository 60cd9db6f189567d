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

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.atomic import replace_file
from models.encoders.base.logit_scale import LogitScale
from models.encoders.starter import DESCRIPTION_NAME
from models.encoders.starter.towers import (
    IMAGE_FEATURES,
    IMAGENET_CLASSES,
    TEXT_FEATURES,
    TextTower,
    as_tensor,
    load_classifier,
)
from models.errors import ModelError
from models.labels.prompts import build_prompts

FORMAT = 2
"""1 scaled the concepts where 2 maps them: such a pair is refused and has to be trained again. 2
may also name further weight files, without which the heads must not be used."""
WEIGHTS_NAME = "heads.safetensors"
TEMPLATES = (
    "{c}",
    "a {c}",
    "A {c}.",
    "a photo of a {c}.",
    "a close-up photo of a {c}",
    "a picture of the {c}",
)
"""Sentences that a class's name is put into before it becomes a direction."""


@dataclass(frozen=True, slots=True)
class HeadsConfig:
    """The shape of the heads; saved beside the weights.

    The dimension of the shared space is that of the sentence encoder, because both heads start
    there.
    """

    image_hidden: int = 1024
    text_hidden: int = 1024
    image_dropout: float = 0.4
    text_dropout: float = 0.1
    concept_temperature: float = 0.5


class ImageHead(nn.Module):
    """Image features [B, F] -> [B, D], not normalised."""

    weight_CF: Tensor
    bias_C: Tensor
    concept_CD: Tensor

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        weight_CF, bias_C = load_classifier()
        # the classifier belongs to the tower's package: used here, not saved with the heads
        self.register_buffer("weight_CF", weight_CF, persistent=False)
        self.register_buffer("bias_C", bias_C, persistent=False)
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
    """Both heads and the logit scale."""

    def __init__(self, config: HeadsConfig, *, initial_scale: float = 1 / 0.07) -> None:
        super().__init__()
        self.config = config
        self.image = ImageHead(config)
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


def save_heads(
    heads: StarterHeads, directory: Path, *, parts: Mapping[str, str] | None = None
) -> None:
    """Write `heads.safetensors` (fp16) and, last, `diptych_starter.json` into a directory.

    fp16 halves the file; on the embeddings it costs less than 1e-3 of cosine.

    Args:
        heads: what to save.
        directory: made if it is missing.
        parts: name -> sha256 of tuned weights of the towers, already in the directory.

    Raises:
        ModelError: `weights-not-finite`; nothing is written.
    """
    from safetensors.torch import save

    state = {name: value.detach().half().contiguous() for name, value in heads.state_dict().items()}
    # the one number that fp16 would visibly round
    state["scale.log_scale"] = heads.scale.log_scale.detach().float()
    for name, value in state.items():
        if not bool(value.isfinite().all()):
            raise ModelError(
                f"{name} of the heads is not finite in fp16, so they were not saved",
                code="weights-not-finite",
                hint="train with a lower --lr",
            )
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / WEIGHTS_NAME, save(state))
    description: dict[str, Any] = {"format": FORMAT, "heads": asdict(heads.config)}
    if parts:
        description["parts"] = dict(parts)
    text = json.dumps(description, indent=2, sort_keys=True) + "\n"
    replace_file(directory / DESCRIPTION_NAME, text.encode())


def load_heads(directory: Path) -> tuple[StarterHeads, str]:
    """Read what `save_heads` wrote -> (heads in evaluation mode, sha256 of the weights file).

    Raises:
        ModelError: missing, damaged, of another format, or with values that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    config = _read_config(directory / DESCRIPTION_NAME)
    path = directory / WEIGHTS_NAME
    data = _read(path)
    heads = StarterHeads(config)
    try:
        # bytes, not a path: what is hashed is what is loaded
        state = {name: value.float() for name, value in load(data).items()}
        heads.load_state_dict(state)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{directory / WEIGHTS_NAME} does not hold these heads: {error}"
        ) from error
    if not all(bool(value.isfinite().all()) for value in state.values()):
        raise ModelError(f"{directory / WEIGHTS_NAME} holds NaN or infinity")
    return heads.eval().requires_grad_(False), hashlib.sha256(data).hexdigest()


def read_parts(directory: Path) -> dict[str, str]:
    """Name -> sha256 of the tuned weights that belong to the heads in a directory.

    Raises:
        ModelError: the description is missing or damaged.
    """
    path = directory / DESCRIPTION_NAME
    try:
        parts = _read_description(path).get("parts", {})
        if not all(isinstance(value, str) for value in parts.values()):
            raise ModelError(f"{path} does not name its parts by their sha256")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} is not a description of starter heads") from error
    return dict(parts)


def _read_description(path: Path) -> Any:
    description: Any = json.loads(_read(path))
    if description["format"] != FORMAT:
        raise ModelError(
            f"{path} has format {description['format']!r}, this version reads {FORMAT}",
            hint="use the version of diptych that wrote it, or train the pair again",
        )
    return description


def _read_config(path: Path) -> HeadsConfig:
    try:
        description = _read_description(path)
        values = description["heads"]
        known = {field.name: field.type for field in fields(HeadsConfig)}
        if set(values) != set(known):
            raise ModelError(f"{path} describes heads this version does not know")
        sizes_ok = all(
            type(values[name]) is int and 0 < values[name] <= 65_536
            if kind == "int"
            else isinstance(values[name], (int, float)) and 0 <= values[name] < 100
            for name, kind in known.items()
        )
        if not sizes_ok or not values["concept_temperature"]:
            raise ModelError(f"{path} holds sizes out of range")
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} is not a description of starter heads") from error
    return HeadsConfig(**values)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
