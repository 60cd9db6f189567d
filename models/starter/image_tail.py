"""The image tower cut in two: what stays as it comes, and the last layers, which are tuned.

The cut lies behind the last change of resolution, so the tail is residual blocks over a 9 x 9 map,
a convolution and a mean: half of the tower's weights for an eighth of its work. Of the tail only
the 1 x 1 convolutions are trained; the depthwise ones hold 2 % of the weights and would take most
of the time of a backward pass on a CPU.

Legend: B batch, C H W the map (208, 9, 9), F image features (1,280).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

MAP_CHANNELS, MAP_SIDE = 208, 9
_CUT = 5
"""The stage whose first block, which halves the resolution, is the last one before the tail."""


def before_tail(network: nn.Module, pixels_B3HW: Tensor) -> Tensor:
    """timm's folded network up to the tail -> [B, C, H, W]."""
    net: Any = network
    x = net.bn1(net.conv_stem(pixels_B3HW))
    for stage in net.blocks[:_CUT]:
        x = stage(x)
    map_BCHW: Tensor = net.blocks[_CUT][0](x)
    return map_BCHW


class ImageTail(nn.Module):
    """The last layers of a folded network, in place: the layers before them are not run.

    Args:
        network: see `models.starter.towers.ImageTower.trainable`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network: Any = network.requires_grad_(False)
        for layer in self._layers():
            for part in layer.modules():
                if isinstance(part, nn.Conv2d) and part.groups == 1:
                    part.requires_grad_(True)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """Features, float32 [B, F]."""
        x = map_BCHW
        for layer in self._layers():
            x = layer(x)
        features_BF: Tensor = self._network.bn2(x).float().mean(dim=(2, 3))
        return features_BF

    def tuned(self) -> dict[str, nn.Parameter]:
        """What is trained, by the names it has in the network."""
        return {name: p for name, p in self._network.named_parameters() if p.requires_grad}

    def _layers(self) -> Iterator[nn.Module]:
        yield from self._network.blocks[_CUT][1:]
        for stage in self._network.blocks[_CUT + 1 :]:
            yield from stage
        yield self._network.conv_head


@torch.inference_mode()
def in_pieces(tail: ImageTail, map_BCHW: Tensor, size: int = 64) -> Tensor:
    """The same without gradients, a few at a time: the maps inside are six times larger."""
    return torch.cat([tail(piece) for piece in torch.split(map_BCHW, size)])
