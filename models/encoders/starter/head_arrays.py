"""The starter's heads in numpy, and their file; run by the pair, written by the heads' training.

The same function as `models.encoders.starter.heads`, which says why it is made so. In the file
matrices may be whole numbers of 8 bits, in steps (`.step`) of their own for each row, which on the
embeddings cost less than 1e-5 of cosine; the linear paths, which cost the most, stay in fp16.

Legend: B batch, D embedding, F image features (1,280), S sentence features (512), C ImageNet
classes (1,000), H hidden.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.atomic import replace_file
from models.encoders.starter.description import (
    IMAGE_FEATURES,
    IMAGENET_CLASSES,
    TEXT_FEATURES,
    HeadsConfig,
    read,
    read_description,
)
from models.encoders.starter.tuned_weights import along, in_half, in_steps
from models.errors import ModelError
from models.vectors import Vectors, unit_rows

WEIGHTS_NAME = "heads.safetensors"
MAX_LOGIT_SCALE = 100.0
CLASSIFIER = ("image.weight_CF", "image.bias_C")
"""Missing from the file of an earlier format."""
_STEP = ".step"
_EXACT = ("linear.weight", "concept_map.weight")
"""Not in 8 bits: everything goes through them."""
_LAYER_NORM_EPSILON = 1e-5


class HeadArrays:
    """Both heads and the logit scale.

    Args:
        weights: float32 arrays by the names of the heads' state.
        config: their shape.
    """

    def __init__(self, read: Callable[[str], Vectors], config: HeadsConfig) -> None:
        self._read = read
        self._temperature = np.float32(config.concept_temperature)

    dim = TEXT_FEATURES

    @classmethod
    def of(cls, state: Mapping[str, Vectors], config: HeadsConfig) -> HeadArrays:
        """Heads of arrays at hand."""
        return cls(state.__getitem__, config)

    @cached_property
    def scale(self) -> float:
        """The logit scale, at most 100."""
        return min(float(np.exp(self._read("scale.log_scale"))), MAX_LOGIT_SCALE)

    def embed_images(self, features_BF: Vectors) -> Vectors:
        """Picture features -> [B, D], not normalised."""
        w = self._image
        logits_BC = (features_BF @ w["weight_CF"].T + w["bias_C"]) / self._temperature
        logits_BC -= logits_BC.max(axis=1, keepdims=True)
        probability_BC = np.exp(logits_BC, out=logits_BC)
        probability_BC /= probability_BC.sum(axis=1, keepdims=True)
        concept_BD = unit_rows(probability_BC @ w["concept_CD"])
        centred_BF = features_BF - features_BF.mean(axis=1, keepdims=True)
        variance_B1 = np.square(centred_BF).mean(axis=1, keepdims=True)
        norm_BF = centred_BF / np.sqrt(variance_B1 + _LAYER_NORM_EPSILON)
        norm_BF = norm_BF * w["norm.weight"] + w["norm.bias"]
        mapped_BD: Vectors = concept_BD @ w["concept_map.weight"].T
        return mapped_BD + _corrected(norm_BF, w)

    def embed_texts(self, features_BS: Vectors) -> Vectors:
        """Sentence features, unit rows -> [B, D], not normalised."""
        scaled_BS = features_BS * np.float32(TEXT_FEATURES**0.5)
        return features_BS + _corrected(scaled_BS, self._text)

    # each half is widened when it is first asked for: a text query needs no picture's head

    @cached_property
    def _image(self) -> dict[str, Vectors]:
        names = ("weight_CF", "bias_C", "concept_CD", "concept_map.weight", "norm.weight")
        return self._half("image", (*names, "norm.bias"))

    @cached_property
    def _text(self) -> dict[str, Vectors]:
        return self._half("text", ())

    def _half(self, half: str, names: tuple[str, ...]) -> dict[str, Vectors]:
        layers = ("up.weight", "up.bias", "down.weight", "down.bias", "linear.weight")
        names += tuple(f"correction.{layer}" for layer in layers)
        return {name: self._read(f"{half}.{name}") for name in names}


def _corrected(x: Vectors, w: Mapping[str, Vectors]) -> Vectors:
    """A two-layer perceptron plus a linear path."""
    hidden_BH = gelu(x @ w["correction.up.weight"].T + w["correction.up.bias"])
    result: Vectors = hidden_BH @ w["correction.down.weight"].T
    result += w["correction.down.bias"]
    result += x @ w["correction.linear.weight"].T
    return result


def gelu(x: Vectors) -> Vectors:
    """x times the normal distribution's integral up to x (Hendrycks & Gimpel 2016).

    numpy has no error function: this is Abramowitz & Stegun 7.1.26, exact to 1.5e-7, which is
    what a float32 holds beside 1.
    """
    z = np.abs(x) * np.float32(2**-0.5)
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = np.full_like(t, 1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series *= t
        series += np.float32(factor)
    tail = series * t * np.exp(-z * z)  # 1 - erf(z)
    result: Vectors = x * np.where(x > 0, 1 - tail / 2, tail / 2)
    return result


def shapes(config: HeadsConfig) -> dict[str, tuple[int, ...]]:
    """What the file must hold, the classifier included."""
    found: dict[str, tuple[int, ...]] = {
        "scale.log_scale": (),
        "image.weight_CF": (IMAGENET_CLASSES, IMAGE_FEATURES),
        "image.bias_C": (IMAGENET_CLASSES,),
        "image.concept_CD": (IMAGENET_CLASSES, TEXT_FEATURES),
        "image.concept_map.weight": (TEXT_FEATURES, TEXT_FEATURES),
        "image.norm.weight": (IMAGE_FEATURES,),
        "image.norm.bias": (IMAGE_FEATURES,),
    }
    widths = (("image", IMAGE_FEATURES, config.image_hidden),)
    for half, width, hidden in (*widths, ("text", TEXT_FEATURES, config.text_hidden)):
        found |= {
            f"{half}.correction.up.weight": (hidden, width),
            f"{half}.correction.up.bias": (hidden,),
            f"{half}.correction.down.weight": (TEXT_FEATURES, hidden),
            f"{half}.correction.down.bias": (TEXT_FEATURES,),
            f"{half}.correction.linear.weight": (TEXT_FEATURES, width),
        }
    return found


def write_heads(state: Mapping[str, Vectors], directory: Path, *, compact: bool = False) -> str:
    """Write `heads.safetensors` -> its sha256.

    fp16 halves the file; on the embeddings it costs less than 1e-3 of cosine.

    Args:
        state: float32 arrays by name.
        directory: made if it is missing.
        compact: most matrices in 8 bits.

    Raises:
        ModelError: `weights-not-finite`; nothing is written.
    """
    from safetensors.numpy import save

    kept: dict[str, npt.NDArray[np.generic]] = {}
    for name, value in state.items():
        if name == "scale.log_scale":  # the one number that fp16 would visibly round
            kept[name] = np.asarray(value, np.float32)
        elif compact and value.ndim == 2 and not name.endswith(_EXACT):
            kept[name], kept[name + _STEP] = in_steps(value)
        else:
            kept[name] = in_half(value)
    for name, array in kept.items():
        if not np.isfinite(array).all():
            raise ModelError(
                f"{name} of the heads is not finite in fp16, so they were not saved",
                code="weights-not-finite",
                hint="train with a lower --lr",
            )
    data = save(kept)
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / WEIGHTS_NAME, data)
    return hashlib.sha256(data).hexdigest()


def read_heads(directory: Path) -> tuple[Callable[[str], Vectors], frozenset[str], str]:
    """Open what `write_heads` wrote -> (name -> float32 array, names, sha256 of the file).

    Raises:
        ModelError: missing, damaged, another file than the description names, of another shape,
            or with values that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    description = read_description(directory)
    path = directory / WEIGHTS_NAME
    data = read(path)  # bytes, not a path: what is hashed is what is loaded
    sha256 = hashlib.sha256(data).hexdigest()
    if description.heads_sha256 not in ("", sha256):
        raise ModelError(
            f"{path} is not the file that its description names",
            code="model-wrong-weights",
            hint="copy the whole directory of a pair, not single files",
        )
    try:
        kept = load(data)
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path} does not hold these heads: {error}") from error
    wanted = shapes(description.heads)
    missing = wanted.keys() - kept.keys() - set(CLASSIFIER)
    if missing:
        raise ModelError(f"{path} does not hold these heads: {min(missing)} is missing")
    for name, value in kept.items():
        plain = name.removesuffix(_STEP)
        shape = wanted.get(plain)
        if plain != name and shape is not None:
            shape = shape[:1]
        if (
            shape is None
            or value.shape != shape
            or (value.dtype == np.int8) != (plain == name and plain + _STEP in kept)
        ):
            raise ModelError(f"{path} does not hold these heads: {name} does not fit")
        if value.dtype != np.int8 and not np.isfinite(value).all():
            raise ModelError(f"{path} holds NaN or infinity")

    def array(name: str) -> Vectors:
        value = kept[name].astype(np.float32)
        step_R = kept.get(name + _STEP)
        return value if step_R is None else value * along(step_R, value.ndim)

    return array, frozenset(wanted.keys() & kept.keys()), sha256
