"""Runs the starter's image tower in ONNX Runtime, twice as fast as torch on a CPU; see `pair.py`.

The graph is written here, operation by operation, from the network that torch would run: an
EfficientNet-Lite is convolutions, ReLU6 and sums. Nothing is exported to or read from a file. In
fp32 the last feature map is torch's to rounding; tests/bench/backends.py has the times.

Shapes: B batch, F channels of the last feature map, H and W pixels or cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.encoders.base.backends import not_installed, onnxruntime
from models.encoders.starter.towers import IMAGE_SIDE, ImageTower

_OPSET = 17


class OnnxImageTower(ImageTower):
    """An `ImageTower` in fp32 on the CPU whose network ONNX Runtime runs.

    Raises:
        ModelError: from the constructor: the packages are missing.
    """

    backend = "onnx"

    def __init__(self, *, weights: Mapping[str, Tensor] | None = None, sha256: str = "") -> None:
        super().__init__(weights=weights, sha256=sha256)
        self._network = _OnnxNetwork(self._network, torch.get_num_threads())


class _OnnxNetwork(nn.Module):
    """Stands in for timm's network: the same two calls, the same answers."""

    def __init__(self, network: nn.Module, threads: int) -> None:
        super().__init__()
        engine = onnxruntime()
        options = engine.SessionOptions()
        options.intra_op_num_threads = threads
        # busy waiting would take from the decoders what it gives to the tower
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session: Any = engine.InferenceSession(
            graph(network), options, providers=["CPUExecutionProvider"]
        )

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Features [B, F]."""
        return self.forward_features(pixels_B3HW).mean(dim=(2, 3))

    def forward_features(self, pixels_B3HW: Tensor) -> Tensor:
        """The last feature map [B, F, H, W], float32."""
        # no copy where the pixels lie in channels_last order, as they do
        pixels_BHW3 = pixels_B3HW.permute(0, 2, 3, 1).contiguous().numpy()
        (map_BFHW,) = self._session.run(None, {"pixels": pixels_BHW3})
        return torch.from_numpy(map_BFHW)


def graph(network: nn.Module) -> bytes:
    """timm's network as a serialised ONNX model: float32 [B, H, W, 3] -> [B, F, H, W].

    Raises:
        ModelError: the packages are missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise not_installed() from error
    written = _Graph(onnx)
    x = written.add("Transpose", ["pixels"], perm=[0, 3, 1, 2])
    net: Any = network
    x = written.convolution(x, net.conv_stem, net.bn1)
    for stage in net.blocks:
        for block in stage:
            x = written.block(x, block)
    return written.serialised(written.convolution(x, net.conv_head, net.bn2))


class _Graph:
    """Nodes and constants, named as they come."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"x{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, [name], **attributes))
        return name

    def block(self, x: str, block: Any) -> str:
        """One of timm's blocks without squeeze-and-excitation, as the Lite variants have them."""
        entry = x
        names = [name for name, part in block.named_children() if isinstance(part, nn.Conv2d)]
        for number, name in enumerate(names, 1):
            x = self.convolution(x, getattr(block, name), getattr(block, f"bn{number}"))
        return self.add("Add", [x, entry]) if block.has_skip else x

    def convolution(self, x: str, conv: Any, after: Any) -> str:
        """A convolution and what follows it: a norm, which is folded, and an activation."""
        if isinstance(after, nn.BatchNorm2d):
            conv, after = fuse_conv_bn_eval(conv, after), getattr(after, "act", nn.Identity())
        weights = [self._constant(part.detach().float()) for part in (conv.weight, conv.bias)]
        same = type(conv).__name__ == "Conv2dSame"  # TensorFlow's padding, uneven for even sides
        pads = {"auto_pad": "SAME_UPPER"} if same else {"pads": [*conv.padding, *conv.padding]}
        x = self.add(
            "Conv", [x, *weights], group=conv.groups, strides=list(conv.stride),
            kernel_shape=list(conv.kernel_size), **pads,
        )  # fmt: skip
        if isinstance(after, nn.ReLU6):
            return self.add("Clip", [x, *(self._constant(torch.tensor(at)) for at in (0.0, 6.0))])
        assert isinstance(after, nn.Identity), f"{type(after).__name__} is not written yet"
        return x

    def _constant(self, value: Tensor) -> str:
        name = f"c{len(self._constants)}"
        array = np.ascontiguousarray(value.numpy()) if value.dim() else value.numpy()
        self._constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def serialised(self, output: str) -> bytes:
        helper, kinds = self._onnx.helper, self._onnx.TensorProto
        pixels = ["batch", IMAGE_SIDE, IMAGE_SIDE, 3]
        made = helper.make_graph(
            self._nodes,
            "image-tower",
            [helper.make_tensor_value_info("pixels", kinds.FLOAT, pixels)],
            [helper.make_tensor_value_info(output, kinds.FLOAT, None)],
            self._constants,
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        found: bytes = helper.make_model(
            made, opset_imports=opsets, ir_version=8
        ).SerializeToString()
        return found
