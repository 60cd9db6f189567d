"""Tuned weights of the sentence encoder's network: `text.safetensors`, fp16, beside the heads.

The embedding table is not among them: it stays the package's. The description of a pair names the
file's sha256, so that heads never meet a network they were not trained on; a pair without that
name uses the package's own weights.

Knows nothing of training.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from models.errors import ModelError
from models.files import replace_file
from models.starter.text_network import network_arrays

TEXT_WEIGHTS_NAME = "text.safetensors"


def save_text_weights(weights: dict[str, Tensor], directory: Path) -> str:
    """Write the file -> its sha256, for the description."""
    from safetensors.torch import save

    data = save({name: value.detach().half().contiguous() for name, value in weights.items()})
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / TEXT_WEIGHTS_NAME, data)
    return hashlib.sha256(data).hexdigest()


def load_text_weights(directory: Path, sha256: str) -> dict[str, Tensor]:
    """Read what `save_text_weights` wrote, in fp32.

    Raises:
        ModelError: missing, another file than the description names, or not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = directory / TEXT_WEIGHTS_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ModelError(
            f"{path} is not the text network these heads were trained on",
            code="model-wrong-weights",
            hint="copy the whole directory of a trained pair, not single files",
        )
    try:
        weights = {name: value.float() for name, value in load(data).items()}
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path} does not hold a text network: {error}") from error
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise ModelError(f"{path} holds NaN or infinity")
    return weights


def copy_text_weights(source: Path, directory: Path, parts: dict[str, str]) -> None:
    """Take the file along to another pair over the same text network; nothing if there is none.

    Args:
        source: where a pair was loaded from.
        directory: of the new pair; made if it is missing.
        parts: what the source's description names (see `models.starter.heads.read_parts`).
    """
    if TEXT_WEIGHTS_NAME in parts:
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(directory / TEXT_WEIGHTS_NAME, (source / TEXT_WEIGHTS_NAME).read_bytes())


def install(weights: dict[str, Tensor], backend: Any) -> None:
    """Put tuned weights into the package's numpy network.

    Raises:
        ModelError: the names or shapes are not those of the network.
    """
    own = network_arrays(backend)
    if {name: tuple(value.shape) for name, value in weights.items()} != {
        name: array.shape for name, array in own.items()
    }:
        raise ModelError("the tuned text weights do not fit the sentence encoder's network")
    for name, array in own.items():
        np.copyto(array, weights[name].numpy())
