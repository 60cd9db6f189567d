"""Tuned weights of the two towers: safetensors files in fp16, beside the heads.

Only what was tuned is in them; the rest stays the packages'. The description of a pair names each
file by its sha256, so that heads never meet a tower they were not trained on; a pair that names
none uses the packages' own weights.

Knows files and names of tensors, nothing of training or of what the towers do with the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.errors import ModelError
from models.files import replace_file

TEXT_WEIGHTS_NAME = "text.safetensors"
IMAGE_WEIGHTS_NAME = "image.safetensors"
_WHAT = {TEXT_WEIGHTS_NAME: "text tower", IMAGE_WEIGHTS_NAME: "image tower"}


def save_weights(weights: Mapping[str, Tensor], directory: Path, name: str) -> str:
    """Write one of the files -> its sha256, for the description."""
    from safetensors.torch import save

    data = save({key: value.detach().half().contiguous() for key, value in weights.items()})
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / name, data)
    return hashlib.sha256(data).hexdigest()


def load_weights(directory: Path, name: str, sha256: str) -> dict[str, Tensor]:
    """Read what `save_weights` wrote, in fp32.

    Raises:
        ModelError: missing, another file than the description names, or not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = directory / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ModelError(
            f"{path} is not the {_WHAT[name]} these heads were trained on",
            code="model-wrong-weights",
            hint="copy the whole directory of a trained pair, not single files",
        )
    try:
        weights = {key: value.float() for key, value in load(data).items()}
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path} does not hold weights of a {_WHAT[name]}: {error}") from error
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise ModelError(f"{path} holds NaN or infinity")
    return weights


def copy_weights(source: Path, directory: Path, parts: Mapping[str, str]) -> None:
    """Take the files along to another pair over the same towers; nothing if there are none.

    Args:
        source: where a pair was loaded from.
        directory: of the new pair; made if it is missing.
        parts: what the source's description names (see `models.starter.heads.read_parts`).
    """
    for name in _WHAT.keys() & parts.keys():
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(directory / name, (source / name).read_bytes())


@torch.no_grad()
def install(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> None:
    """Put tuned weights over a tower's own, in place; what is not tuned stays.

    Args:
        weights: the tuned ones.
        own: the tower's, by name.
        name: of the file, for the message.

    Raises:
        ModelError: a name or shape is not one of the tower's.
    """
    for key, value in weights.items():
        if key not in own or own[key].shape != value.shape:
            raise ModelError(f"{key} of the tuned weights does not fit the {_WHAT[name]}")
        own[key].copy_(value)
