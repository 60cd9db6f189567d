"""Maps whose right answer is known: towers built by hand, and something pasted into a corner."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from models.encoders.open_clip.heat_maps import method_of, relevance_map
from models.errors import ModelError
from models.explainer import seen_area, to_unit_range
from models.images.overlay import MAX_SIDE, colour, overlay_png, shown_size, spread

CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]
SIDE, PATCH, WIDTH = 32, 8, 16


def cornered(corner: tuple[int, int], channel: int) -> torch.Tensor:
    """A grey picture with one patch of a pure colour in a corner, [1, 3, 32, 32]."""
    image = torch.zeros(1, 3, SIDE, SIDE)
    rows = slice(0, PATCH) if corner[0] == 0 else slice(SIDE - PATCH, SIDE)
    columns = slice(0, PATCH) if corner[1] == 0 else slice(SIDE - PATCH, SIDE)
    image[0, channel, rows, columns] = 1.0
    return image


def quarter(map_HW: np.ndarray) -> tuple[int, int]:  # type: ignore[type-arg]
    row, column = np.unravel_index(map_HW.argmax(), map_HW.shape)
    return int(row >= map_HW.shape[0] / 2), int(column >= map_HW.shape[1] / 2)


def vision_transformer() -> open_clip.transformer.VisionTransformer:
    """Attends to all tokens alike and passes the mean colour of patches on: D = 3 channels.

    Every other part is random or off, so that colour channel c of the embedding comes from the
    patches of colour c and from nowhere else.
    """
    torch.manual_seed(0)
    tower = open_clip.transformer.VisionTransformer(
        image_size=SIDE, patch_size=PATCH, width=WIDTH, layers=2, heads=2, mlp_ratio=2.0,
        output_dim=3,
    )  # fmt: skip
    with torch.no_grad():
        tower.conv1.weight.zero_()
        for channel in range(3):
            tower.conv1.weight[channel, channel] = 1.0 / PATCH**2
        tower.class_embedding.zero_()
        tower.positional_embedding.zero_()
        tower.ln_pre = torch.nn.Identity()
        tower.ln_post = torch.nn.Identity()
        first, last = tower.transformer.resblocks
        for block in (first, last):
            block.ln_1 = torch.nn.Identity()
            block.mlp.c_proj.weight.zero_()
            block.mlp.c_proj.bias.zero_()
            block.attn.in_proj_weight.zero_()  # queries and keys alike: uniform attention
            block.attn.in_proj_bias.zero_()
            block.attn.out_proj.bias.zero_()
        first.attn.out_proj.weight.zero_()
        last.attn.in_proj_weight[2 * WIDTH :] = torch.eye(WIDTH)
        last.attn.out_proj.weight.copy_(torch.eye(WIDTH))
        tower.proj.copy_(torch.eye(WIDTH, 3))
    return tower.eval().requires_grad_(False)


def convolutional_tower() -> torch.nn.Module:
    """A ModifiedResNet by name whose last feature map is the picture's colours, pooled by mean."""

    class ModifiedResNet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer4 = torch.nn.AvgPool2d(PATCH)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.layer4(image).mean(dim=(2, 3))

    return ModifiedResNet().eval()


TOWERS = {"legrad": vision_transformer, "grad-cam": convolutional_tower}


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("method", list(TOWERS))
def test_what_is_asked_for_lights_its_corner_up(method: str, corner: tuple[int, int]) -> None:
    tower = TOWERS[method]()
    assert method_of(tower) == method
    # something else in the opposite corner
    image = cornered(corner, 0) + cornered((1 - corner[0], 1 - corner[1]), 1)
    red, green, blue = torch.eye(3)
    asked = relevance_map(tower, image, red)
    assert asked.shape == (4, 4)
    assert asked.dtype == np.float32
    assert quarter(asked) == corner
    assert asked.max() == 1.0
    assert (asked > 0).sum() == 1
    # controls: another text finds the other corner, and one that is nowhere finds nothing there
    assert quarter(relevance_map(tower, image, green)) == (1 - corner[0], 1 - corner[1])
    nowhere = relevance_map(tower, image, blue)
    assert nowhere[-corner[0], -corner[1]] == 0.0


