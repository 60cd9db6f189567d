"""`StarterEncoder`: the towers, then the trained heads, as an `Encoder`; see the registry.

Knows nothing of how the heads were trained. The towers' weights come from their own packages, the
heads' from this one, so it needs no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from models.devices import (
    one_thread,
    resolve_device,
    resolve_precision,
    set_threads,
    settle_threads,
)
from models.encoder import (
    PREPARED_IMAGE,
    Fingerprint,
    PreparedImage,
    PreparedText,
    check_prepared,
    check_text,
)
from models.encoders.base.backends import resolve_backend
from models.encoders.starter.heads import StarterHeads, load_heads, read_parts
from models.encoders.starter.towers import (
    GEOMETRY,
    PREPROCESSING,
    TOKENIZER,
    TOWERS_SHA256,
    ImageTower,
    TextTower,
    as_tensor,
)
from models.encoders.starter.tuned_weights import (
    IMAGE_WEIGHTS_NAME,
    TEXT_WEIGHTS_NAME,
    load_weights,
)
from models.errors import ModelError
from models.explainer import Area, RelevanceMap, seen_area, to_unit_range
from models.images.decode import upright_rgb
from models.images.geometry import Pixels
from models.vectors import Vectors, unit_rows

if TYPE_CHECKING:
    from PIL.Image import Image

STARTER_DIRECTORY = Path(__file__).parent
_NEUTRAL = ("a photo", "a picture", "an object", "something", "nothing", "an empty background")
_NEUTRAL_SHARE = 0.3


def load_starter(
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    backend: str | None = None,
) -> StarterEncoder:
    """The pair that comes with Diptych.

    Args:
        backend: see `models.encoders.base.backends`; None takes what the process prefers.

    Raises:
        ModelError: a package file is missing or not the one the heads were trained on.
    """
    return _load("starter", STARTER_DIRECTORY, device, precision, threads, backend)


def load_starter_from(
    directory: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    backend: str | None = None,
) -> StarterEncoder:
    """A starter pair with heads of your own, as `diptych train` leaves them.

    Raises:
        ModelError: also when the directory holds no such heads.
    """
    return _load(f"local-dir:{directory}", Path(directory), device, precision, threads, backend)


def _load(
    name: str,
    directory: Path,
    device: str,
    precision: str,
    threads: int | None,
    backend: str | None,
) -> StarterEncoder:
    set_threads(threads)
    target = resolve_device(device)
    heads, digest = load_heads(directory)
    dtype = starter_dtype(precision, target)
    name_of = resolve_backend(backend, device=target.type, precision=precision, supported=True)
    tower = load_image_tower(directory, device=target, dtype=dtype, backend=name_of)
    texts = load_text_tower(directory)
    tuned = [texts.weights_sha256, tower.weights_sha256]
    weights = "+".join(filter(None, [TOWERS_SHA256, digest, *tuned]))
    return StarterEncoder(name, tower, texts, heads, weights_sha256=weights)


def load_text_tower(directory: Path) -> TextTower:
    """The text tower that the heads in a directory were trained on.

    Raises:
        ModelError: its tuned weights are missing, or are others.
    """
    return TextTower(*_tuned(directory, TEXT_WEIGHTS_NAME))


def load_image_tower(
    directory: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str = "torch",
) -> ImageTower:
    """The image tower that the heads in a directory were trained on.

    Args:
        backend: `torch`, or `onnx`, which runs on the CPU in fp32 whatever the rest says.

    Raises:
        ModelError: its tuned weights are missing, or are others.
    """
    weights, sha256 = _tuned(directory, IMAGE_WEIGHTS_NAME)
    if backend == "torch":
        return ImageTower(device=device, dtype=dtype, weights=weights, sha256=sha256)
    from models.encoders.starter.onnx_tower import OnnxImageTower

    return OnnxImageTower(weights=weights, sha256=sha256)


def _tuned(directory: Path, name: str) -> tuple[dict[str, Tensor] | None, str]:
    """(weights, their sha256); nothing where the pair uses the package's own."""
    sha256 = read_parts(directory).get(name)
    return (None, "") if sha256 is None else (load_weights(directory, name, sha256), sha256)


