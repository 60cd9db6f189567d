"""Writes the starter's image tower as an ONNX file, and reads its weights back for torch.

Called when a pair is finished or loaded into torch; what runs the file is
`models.encoders.starter.image_session`. The graph is written operation by operation from the
network that torch would run: an EfficientNet-Lite is convolutions, ReLU6 and sums. The norms are
folded into the convolutions, the weights rounded to fp16, widened again when the file is loaded.

Shapes: B batch, F channels of the last feature map, H and W pixels or cells.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.atomic import replace_file
from models.encoders.starter.description import IMAGE_SIDE, read_checked
from models.encoders.starter.tuned_weights import IMAGE_GRAPH_NAME, as_array
from models.errors import ModelError

_OPSET = 17


def save_graph(network: nn.Module, directory: Path) -> str:
    """Write a pair's `image.onnx` -> its sha256, for the description.

    Args:
        network: timm's, norms folded or not.
        directory: made if it is missing.

    Raises:
        ModelError: `onnx` is not installed.
    """
    data = graph(network)
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / IMAGE_GRAPH_NAME, data)
    return hashlib.sha256(data).hexdigest()


def graph_weights(directory: Path, sha256: str) -> dict[str, npt.NDArray[np.float32]]:
    """The weights in a pair's `image.onnx`, by their names in timm's folded network.

    Raises:
        ModelError: `onnx` is not installed, or the file is missing or another.
    """
    onnx = _onnx()
    data = read_checked(directory / IMAGE_GRAPH_NAME, sha256, "image tower")
    return {
        constant.name: onnx.numpy_helper.to_array(constant).astype(np.float32)
        for constant in onnx.load_from_string(data).graph.initializer
        if constant.name.endswith((".weight", ".bias"))
    }


def graph(network: nn.Module) -> bytes:
    """timm's network as a serialised ONNX model: uint8 [B, H, W, 3] -> float32 [B, F, H, W].

    Raises:
        ModelError: `onnx` is not installed.
    """
    written = _Graph(_onnx(), network)
    x = written.normalised("pixels")
    net: Any = network
    x = written.convolution(x, net.conv_stem, net.bn1)
    for stage in net.blocks:
        for block in stage:
            x = written.block(x, block)
    return written.serialised(written.convolution(x, net.conv_head, net.bn2))


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ModelError(
            "writing or training the starter's image tower needs onnx",
            code="backend-not-installed",
            hint='pip install "diptych[clip]"',
        ) from error
    return onnx


class _Graph:
    """Nodes, named as they come, and constants, named as in the network."""

    def __init__(self, onnx: Any, network: nn.Module) -> None:
        self._onnx = onnx
        self._names = {part: name for name, part in network.named_modules()}
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"x{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, [name], **attributes))
        return name

    def normalised(self, x: str) -> str:
        """[B, H, W, 3] in [0, 255] -> [B, 3, H, W] in [-1, 1]."""
        half = self._constant("half", np.float32(127.5))
        x = self.add("Cast", [x], to=self._onnx.TensorProto.FLOAT)
        x = self.add("Div", [self.add("Sub", [x, half]), half])
        return self.add("Transpose", [x], perm=[0, 3, 1, 2])

    def block(self, x: str, block: Any) -> str:
        """One of timm's blocks without squeeze-and-excitation, as the Lite variants have them."""
        entry = x
        names = [name for name, part in block.named_children() if isinstance(part, nn.Conv2d)]
        for number, name in enumerate(names, 1):
            x = self.convolution(x, getattr(block, name), getattr(block, f"bn{number}"))
        return self.add("Add", [x, entry]) if block.has_skip else x

    def convolution(self, x: str, conv: Any, after: Any) -> str:
        """A convolution and what follows it: a norm, which is folded, and an activation."""
        name = self._names[conv]
        if isinstance(after, nn.BatchNorm2d):
            conv, after = fuse_conv_bn_eval(conv, after), getattr(after, "act", nn.Identity())
        weights = [
            self._widened(f"{name}.{part}", as_array(getattr(conv, part)))
            for part in ("weight", "bias")
        ]
        same = type(conv).__name__ == "Conv2dSame"  # TensorFlow's padding, uneven for even sides
        pads = {"auto_pad": "SAME_UPPER"} if same else {"pads": [*conv.padding, *conv.padding]}
        x = self.add(
            "Conv", [x, *weights], group=conv.groups, strides=list(conv.stride),
            kernel_shape=list(conv.kernel_size), **pads,
        )  # fmt: skip
        if isinstance(after, nn.ReLU6):
            bounds = [self._constant(str(at), np.float32(at)) for at in (0, 6)]
            return self.add("Clip", [x, *bounds])
        assert isinstance(after, nn.Identity), f"{type(after).__name__} is not written yet"
        return x

    def _widened(self, name: str, value: npt.NDArray[np.float32]) -> str:
        """A constant in fp16, which the runtime widens when it loads the file."""
        half = self._constant(name, np.ascontiguousarray(value, np.float16))
        return self.add("Cast", [half], to=self._onnx.TensorProto.FLOAT)

    def _constant(self, name: str, value: npt.NDArray[Any] | np.generic) -> str:
        if name not in self._constants:
            self._constants[name] = self._onnx.numpy_helper.from_array(np.asarray(value), name)
        return name

    def serialised(self, output: str) -> bytes:
        helper, kinds = self._onnx.helper, self._onnx.TensorProto
        pixels = ["batch", IMAGE_SIDE, IMAGE_SIDE, 3]
        made = helper.make_graph(
            self._nodes,
            "image-tower",
            [helper.make_tensor_value_info("pixels", kinds.UINT8, pixels)],
            [helper.make_tensor_value_info(output, kinds.FLOAT, None)],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        found: bytes = helper.make_model(
            made, opset_imports=opsets, ir_version=8
        ).SerializeToString()
        return found
