"""`StarterEncoder`: the towers, then the trained heads, as an `Encoder`; see the registry.

Runs on numpy and ONNX Runtime; torch is imported for GPUs, half precision, pairs whose image tower
is kept as changes to the package's, and where it is asked for. Each tower is loaded by the first
call that needs it. Knows nothing of how the heads were trained, and needs no network.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from models.devices import (
    PRECISIONS,
    cpu_threads,
    import_torch,
    resolve_device,
    resolve_kind,
    resolve_precision,
    set_threads,
    threads_here,
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
from models.encoders.starter.description import (
    GEOMETRY,
    PREPROCESSING,
    TOKENIZER,
    TOWERS_SHA256,
    Description,
    read_description,
)
from models.encoders.starter.head_arrays import HeadArrays, read_heads
from models.encoders.starter.tuned_weights import (
    IMAGE_GRAPH_NAME,
    IMAGE_WEIGHTS_NAME,
    TEXT_WEIGHTS_NAME,
    load_weights,
)
from models.errors import ModelError
from models.explainer import Area, RelevanceMap, seen_area, to_unit_range
from models.images.geometry import Pixels
from models.vectors import Vectors, unit_rows

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from models.encoders.starter.image_tower import ImageTower
    from models.encoders.starter.text_tower import TextTower

STARTER_DIRECTORY = Path(__file__).parent
_NEUTRAL = ("a photo", "a picture", "an object", "something", "nothing", "an empty background")
_NEUTRAL_SHARE = 0.3

Tower = TypeVar("Tower")


class ImageFeatures(Protocol):
    """What runs the image tower."""

    def rows(self, images: Sequence[PreparedImage]) -> Vectors:
        """float32 [B, 1280]."""
        ...

    def maps(self, images: Sequence[PreparedImage]) -> npt.NDArray[np.float32]:
        """float32 [B, 1280, 9, 9]."""
        ...


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
    description = read_description(directory)
    read, _, digest = read_heads(directory)
    _refuse_precision(precision)
    for part in description.parts:
        if not (directory / part).is_file():
            raise ModelError(f"cannot read {directory / part}: No such file or directory")
    engine = resolve_backend(
        backend,
        device=resolve_kind(device),
        precision=precision,
        supported=IMAGE_GRAPH_NAME in description.parts,
    )

    def image_tower() -> ImageFeatures:
        if engine == "onnx":
            from models.encoders.starter.image_session import ImageSession

            return ImageSession(directory, description.parts[IMAGE_GRAPH_NAME])
        where = resolve_device(device)
        return load_image_tower(directory, device=where, dtype=starter_dtype(precision, where))

    if engine == "torch":
        import_torch("this way to run the image tower")
    return StarterEncoder(
        name,
        image_tower,
        lambda: load_text_tower(directory),
        HeadArrays(read, description.heads),
        weights_sha256=description.name or _name_of(description, digest),
        backend=engine,
    )


def _name_of(description: Description, heads_sha256: str) -> str:
    names = (TEXT_WEIGHTS_NAME, IMAGE_WEIGHTS_NAME, IMAGE_GRAPH_NAME)
    tuned = [description.parts[name] for name in names if name in description.parts]
    return "+".join([TOWERS_SHA256, heads_sha256, *tuned])


def load_text_tower(directory: Path) -> TextTower:
    """The text tower that the heads in a directory were trained on.

    Raises:
        ModelError: its tuned weights are missing, or are others.
    """
    from models.encoders.starter.text_tower import TextTower

    sha256 = read_description(directory).parts.get(TEXT_WEIGHTS_NAME)
    if sha256 is None:
        return TextTower()
    return TextTower(load_weights(directory, TEXT_WEIGHTS_NAME, sha256), sha256)


def load_image_tower(
    directory: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> ImageTower:
    """The image tower that the heads in a directory were trained on, in torch.

    Raises:
        ModelError: its weights are missing, or are others.
    """
    torch = import_torch("training the image tower, or running it on a GPU,")
    from models.encoders.starter.image_graph import graph_weights
    from models.encoders.starter.image_tower import ImageTower

    dtype = torch.float32 if dtype is None else dtype
    parts = read_description(directory).parts
    if IMAGE_GRAPH_NAME in parts:
        sha256 = parts[IMAGE_GRAPH_NAME]
        weights = graph_weights(directory, sha256)
        return ImageTower(device=device, dtype=dtype, weights=weights, sha256=sha256, whole=True)
    if IMAGE_WEIGHTS_NAME in parts:
        sha256 = parts[IMAGE_WEIGHTS_NAME]
        weights = load_weights(directory, IMAGE_WEIGHTS_NAME, sha256)
        return ImageTower(device=device, dtype=dtype, weights=weights, sha256=sha256)
    return ImageTower(device=device, dtype=dtype)


def _refuse_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        names = ", ".join(PRECISIONS)
        raise ModelError(f"unknown precision {precision!r}", hint=f"use one of {names}")
    if precision == "bf16":
        raise ModelError(
            "the starter pair does not keep its ranking in bf16",
            code="precision-not-supported",
            hint="use --precision auto, fp32 or fp16",
        )


def starter_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The image tower's arithmetic in torch for `auto`, `fp32` or `fp16`.

    `auto` is fp16 on CUDA and on CPUs that multiply it natively (half the time of fp32), fp32
    elsewhere. Measured on 192 photographs, embeddings against fp32's: fp16 stays above a cosine of
    0.9999; in bf16 a third fall below 0.999 and the worst to 0.978, because its 8 bits of mantissa
    move the classifier's logits by a tenth and the concepts' softmax is sharp. So bf16, the usual
    choice, is not offered here.

    Raises:
        ModelError: bf16, or an unknown name.
    """
    import torch

    _refuse_precision(precision)
    if precision == "auto":
        native = device.type == "cuda" or (device.type == "cpu" and _cpu_multiplies_fp16())
        return torch.float16 if native else torch.float32
    return torch.float16 if resolve_precision(precision, device) == "fp16" else torch.float32