def starter_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The image tower's arithmetic for `auto`, `fp32` or `fp16`.

    `auto` is fp16 on CUDA and on CPUs that multiply it natively (half the time of fp32), fp32
    elsewhere. Measured on 192 photographs, embeddings against fp32's: fp16 stays above a cosine of
    0.9999; in bf16 a third fall below 0.999 and the worst to 0.978, because its 8 bits of mantissa
    move the classifier's logits by a tenth and the concepts' softmax is sharp. So bf16, the usual
    choice, is not offered here.

    Raises:
        ModelError: bf16, or an unknown name.
    """
    if precision == "auto":
        native = device.type == "cuda" or (device.type == "cpu" and _cpu_multiplies_fp16())
        return torch.float16 if native else torch.float32
    name = resolve_precision(precision, device)
    if name == "bf16":
        raise ModelError(
            "the starter pair does not keep its ranking in bf16",
            code="precision-not-supported",
            hint="use --precision auto, fp32 or fp16",
        )
    return torch.float16 if name == "fp16" else torch.float32


def _cpu_multiplies_fp16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_fp16") or capabilities.get("avx512_fp16"))


class StarterEncoder:
    """An `Encoder`; see `models.encoder`."""

    logit_bias: float | None = None

    def __init__(
        self,
        name: str,
        image_tower: ImageTower,
        text_tower: TextTower,
        heads: StarterHeads,
        *,
        weights_sha256: str,
    ) -> None:
        self._image_tower = image_tower
        self._text_tower = text_tower
        # the heads stay in fp32 on the CPU: a few microseconds a row, and texts need no device
        self._heads = heads.eval()
        self._name = name
        self._weights_sha256 = weights_sha256
        self.logit_scale = float(heads.scale())
        self._neutral_D: Vectors | None = None

    @property
    def dim(self) -> int:
        return self._heads.dim

    @property
    def backend(self) -> str:
        """What runs the image tower: `torch` or `onnx`."""
        return self._image_tower.backend

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            model=self._name,
            architecture="starter-2: efficientnet-lite2 + use-multilingual-v3 + residual heads",
            weights_sha256=self._weights_sha256,
            preprocessing=PREPROCESSING,
            tokenizer=TOKENIZER,
            activation="gelu heads, relu6 image tower",
            dim=self.dim,
        )

    def prepare_image(self, image: Image) -> PreparedImage:
        return self._image_tower.prepare(upright_rgb(image))

    geometry = GEOMETRY

    def finish_image(self, pixels: Pixels) -> PreparedImage:
        """See `models.images.geometry.SplitPreparation`; the arithmetic comes with the batch."""
        return pixels

    def prepare_text(self, text: str) -> PreparedText:
        return self._text_tower.prepare(check_text(text))

    @torch.inference_mode()
    def embed_images(self, images: Sequence[PreparedImage]) -> Vectors:
        check_prepared(images, PREPARED_IMAGE)
        if len(images) == 0:
            return np.zeros((0, self.dim), dtype=np.float32)
        settle_threads()
        features_BF = self._image_tower.features(images).cpu()
        return unit_rows(self._heads.embed_images(features_BF).numpy())

    explanation_method = "local-head"

    def explained_area(self, width: int, height: int) -> Area:
        """All of it: the picture is squeezed, not cropped."""
        return seen_area(width, height, resize="squash")

    @torch.inference_mode()
    def relevance_map(self, image: PreparedImage, direction_D: Vectors) -> RelevanceMap:
        """Where a picture answers to a direction -> float32 [9, 9]; one forward pass.

        Every cell of the last feature map goes through the head on its own. A share of what the
        cell says to neutral words is taken off, and cells with weak features count less, or empty
        background would light up. On photographs of single things the brightest cell is in the
        right quarter, of four unlike things side by side, in 59 % of cases (Grad-CAM 50 %, without
        the two corrections 73 %), and of one thing on white in 88 % (53 % and 53 %);
        tests/bench/explain.py plays this game.
        """
        settle_threads()
        map_1FHW = self._image_tower.feature_maps([image]).cpu()
        cell_LF = map_1FHW[0].flatten(1).T
        cell_LD = self._heads.embed_images(cell_LF)
        wanted_D = as_tensor(unit_rows(direction_D[None])[0])
        scores_L = cell_LD @ (wanted_D - _NEUTRAL_SHARE * as_tensor(self._neutral()))
        strength_L = cell_LF.square().sum(dim=1).pow(0.25)  # the square root of the length
        scores_L = (scores_L - scores_L.min()) * strength_L
        side = round(len(scores_L) ** 0.5)
        return to_unit_range(scores_L.reshape(side, side).numpy())

    def _neutral(self) -> Vectors:
        """What words that mean nothing in particular have in common, unit length [D]."""
        if self._neutral_D is None:
            words_BD = self.embed_texts([self.prepare_text(text) for text in _NEUTRAL])
            self._neutral_D = unit_rows(words_BD.mean(axis=0)[None])[0]
        return self._neutral_D

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[PreparedText]) -> Vectors:
        check_prepared(texts, PreparedText)
        if len(texts) == 0:
            return np.zeros((0, self.dim), dtype=np.float32)
        features_BS = as_tensor(self._text_tower.features(texts))
        with one_thread():
            return unit_rows(self._heads.embed_texts(features_BS).numpy())
