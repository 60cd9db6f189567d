"""Reads and writes tuned weights of the two towers, for the pair and its training.

They are safetensors files beside the heads. Only what was tuned is in them; the rest stays the
packages'. A tensor is either the weights in fp16, or, under its name with `.change` behind it, how
far they moved: whole numbers of 8 bits, in steps (`.step`) of their own for each row. Weights that
were tuned moved little, so 8 bits of the change say more than 16 of the weight, in half the bytes.
The description of a pair names each file by its sha256, so that heads never meet a tower they were
not trained on; a pair that names none uses the packages' own weights.

Knows files and names of tensors, nothing of training or of what the towers do with the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.atomic import replace_file
from models.errors import ModelError

TEXT_WEIGHTS_NAME = "text.safetensors"
IMAGE_WEIGHTS_NAME = "image.safetensors"
_CHANGE, _STEP = ".change", ".step"
_WHAT = {TEXT_WEIGHTS_NAME: "text tower", IMAGE_WEIGHTS_NAME: "image tower"}


def save_weights(
    weights: Mapping[str, Tensor],
    directory: Path,
    name: str,
    *,
    own: Mapping[str, Tensor] | None = None,
) -> str:
    """Write one of the files -> its sha256, for the description.

    Args:
        weights: the tuned ones, by name.
        directory: made if it is missing.
        name: of the file.
        own: the tower's untuned ones; given, matrices and kernels are written as changes.
    """
    from safetensors.torch import save

    kept: dict[str, Tensor] = {}
    for key, value in weights.items():
        if own is None or value.ndim < 2:
            kept[key] = value.detach().half().contiguous()
        else:
            kept[key + _CHANGE], kept[key + _STEP] = _in_steps(value.detach() - own[key])
    data = save(kept)
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / name, data)
    return hashlib.sha256(data).hexdigest()


def _in_steps(change: Tensor) -> tuple[Tensor, Tensor]:
    """(int8, fp32 [rows]) whose product is the change, to half a 127th of a row's largest."""
    step_R = change.flatten(1).abs().amax(dim=1).float() / 127
    whole = change / step_R.clamp(min=torch.finfo(torch.float32).tiny).view(_rows_of(change))
    return whole.round().to(torch.int8).contiguous(), step_R


def _rows_of(tensor: Tensor) -> list[int]:
    return [-1, *[1] * (tensor.ndim - 1)]


def load_weights(directory: Path, name: str, sha256: str) -> dict[str, Tensor]:
    """Read what `save_weights` wrote, in fp32, for `install`.

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
        parts: what the source's description names (see `models.encoders.starter.heads.read_parts`).
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
        if key.endswith(_STEP):
            continue
        plain, step_R = key.removesuffix(_CHANGE), weights.get(key.removesuffix(_CHANGE) + _STEP)
        is_change = plain != key
        fits = plain in own and own[plain].shape == value.shape
        if not fits or (is_change and (step_R is None or step_R.shape != value.shape[:1])):
            raise ModelError(f"{key} of the tuned weights does not fit the {_WHAT[name]}")
        if step_R is not None and is_change:
            own[plain].add_(value * step_R.view(_rows_of(value)))
        else:
            own[plain].copy_(value)