def _cpu_multiplies_fp16() -> bool:
    import torch

    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_fp16") or capabilities.get("avx512_fp16"))


class Late(Generic[Tower]):
    """Something that is made when it is first asked for, once, whoever asks."""

    def __init__(self, make: Callable[[], Tower]) -> None:
        self._make = make
        self._made: Tower | None = None
        self._lock = threading.Lock()

    def __call__(self) -> Tower:
        if self._made is None:
            with self._lock:
                if self._made is None:
                    self._made = self._make()
        return self._made


class StarterEncoder:
    """An `Encoder`; see `models.encoder`.

    Args:
        name: what the user wrote.
        image_tower: makes what runs the image tower.
        text_tower: makes the text tower.
        heads: over the features of both.
        weights_sha256: names all weights.
        backend: what runs the image tower, `torch` or `onnx`.
    """

    logit_bias: float | None = None

    def __init__(
        self,
        name: str,
        image_tower: Callable[[], ImageFeatures],
        text_tower: Callable[[], TextTower],
        heads: HeadArrays,
        *,
        weights_sha256: str,
        backend: str = "torch",
    ) -> None:
        self._image_tower = Late(image_tower)
        self._text_tower = Late(text_tower)
        self._heads = heads
        self._name = name
        self._weights_sha256 = weights_sha256
        self.backend = backend
        self.logit_scale = heads.scale
        self._neutral_D: Vectors | None = None

    @property
    def dim(self) -> int:
        return self._heads.dim

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
        """A picture of any mode -> uint8 [260, 260, 3].

        The whole picture is squeezed into the square: cropping loses what stands at the edge, and
        a search must find it. Stays uint8 because it is a quarter of the memory while it waits.
        """
        from models.images.decode import upright_rgb

        return np.asarray(GEOMETRY.fit(upright_rgb(image)))

    geometry = GEOMETRY

    def finish_image(self, pixels: Pixels) -> PreparedImage:
        """See `models.images.geometry.SplitPreparation`; the arithmetic comes with the batch."""
        return pixels

    def prepare_text(self, text: str) -> PreparedText:
        return self._text_tower().prepare(check_text(text))

    def embed_images(self, images: Sequence[PreparedImage]) -> Vectors:
        check_prepared(images, PREPARED_IMAGE)
        if len(images) == 0:
            return np.zeros((0, self.dim), dtype=np.float32)
        features_BF = self._image_tower().rows(images)
        with threads_here(cpu_threads()):
            return unit_rows(self._heads.embed_images(features_BF))

    explanation_method = "local-head"

    def explained_area(self, width: int, height: int) -> Area:
        """All of it: the picture is squeezed, not cropped."""
        return seen_area(width, height, resize="squash")

    def relevance_map(self, image: PreparedImage, direction_D: Vectors) -> RelevanceMap:
        """Where a picture answers to a direction -> float32 [9, 9]; one forward pass.

        Every cell of the last feature map goes through the head on its own. A share of what the
        cell says to neutral words is taken off, and cells with weak features count less, or empty
        background would light up. On photographs of single things the brightest cell is in the
        right quarter, of four unlike things side by side, in 59 % of cases (Grad-CAM 50 %, without
        the two corrections 73 %), and of one thing on white in 88 % (53 % and 53 %);
        tests/bench/explain.py plays this game.
        """
        map_FHW = self._image_tower().maps([image])[0]
        cell_LF = map_FHW.reshape(len(map_FHW), -1).T
        cell_LD = unit_rows(self._heads.embed_images(cell_LF))
        wanted_D = unit_rows(direction_D[None])[0]
        scores_L = cell_LD @ (wanted_D - _NEUTRAL_SHARE * self._neutral())
        strength_L = np.square(cell_LF).sum(axis=1) ** 0.25  # the square root of the length
        scores_L = (scores_L - scores_L.min()) * strength_L
        return to_unit_range(scores_L.reshape(map_FHW.shape[1:]))

    def _neutral(self) -> Vectors:
        """What words that mean nothing in particular have in common, unit length [D]."""
        if self._neutral_D is None:
            words_BD = self.embed_texts([self.prepare_text(text) for text in _NEUTRAL])
            self._neutral_D = unit_rows(words_BD.mean(axis=0)[None])[0]
        return self._neutral_D

    def embed_texts(self, texts: Sequence[PreparedText]) -> Vectors:
        check_prepared(texts, PreparedText)
        if len(texts) == 0:
            return np.zeros((0, self.dim), dtype=np.float32)
        features_BS = self._text_tower().features(texts)
        # a few microseconds a row, and helpers would take longer to wake
        with threads_here(1):
            return unit_rows(self._heads.embed_texts(features_BS))