@pytest.mark.parametrize("corner", CORNERS)
def test_legrad_is_the_loop_over_attention_weights(corner: tuple[int, int]) -> None:
    """Against finite differences: move one attention weight of the last block, watch the cosine."""
    torch.manual_seed(1)
    tower = open_clip.transformer.VisionTransformer(
        image_size=SIDE, patch_size=PATCH, width=WIDTH, layers=2, heads=2, mlp_ratio=2.0,
        output_dim=5,
    ).eval().requires_grad_(False).double()  # fmt: skip
    image, direction = cornered(corner, 2).double(), torch.randn(5).double()
    attention = tower.transformer.resblocks[-1].attn

    def cosine(shift: torch.Tensor) -> float:
        def hook(module, args, kwargs, output):  # type: ignore[no-untyped-def]
            x = args[0][0]
            q, k, v = (x @ module.in_proj_weight.T + module.in_proj_bias).chunk(3, dim=1)
            q, k, v = (part.reshape(-1, 2, WIDTH // 2).transpose(0, 1) for part in (q, k, v))
            weights = ((q @ k.transpose(1, 2)) / (WIDTH // 2) ** 0.5).softmax(dim=-1) + shift
            mixed = (weights @ v).transpose(0, 1).reshape(-1, WIDTH)
            return (module.out_proj(mixed)[None], None)

        handle = attention.register_forward_hook(hook, with_kwargs=True)
        try:
            return float(torch.cosine_similarity(tower(image)[0], direction, dim=0))
        finally:
            handle.remove()

    tokens = (SIDE // PATCH) ** 2 + 1
    zero = torch.zeros(2, tokens, tokens).double()
    assert cosine(zero) == pytest.approx(
        float(torch.cosine_similarity(tower(image)[0], direction, dim=0)), abs=1e-9
    )
    expected = np.zeros(tokens)
    for head in range(2):
        for key in range(tokens):
            step = zero.clone()
            step[head, 0, key] = 1e-5  # only the class token's row reaches the answer
            slope = (cosine(step) - cosine(-step)) / 2e-5
            expected[key] += max(0.0, slope)
    found = relevance_map(tower, image, direction)
    np.testing.assert_allclose(found, to_unit_range(expected[1:].reshape(4, 4)), atol=2e-3)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224", "resnet18", "convnext_atto"]
)
def test_timm_towers_have_a_method(name: str) -> None:
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8} if name.startswith("vit") else {}
    if "base" in name:
        options |= {"embed_dim": 48, "depth": 2, "num_heads": 3}
    import timm

    class TimmModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = timm.create_model(name, pretrained=False, num_classes=0, **options)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.trunk(image)

    tower = TimmModel().eval().requires_grad_(False)
    side = 32 if name.startswith("vit") else 64
    image = torch.rand(1, 3, side, side)
    direction = torch.randn(tower(image).shape[1])
    found = relevance_map(tower, image, direction)
    assert method_of(tower) == "grad-cam"
    assert found.min() >= 0.0
    assert found.max() == 1.0
    assert found.ndim == 2


def test_a_tower_without_a_method_says_so() -> None:
    with pytest.raises(ModelError) as caught:
        relevance_map(torch.nn.Linear(1, 1), torch.zeros(1, 3, 8, 8), torch.ones(3))
    assert caught.value.code == "cannot-explain"


def test_flat_and_broken_scores() -> None:
    assert not to_unit_range(np.full((3, 3), 0.7)).any()
    assert to_unit_range([[1.0, 3.0], [2.0, 1.0]]).tolist() == [[0.0, 1.0], [0.5, 0.0]]
    with pytest.raises(ModelError, match="NaN"):
        to_unit_range([[0.0, np.nan]])


def test_areas() -> None:
    assert seen_area(200, 100, resize="squash") == (0, 0, 200, 100)
    assert seen_area(200, 100, resize="shortest") == (50, 0, 150, 100)
    assert seen_area(200, 100, resize="longest") == (0, -50, 200, 150)


def test_spread_puts_cells_where_they_belong() -> None:
    cells = np.zeros((2, 2), dtype=np.float32)
    cells[0, 1] = 1.0  # top right of the square in the middle
    heat = spread(cells, seen_area(400, 200, resize="shortest"), (400, 200), (40, 20))
    assert heat.shape == (20, 40)
    assert heat[:, :10].max() == heat[:, 30:].max() == 0.0  # outside of what the tower saw
    assert heat[2, 27] == 1.0
    assert heat[-1].max() == 0.0
    whole = spread(np.ones((3, 3), dtype=np.float32), (0, 0, 7, 5), (7, 5), (7, 5))
    np.testing.assert_allclose(whole, 1.0)


def test_overlay_is_a_small_png_whose_brightness_follows_the_map() -> None:
    cells = np.array([[0.0, 1.0]], dtype=np.float32)
    png = overlay_png(Image.new("RGB", (2000, 1000), (90, 90, 90)), cells, (0, 0, 2000, 1000))
    drawn = Image.open(BytesIO(png))
    assert drawn.format == "PNG"
    assert drawn.size == (MAX_SIDE, MAX_SIDE // 2) == shown_size((2000, 1000))
    assert not drawn.info
    lightness = np.asarray(drawn.convert("L"), dtype=int)[100]
    assert lightness[-1] - lightness[0] > 60
    assert (np.diff(lightness) >= -3).all()
    assert shown_size((20, 10)) == (20, 10)
    assert shown_size((100_000, 1)) == (MAX_SIDE, 1)


def test_colours_grow_lighter_all_the_way() -> None:
    ramp = colour(np.linspace(0, 1, 200)) / 255.0
    linear = np.where(ramp <= 0.04045, ramp / 12.92, ((ramp + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
