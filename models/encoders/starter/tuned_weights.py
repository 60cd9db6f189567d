"""Reads and writes tuned weights of the two towers, for the pair and its training.

They are safetensors files beside the heads; a finished image tower is an ONNX file instead (see
`models.encoders.starter.image_graph`). Only what was tuned is in them; the rest stays the
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
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from models.atomic import replace_file
from models.encoders.starter.description import read_checked
from models.errors import ModelError

TEXT_WEIGHTS_NAME = "text.safetensors"
IMAGE_WEIGHTS_NAME = "image.safetensors"
IMAGE_GRAPH_NAME = "image.onnx"
_CHANGE, _STEP = ".change", ".step"
_WHAT = {
    TEXT_WEIGHTS_NAME: "text tower",
    IMAGE_WEIGHTS_NAME: "image tower",
    IMAGE_GRAPH_NAME: "image tower",
}
Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]


def save_weights(
    weights: Mapping[str, Any],
    directory: Path,
    name: str,
    *,
    own: Mapping[str, Any] | None = None,
) -> str:
    """Write one of the safetensors files -> its sha256, for the description.

    Args:
        weights: the tuned ones, by name: arrays, or tensors on the CPU.
        directory: made if it is missing.
        name: of the file.
        own: the tower's untuned ones; given, matrices and kernels are written as changes.
    """
    from safetensors.numpy import save

    kept: dict[str, npt.NDArray[np.generic]] = {}
    for key, value in weights.items():
        array = as_array(value)
        if own is None or array.ndim < 2:
            kept[key] = in_half(array)
        else:
            kept[key + _CHANGE], kept[key + _STEP] = in_steps(array - as_array(own[key]))
    data = save(kept)
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / name, data)
    return hashlib.sha256(data).hexdigest()


def as_array(value: Any) -> npt.NDArray[np.float32]:
    """An array, or a tensor on any device, as float32; shares memory where it can."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy()
    array: npt.NDArray[np.float32] = np.asarray(value, np.float32)
    return array


def in_half(value: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """fp16; what does not fit becomes infinite, and is refused when it is read."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(value, np.float16)


def in_steps(
    value: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """(int8, float32 [rows]) whose product is the value, to half a 127th of a row's largest."""
    step_R = np.abs(value).reshape(len(value), -1).max(axis=1).astype(np.float32) / np.float32(127)
    whole = value / along(np.maximum(step_R, np.finfo(np.float32).tiny), value.ndim)
    return np.ascontiguousarray(np.rint(whole).astype(np.int8)), step_R


def along(step_R: npt.NDArray[np.float32], ndim: int) -> npt.NDArray[np.float32]:
    """One number for each row, in the shape that multiplies a tensor of `ndim` dimensions."""
    return step_R.reshape(-1, *[1] * (ndim - 1))


def load_weights(directory: Path, name: str, sha256: str) -> dict[str, npt.NDArray[np.float32]]:
    """Read what `save_weights` wrote, in fp32, for `install`.

    Raises:
        ModelError: missing, another file than the description names, or not finite.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = directory / name
    data = read_checked(path, sha256, _WHAT[name])
    try:
        weights = {key: value.astype(np.float32) for key, value in load(data).items()}
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path} does not hold weights of a {_WHAT[name]}: {error}") from error
    if not all(np.isfinite(value).all() for value in weights.values()):
        raise ModelError(f"{path} holds NaN or infinity")
    return weights


def copy_weights(source: Path, directory: Path, parts: Mapping[str, str]) -> None:
    """Take the files along to another pair over the same towers; nothing if there are none.

    Args:
        source: where a pair was loaded from.
        directory: of the new pair; made if it is missing.
        parts: what the source's description names.
    """
    for name in _WHAT.keys() & parts.keys():
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(directory / name, (source / name).read_bytes())


def install(weights: Arrays, own: Arrays, name: str) -> None:
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
        target: Any = own[plain]
        if step_R is not None and is_change:
            target += value * along(step_R, value.ndim)
        else:
            target[...] = value
