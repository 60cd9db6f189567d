"""The recipe's last stage on a handful of pictures: continued, averaged, and a pair that loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.encoders.registry import load_encoder
from models.encoders.starter.description import read_parts
from models.encoders.starter.heads import load_heads, save_heads
from models.encoders.starter.image_tower import ImageTower
from models.encoders.starter.pair import STARTER_DIRECTORY, load_image_tower
from models.encoders.starter.text_tower import TextTower
from models.encoders.starter.tuned_weights import (
    IMAGE_WEIGHTS_NAME,
    TEXT_WEIGHTS_NAME,
    copy_weights,
)
from models.sources import open_source
from models.training.features.maker import FeatureMaker
from service.recipes import starter as recipe

CAPTIONS = ("a red square", "a green field", "the blue sea")


def pictures(folder: Path, start: int) -> Path:
    folder.mkdir()
    noise = np.random.default_rng(start)
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as lines:
        for number, caption in enumerate(CAPTIONS):
            coarse_HW3 = noise.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            Image.fromarray(coarse_HW3).resize((90, 70)).save(folder / f"{number}.png")
            row = {"id": f"{start}-{number}", "image": f"{number}.png", "captions": {"en": caption}}
            lines.write(json.dumps(row) + "\n")
    return folder / "pairs.jsonl"


@pytest.fixture
def shop(tmp_path: Path) -> recipe.Workshop:
    names = ("flickr8k", "openstax", "tiny-imagenet", "grocery-store", "validation")
    sources = {
        name: open_source(str(pictures(tmp_path / name, start))) for start, name in enumerate(names)
    }
    texts = TextTower()
    maker = FeatureMaker(ImageTower(), texts)
    made = recipe.Workshop(tmp_path / "out", 1 / 28, 16, texts, maker, sources)
    parts = {TEXT_WEIGHTS_NAME: read_parts(STARTER_DIRECTORY)[TEXT_WEIGHTS_NAME]}
    copy_weights(STARTER_DIRECTORY, made.merged, parts)
    save_heads(load_heads(STARTER_DIRECTORY)[0], made.merged, parts=parts)
    return made


def test_the_image_stage_ends_in_a_pair_part_of_the_way(
    shop: recipe.Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "MEMBERS", 2)
    cpu = torch.device("cpu")
    recipe._tune_image(shop, cpu, [0], tmp_path / "cache")
    first = shop.folder(recipe.IMAGE, 0) / IMAGE_WEIGHTS_NAME
    written = first.stat().st_mtime_ns
    recipe._tune_image(shop, cpu, range(2), tmp_path / "cache")
    assert first.stat().st_mtime_ns == written  # what is done is passed over
    recipe._finish(shop, torch.float32)

    own = ImageTower().trainable().state_dict()
    folders = [*(shop.folder(recipe.IMAGE, member) for member in range(2)), shop.out]
    states = [load_image_tower(folder).trainable().state_dict() for folder in folders]
    name = "conv_head.weight"
    one, other, final = (state[name] - own[name] for state in states)
    assert float((one - other).norm()) > 0  # seeds differ
    expected = recipe.SHARE * (one + other) / 2
    # fp16 of the weights, of which these few steps changed a four-thousandth
    assert float((final - expected).norm() / expected.norm()) < 0.06
    heads = [load_heads(folder)[0].image.concept_map.weight for folder in [*folders, shop.merged]]
    wanted = heads[3] + recipe.SHARE * ((heads[0] + heads[1]) / 2 - heads[3])
    torch.testing.assert_close(heads[2], wanted, rtol=1e-3, atol=1e-4)
    encoder = load_encoder(f"local-dir:{shop.out}", device="cpu")
    assert encoder.embed_texts([encoder.prepare_text("a red square")]).shape == (1, 512)
