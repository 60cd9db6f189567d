"""Computes where a picture answers to a text, in open_clip's image towers, for `OpenClipEncoder`.

The methods are described in `models.explainer`. Every tower is run once with its weights as they
are. Gradients are kept from the last block on only, so a map costs about one forward pass and no
more memory than one.

Shapes: B batch (always 1 here), L tokens, E width, A heads, H and W cells.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.explainer import RelevanceMap, cannot_explain, to_unit_range


def method_of(visual: Any) -> str:
    """The method for an image tower.

    Raises:
        ModelError: code `cannot-explain`.
    """
    if _feature_map(visual) is not None:
        return "grad-cam"
    if _last_attention(visual) is not None:
        return "legrad"
    if _last_tokens(visual) is not None:
        return "grad-cam"
    raise cannot_explain(f"no method for {type(visual).__name__}")


def relevance_map(visual: Any, image_13HW: Tensor, direction_D: Tensor) -> RelevanceMap:
    """See `models.explainer.Explainer.relevance_map`; `visual` is the image tower, in eval mode."""
    if (layer := _feature_map(visual)) is not None:
        return to_unit_range(_grad_cam(visual, layer, image_13HW, direction_D))
    if (attention := _last_attention(visual)) is not None:
        return to_unit_range(_legrad(visual, attention, image_13HW, direction_D))
    if (layer := _last_tokens(visual)) is not None:
        return to_unit_range(_grad_tokens(visual, layer, image_13HW, direction_D))
    raise cannot_explain(f"no method for {type(visual).__name__}")


def _feature_map(visual: Any) -> nn.Module | None:
    """The last convolutional stage, whose output is [B, E, H, W]."""
    if type(visual).__name__ == "ModifiedResNet":
        stage: nn.Module = visual.layer4
        return stage
    trunk = getattr(visual, "trunk", None)
    # timm's convolutional families keep their last feature map under one of these names
    for name in ("layer4", "stages"):
        stage_or_none = getattr(trunk, name, None)
        if isinstance(stage_or_none, nn.Module) and not hasattr(trunk, "blocks"):
            return stage_or_none
    return None


def _last_attention(visual: Any) -> nn.MultiheadAttention | None:
    """The last block's self-attention of an open_clip vision transformer."""
    if type(visual).__name__ != "VisionTransformer":
        return None
    attention = getattr(visual.transformer.resblocks[-1], "attn", None)
    # other attention modules (scaled cosine, differently packed weights) would need other algebra
    packed = isinstance(attention, nn.MultiheadAttention) and attention.in_proj_weight is not None
    return attention if packed else None


def _last_tokens(visual: Any) -> nn.Module | None:
    """In a timm vision transformer, the block whose patch tokens still reach the pooled result."""
    trunk: Any = getattr(visual, "trunk", None)
    blocks = getattr(trunk, "blocks", None)
    known = hasattr(trunk, "num_prefix_tokens") and hasattr(trunk, "patch_embed")
    if not known or not isinstance(blocks, nn.Sequential) or len(blocks) < 2:
        return None
    # pooled over all tokens: the last block's; taken from the class token: what that block reads
    pools_all = getattr(trunk, "attn_pool", None) is not None or trunk.global_pool == "avg"
    return blocks[-1] if pools_all else blocks[-2]


class _Captured:
    """The output of a layer, made a leaf so that gradients start there, and its input."""

    output: Tensor
    input: Tensor

    def hook(self, _: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        found = output[0] if isinstance(output, tuple) else output
        self.input = inputs[0].detach()
        self.output = found.detach().requires_grad_(True)
        return (self.output, *output[1:]) if isinstance(output, tuple) else self.output


def _gradient(
    layer: nn.Module, run: Callable[[], Any], direction_D: Tensor
) -> tuple[_Captured, Tensor]:
    """What went through the layer, and the gradient of the cosine at its output."""
    captured = _Captured()
    with ExitStack() as stack:
        # fused inference kernels of nn.MultiheadAttention would bypass the hook
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        handle = layer.register_forward_hook(captured.hook)
        stack.callback(handle.remove)
        pooled = run()
        embedding_1D: Tensor = pooled[0] if isinstance(pooled, tuple) else pooled
        cosine = functional.cosine_similarity(
            embedding_1D.float(), direction_D.float()[None], dim=1
        )
        [gradient] = torch.autograd.grad(cosine.sum(), captured.output)
    return captured, gradient


def _grad_cam(visual: Any, layer: nn.Module, image_13HW: Tensor, direction_D: Tensor) -> Any:
    captured, gradient = _gradient(layer, lambda: visual(image_13HW), direction_D)
    if captured.output.dim() != 4:
        raise cannot_explain("its last stage is not a feature map")
    cells_HW = (captured.output.detach().float() * gradient.float()).sum(dim=1)[0]
    return cells_HW.clamp_min(0).cpu().numpy()


def _grad_tokens(visual: Any, layer: nn.Module, image_13HW: Tensor, direction_D: Tensor) -> Any:
    captured, gradient = _gradient(layer, lambda: visual(image_13HW), direction_D)
    cells_L = (captured.output.detach().float() * gradient.float()).sum(dim=2)[0]
    grid = visual.trunk.patch_embed.grid_size
    return cells_L[-grid[0] * grid[1] :].clamp_min(0).reshape(grid).cpu().numpy()


def _legrad(
    visual: Any, attention: nn.MultiheadAttention, image_13HW: Tensor, direction_D: Tensor
) -> Any:
    captured, gradient = _gradient(attention, lambda: visual(image_13HW), direction_D)
    heads, width = attention.num_heads, attention.embed_dim
    gradient_LE = gradient.reshape(-1, width).float()
    tokens_LE = captured.input.reshape(-1, width).float()
    assert attention.in_proj_weight is not None
    value_weight = attention.in_proj_weight[2 * width :].float()
    value_bias = attention.in_proj_bias
    bias = None if value_bias is None else value_bias[2 * width :].float()
    values_LE = functional.linear(tokens_LE, value_weight, bias)
    # through the output projection: what each head's result is worth
    worth_LE = gradient_LE @ attention.out_proj.weight.float()
    worth_LAE = worth_LE.reshape(-1, heads, width // heads)
    values_LAE = values_LE.reshape(-1, heads, width // heads)
    # d cosine / d attention[head, query, key]; the attention itself never has to be materialised
    slope_AQL = torch.einsum("qae,lae->aql", worth_LAE, values_LAE)
    cells_L = slope_AQL.clamp_min(0).sum(dim=(0, 1))
    grid = [
        side // patch for side, patch in zip(image_13HW.shape[2:], visual.patch_size, strict=True)
    ]
    # the class token comes first and is no place in the picture
    return cells_L[-grid[0] * grid[1] :].reshape(grid).cpu().numpy()
