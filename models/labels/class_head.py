"""What tuning on labelled pictures leaves behind: class weights for one pair, and their file.

    head.safetensors   weight [C, D], bias [C], with an adapter down [R, D] and up [D, R];
                       labels, kind, scale and the pair's fingerprint in its metadata

Numpy only; knows how such a head judges pictures, not how it is made. Legend: B pictures, C
classes, D embedding, R the adapter's width.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from models.atomic import replace_file
from models.errors import LabelSetError
from models.vectors import Vectors, unit_rows

Kind: TypeAlias = Literal["linear", "adapter", "prompts"]

HEAD_NAME: Final = "head.safetensors"
MAX_BYTES: Final = 1 << 30
_FORMAT: Final = "1"
_KEY: Final = "diptych_head"


@dataclass(frozen=True, slots=True)
class Adapter:
    """x + up(relu(down(x))), brought back to unit length.

    The residual bottleneck of CLIP-Adapter (Gao et al. 2021) on image features. Its mixing ratio
    is left out: `up` starts at zero, so that training starts from the zero-shot answer.
    """

    down_RD: Vectors
    up_DR: Vectors

    def __call__(self, image_BD: Vectors) -> Vectors:
        hidden_BR = np.maximum(image_BD @ self.down_RD.T, 0.0)
        adapted_BD: Vectors = unit_rows(image_BD + hidden_BR @ self.up_DR.T)
        return adapted_BD


@dataclass(frozen=True, slots=True)
class ClassHead:
    """Labels and what their logits are made of.

    Attributes:
        kind: how it was made.
        labels: in the order of the rows.
        weight_CD: float32.
        bias_C: float32.
        scale: what `image @ weight` is multiplied by.
        adapter: what pictures go through first, if anything.
        model: the pair's name, for messages.
        encoder: digest of the pair's fingerprint.
    """

    kind: Kind
    labels: tuple[str, ...]
    weight_CD: Vectors
    bias_C: npt.NDArray[np.float32]
    scale: float
    adapter: Adapter | None
    model: str
    encoder: str

    def logits(self, image_BD: Vectors) -> npt.NDArray[np.float64]:
        """Unit rows [B, D] -> float64 [B, C]; their softmax are the probabilities."""
        if self.adapter is not None:
            image_BD = self.adapter(image_BD)
        product_BC = image_BD.astype(np.float64) @ self.weight_CD.astype(np.float64).T
        logits_BC: npt.NDArray[np.float64] = self.scale * product_BC + self.bias_C
        return logits_BC

    def check_encoder(self, digest: str) -> None:
        """Refuse another pair than the one it was made with.

        Raises:
            LabelSetError: `label-set-mismatch`.
        """
        if digest != self.encoder:
            raise LabelSetError(
                f"the class head was made with another model ({self.model})",
                code="label-set-mismatch",
                hint=f"use --model {self.model}, or tune again with the model in use",
            )


def save_head(head: ClassHead, path: Path) -> None:
    """Write the file, durably and whole."""
    from safetensors.numpy import save

    tensors: dict[str, Any] = {"weight": head.weight_CD, "bias": head.bias_C}
    if head.adapter is not None:
        tensors |= {"down": head.adapter.down_RD, "up": head.adapter.up_DR}
    tensors = {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
    about: dict[str, Any] = {
        "kind": head.kind,
        "labels": list(head.labels),
        "scale": head.scale,
        "model": head.model,
        "encoder": head.encoder,
    }
    about["sha256"] = _digest(about, tensors)
    metadata = {"format": _FORMAT, _KEY: json.dumps(about, ensure_ascii=False, sort_keys=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, save(tensors, metadata))


def load_head(path: Path) -> ClassHead:
    """Read what `save_head` wrote; everything is checked.

    Raises:
        LabelSetError: missing, damaged, or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        if path.stat().st_size > MAX_BYTES:
            raise LabelSetError(f"{path} is too large for a class head")
        data = path.read_bytes()
    except OSError as error:
        raise LabelSetError(f"cannot read {path}: {error.strerror}") from error
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header["__metadata__"]
        if metadata["format"] != _FORMAT:
            raise LabelSetError(f"{path} was written by another version of Diptych")
        about = json.loads(metadata[_KEY])
        tensors = load(data)
        if about.pop("sha256") != _digest(about, tensors):
            raise ValueError("it is not what was written")
        return _checked(about, tensors)
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise LabelSetError(f"{path} is not a class head, or damaged") from error


def _checked(about: dict[str, Any], tensors: dict[str, Any]) -> ClassHead:
    labels = tuple(str(label) for label in about["labels"])
    kind: Kind = about["kind"]
    weight_CD, bias_C = tensors["weight"], tensors["bias"]
    classes, dim = weight_CD.shape
    adapter = None
    if kind == "adapter":
        adapter = Adapter(tensors["down"], tensors["up"])
        if adapter.up_DR.shape != adapter.down_RD.shape[::-1] or len(adapter.up_DR) != dim:
            raise ValueError("the adapter does not fit")
    if kind not in ("linear", "adapter", "prompts") or len(set(labels)) != classes:
        raise ValueError("the labels do not fit the rows")
    if bias_C.shape != (classes,) or classes < 2:
        raise ValueError("the bias does not fit the rows")
    for value in tensors.values():
        if value.dtype != np.float32 or not np.isfinite(value).all():
            raise ValueError("numbers that are not finite")
    scale = float(about["scale"])
    if not 0 < scale < 1e6:
        raise ValueError("the scale is out of range")
    return ClassHead(
        kind=kind,
        labels=labels,
        weight_CD=weight_CD,
        bias_C=bias_C,
        scale=scale,
        adapter=adapter,
        model=str(about["model"]),
        encoder=str(about["encoder"]),
    )


def _digest(about: dict[str, Any], tensors: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}{value.shape}{value.dtype}".encode())
        digest.update(value.astype("<f4").tobytes())
    return digest.hexdigest()
