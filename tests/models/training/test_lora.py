"""Low-rank updates: no change at first, what learns, and the plain pair they end as."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from loss_inputs import objective_for
from tiny import TINY, TINY_SIGLIP
from torch import Tensor, nn

from models.errors import TrainingError
from models.training.tuning import GAIN, LowRank, attach_lora, frozen_towers, merge_lora, places

RESNET: dict[str, Any] = {
    **TINY,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
}
TIMM: dict[str, Any] = {
    **TINY,
    "vision_cfg": {
        "timm_model_name": "efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 32,
    },
}
CONFIGS = {"vit": TINY, "siglip": TINY_SIGLIP, "resnet": RESNET, "efficientnet": TIMM}
IMAGE = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TEXT = torch.randint(1, 49406, (6, 16), generator=torch.Generator().manual_seed(2))


def make(name: str) -> Any:
    torch.manual_seed(0)
    config = dict(CONFIGS[name])
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    return kind(**config).eval()


def rows(pair: Any) -> tuple[Tensor, Tensor]:
    return pair.encode_image(IMAGE, normalize=True), pair.encode_text(TEXT, normalize=True)


def learn(pair: Any, steps: int = 3) -> list[float]:
    objective = objective_for(pair)
    learning = [value for value in pair.parameters() if value.requires_grad]
    optimiser = torch.optim.Adam(learning, lr=1e-2)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = objective(*rows(pair))
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", CONFIGS)
def test_at_first_nothing_changes_then_it_learns_and_ends_as_a_plain_pair(name: str) -> None:
    pair = make(name)
    plain_names = set(pair.state_dict())
    before = {key: value.clone() for key, value in pair.state_dict().items()}
    with torch.no_grad():
        expected = rows(pair)
        attach_lora(pair, rank=4)
        found = rows(pair)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    losses = learn(pair)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        trained = rows(pair)
        weights = merge_lora(pair)
        merged = rows(pair)
    for one, other, untrained in zip(merged, trained, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(one, untrained, atol=1e-3)
    assert set(weights) == set(pair.state_dict()) == plain_names
    again = make(name)
    again.load_state_dict(weights)  # strict
    with torch.no_grad():
        for one, other in zip(rows(again), merged, strict=True):
            torch.testing.assert_close(one, other)
    # what had no update of its own is as it was
    for key, value in weights.items():
        if "ln_" in key or "embedding" in key or ("bias" in key and key != "logit_bias"):
            assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", CONFIGS)
def test_only_updates_scale_and_bias_get_gradients(name: str) -> None:
    pair = make(name)
    learning = attach_lora(pair, rank=4)
    objective_for(pair)(*rows(pair)).backward()
    with_gradient = {key for key, value in pair.named_parameters() if value.grad is not None}
    for key in with_gradient:
        assert key.endswith((".up", ".down")) or key in ("logit_scale", "logit_bias"), key
    assert any("visual" in key for key in with_gradient)
    assert any("visual" not in key and "logit" not in key for key in with_gradient)
    assert learning == sum(v.numel() for v in pair.parameters() if v.requires_grad)
    assert learning < sum(value.numel() for value in pair.parameters()) / 4


@pytest.mark.parametrize(("tower", "other"), [("image", "text"), ("text", "image")])
def test_one_tower_alone(tower: str, other: str) -> None:
    pair = make("vit")
    attach_lora(pair, towers=[tower])
    assert frozen_towers(pair) == {other}
    where = places(pair)
    assert {where[key].tower for key, value in pair.named_parameters() if value.requires_grad} == {
        tower,
        "both",
    }


def test_queries_keys_and_values_have_updates_of_their_own() -> None:
    weight = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    update = LowRank(weight, 2, parts=3)
    with torch.no_grad():
        update.up[1].fill_(1.0)
    difference = (update(weight) - weight).detach()
    assert float(difference[:8].abs().max()) == float(difference[16:].abs().max()) == 0
    expected = GAIN * update.up[1] @ update.down[1]
    torch.testing.assert_close(difference[8:16], expected.detach())
    assert int(torch.linalg.matrix_rank(difference)) <= 2


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Linear(6, 4),
        lambda: nn.Conv2d(3, 4, 1),
        lambda: nn.Conv2d(3, 4, (3, 2), stride=2, padding=1),
    ],
)
def test_the_update_is_the_product_of_its_factors(layer: Callable[[], nn.Module]) -> None:
    """Against the other way to compute it: the input through down, then through up."""
    torch.manual_seed(0)
    made: Any = layer()
    update = LowRank(made.weight, 2)
    nn.init.normal_(update.up)
    inputs = torch.randn(5, 6) if isinstance(made, nn.Linear) else torch.randn(5, 3, 7, 7)
    plain = made(inputs)
    if isinstance(made, nn.Linear):
        expected = plain + GAIN * (inputs @ update.down[0].T) @ update.up[0].T
    else:
        narrow_RIHW = update.down[0].reshape(2, *made.weight.shape[1:])
        narrow = nn.functional.conv2d(inputs, narrow_RIHW, stride=made.stride, padding=made.padding)
        expected = plain + GAIN * nn.functional.conv2d(narrow, update.up[0][:, :, None, None])
    made.weight.data = update(made.weight).detach()
    torch.testing.assert_close(made(inputs), expected, rtol=1e-4, atol=1e-5)


def test_a_seed_gives_the_same_updates() -> None:
    downs = []
    for seed in (0, 0, 1):
        pair = make("vit")
        attach_lora(pair, seed=seed)
        downs.append(next(v for k, v in pair.named_parameters() if k.endswith(".down")).detach())
    assert torch.equal(downs[0], downs[1])
    assert not torch.equal(downs[0], downs[2])


def test_a_tower_without_layers_is_refused() -> None:
    with pytest.raises(TrainingError, match="no layers"):
        attach_lora(nn.Module(), towers=["image"])


def test_a_tiny_overfit_and_its_control() -> None:
    """Six pairs by low-rank updates alone; with the updates left out of the step, nothing."""
    pair = make("vit")
    attach_lora(pair, rank=4)
    losses = learn(pair, 60)
    assert losses[-1] < 0.05 < 1 < losses[0]
    broken = make("vit")
    attach_lora(broken, rank=4)
    for key, value in broken.named_parameters():
        if key.endswith(".up"):  # zero, and held there: the product stays zero
            value.requires_grad_(False)
    losses = learn(broken, 60)
    assert losses[-1] > 1


def test_the_saved_pair_is_an_encoder_like_any_other(tmp_path: Path) -> None:
    from PIL import Image
    from tiny import tiny_pair

    from models.encoders.base.model_id import parse_model_id
    from models.encoders.registry import load_encoder
    from models.training.open_clip import load_pair

    trainable = load_pair(parse_model_id(f"local-dir:{tiny_pair(tmp_path / 'in')}"))
    attach_lora(trainable.module, rank=4)
    learn(trainable.module)
    merge_lora(trainable.module)
    trainable.save(tmp_path / "out")
    encoder = load_encoder(f"local-dir:{tmp_path / 'out'}", device="cpu", precision="fp32")
    picture = Image.new("RGB", (32, 32), "red")
    row_D = encoder.embed_images([encoder.prepare_image(picture)])[0]
    with torch.no_grad():
        pixels = torch.as_tensor(np.asarray(encoder.prepare_image(picture)))[None]
        expected = trainable.module.eval().encode_image(pixels, normalize=True)[0]
    torch.testing.assert_close(torch.as_tensor(row_D), expected, rtol=1e-4, atol=1e-5)
