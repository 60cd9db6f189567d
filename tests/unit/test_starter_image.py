"""The image tower's tuned last layers: cut, trained, saved, and refused when they do not belong."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.data import open_source
from models.errors import ModelError
from models.registry import load_encoder
from models.starter import DESCRIPTION_NAME
from models.starter.encoder import STARTER_DIRECTORY, load_image_tower
from models.starter.heads import load_heads, read_parts, save_heads
from models.starter.image_tail import ImageTail, before_tail, in_pieces
from models.starter.towers import ImageTower, TextTower
from models.starter.training.config import TrainConfig
from models.starter.training.image_stage import HeadsOverTail, RowlessRehearsal, tune_image
from models.starter.training.loop import Step
from models.starter.training.pairs import Pairs, gather
from models.starter.training.views import ViewBank, ViewMaker
from models.starter.tuned import (
    IMAGE_WEIGHTS_NAME,
    copy_weights,
    load_weights,
    save_weights,
)

CAPTIONS = ("a red square", "a green field", "the blue sea", "a grey wall", "a white page")
COLOURS = ((200, 20, 20), (20, 160, 40), (10, 60, 200), (120, 120, 120), (250, 250, 250))


@pytest.fixture(scope="module")
def tower() -> ImageTower:
    return ImageTower()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("captioned")
    noise = np.random.default_rng(3)
    with (root / "pairs.jsonl").open("w", encoding="utf-8") as lines:
        for number, (caption, colour) in enumerate(zip(CAPTIONS, COLOURS, strict=True)):
            grain_HW3 = noise.normal(0, 25, (90, 120, 3)) + np.array(colour)
            pixels_HW3 = np.clip(grain_HW3, 0, 255).astype(np.uint8)
            Image.fromarray(pixels_HW3).save(root / f"{number}.png")
            row = {"id": str(number), "image": f"{number}.png", "captions": {"en": caption}}
            lines.write(json.dumps(row) + "\n")
    return root


@pytest.fixture(scope="module")
def maker(tower: ImageTower, tmp_path_factory: pytest.TempPathFactory) -> ViewMaker:
    return ViewMaker(
        tower, TextTower(), crops=lambda _source: 2, cache=tmp_path_factory.mktemp("views")
    )


@pytest.fixture(scope="module")
def pairs(folder: Path, maker: ViewMaker) -> Pairs:
    return gather([open_source(str(folder / "pairs.jsonl"))], maker)[0]


def prepared(tower: ImageTower, count: int = 3) -> list[np.ndarray]:
    noise = np.random.default_rng(7)
    return [
        tower.prepare(Image.fromarray(noise.integers(0, 255, (80, 100, 3), dtype=np.uint8)))
        for _ in range(count)
    ]


def fresh_joint(tower: ImageTower, bank: ViewBank) -> HeadsOverTail:
    heads = load_heads(STARTER_DIRECTORY)[0].requires_grad_(True)
    return HeadsOverTail(heads, ImageTail(tower.trainable()), bank, seed=0)


def test_the_two_halves_are_the_whole(tower: ImageTower) -> None:
    images = prepared(tower)
    map_BCHW = tower.run(images, before_tail)
    assert map_BCHW.shape == (3, 208, 9, 9)
    found_BF = in_pieces(ImageTail(tower.trainable()), map_BCHW, size=2)
    torch.testing.assert_close(found_BF, tower.features(images), rtol=1e-5, atol=1e-5)


def test_only_the_tails_own_convolutions_are_trained(tower: ImageTower) -> None:
    names = set(ImageTail(tower.trainable()).tuned())
    assert all(name.startswith(("blocks.5.", "blocks.6.", "conv_head.")) for name in names)
    assert not any(name.startswith("blocks.5.0.") or "conv_dw" in name for name in names)
    assert {"blocks.5.1.conv_pw.weight", "conv_head.bias"} <= names


def test_views_are_the_tower_s_own_maps_and_are_read_again_from_files(
    pairs: Pairs, maker: ViewMaker, tower: ImageTower, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row_N = pairs.image_NF[:, -1].long()
    assert row_N.tolist() == list(range(len(CAPTIONS)))
    images = [tower.prepare(Image.open(folder / f"{n}.png")) for n in range(len(CAPTIONS))]
    exact_BCHW = tower.run(images, before_tail)
    torch.testing.assert_close(maker.bank.whole(row_N), exact_BCHW, rtol=2e-3, atol=2e-3)
    monkeypatch.setattr(ImageTower, "run", lambda *_: pytest.fail("computed again"))
    again, _ = gather([open_source(str(folder / "pairs.jsonl"))], maker)
    other_N = again.image_NF[:, -1].long()
    assert torch.equal(maker.bank.whole(other_N), maker.bank.whole(row_N))


def test_a_bank_draws_the_same_views_from_the_same_seed_and_only_from_its_row() -> None:
    bank = ViewBank()
    maps = [np.full((4, 9, 9, 208), fill, np.float16) for fill in (0, 1)]
    first_N = bank.add(
        [one + 10 * np.arange(4, dtype=np.float16)[:, None, None, None] for one in maps]
    )
    second_N = bank.add([np.full((2, 9, 9, 208), 99, np.float16)])
    assert first_N.tolist() == [0, 1, 2, 3]
    assert second_N.tolist() == [4, 5]
    row_B = torch.tensor([5, 3, 0, 3, 3, 3, 3, 3, 3])
    drawn = [
        bank.draw(row_B, torch.Generator().manual_seed(seed))[:, 0, 0, 0] for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0][0] == 99
    assert set(drawn[0][3:].tolist()) == {30.0, 31.0}  # both the whole picture and its crop


def test_nothing_is_forgotten_before_the_first_step_and_something_after(
    pairs: Pairs, maker: ViewMaker, tower: ImageTower
) -> None:
    joint = fresh_joint(tower, maker.bank).eval()
    image_NF = pairs.image_NF
    before_ND = joint.embed_images(image_NF)
    expected_ND = joint.heads().embed_images(image_NF[:, :-1])
    torch.testing.assert_close(before_ND, expected_ND, rtol=1e-3, atol=1e-3)
    old_NF = image_NF[:, :-1]
    assert float(joint._forgotten(old_NF, old_NF).abs()) < 1e-5
    # the divergence in its own words
    new_NF = old_NF * 1.3
    logit_NC, other_NC = (
        x @ joint.image.weight_CF.T + joint.image.bias_C for x in (old_NF, new_NF)
    )
    p_NC, q_NC = logit_NC.softmax(1), other_NC.softmax(1)
    by_hand = sum(
        float(p * (p / q).log())
        for pn, qn in zip(p_NC, q_NC, strict=True)
        for p, q in zip(pn, qn, strict=True)
        if p > 0
    ) / len(image_NF)
    assert float(joint._forgotten(old_NF, new_NF)) == pytest.approx(by_hand, rel=1e-3)


def test_a_run_learns_and_comes_out_the_same_twice(
    pairs: Pairs, maker: ViewMaker, tower: ImageTower
) -> None:
    config = TrainConfig(epochs=6, batch_size=10, lr=3e-5, concept_share=0.5, seed=1)
    losses, weights = [], []
    for _ in range(2):
        joint = fresh_joint(tower, maker.bank)
        steps: list[Step] = []
        rehearsal = RowlessRehearsal(pairs.image_NF[:, :-1], maker)
        tune_image(joint, pairs, config, rehearsal=rehearsal, on_step=steps.append)
        losses.append([step.loss for step in steps])
        weights.append({name: value.clone() for name, value in joint.tail.tuned().items()})
    assert losses[0] == losses[1]
    assert np.mean(losses[0][-3:]) < np.mean(losses[0][:3])
    own = dict(tower.trainable().named_parameters())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], own[name]) for name in weights[0])


@pytest.fixture
def pair(tower: ImageTower, tmp_path: Path) -> Path:
    """The starter with an image tower that differs in one layer from its own."""
    tuned = {
        name: value * (1.5 if name == "conv_head.weight" else 1.0)
        for name, value in ImageTail(load_image_tower(STARTER_DIRECTORY).trainable())
        .tuned()
        .items()
    }
    parts = read_parts(STARTER_DIRECTORY)
    copy_weights(STARTER_DIRECTORY, tmp_path, parts)
    parts[IMAGE_WEIGHTS_NAME] = save_weights(tuned, tmp_path, IMAGE_WEIGHTS_NAME)
    save_heads(load_heads(STARTER_DIRECTORY)[0], tmp_path, parts=parts)
    return tmp_path


def test_a_pair_brings_its_image_tower_along(pair: Path) -> None:
    tuned, plain = load_encoder(f"local-dir:{pair}"), load_encoder("starter")
    assert tuned.fingerprint.differences(plain.fingerprint) == ["weights_sha256"]
    data = BytesIO()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(data, "PNG")
    image = Image.open(data).convert("RGB")
    rows = [one.embed_images([one.prepare_image(image)]) for one in (tuned, plain)]
    assert float((rows[0] * rows[1]).sum()) < 0.9999


def test_onnx_runs_the_tuned_tower(pair: Path) -> None:
    pytest.importorskip("onnxruntime")
    images = prepared(ImageTower())
    rows = [
        load_image_tower(pair, backend=backend).features(images) for backend in ("torch", "onnx")
    ]
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-3, atol=1e-3)


def test_another_file_or_other_names_are_refused(pair: Path) -> None:
    path = pair / IMAGE_WEIGHTS_NAME
    sha256 = save_weights({"blocks.9.conv.weight": torch.zeros(1)}, pair, IMAGE_WEIGHTS_NAME)
    with pytest.raises(ModelError, match="not the image tower") as caught:
        load_image_tower(pair)
    assert caught.value.code == "model-wrong-weights"
    description = json.loads((pair / DESCRIPTION_NAME).read_text())
    description["parts"][IMAGE_WEIGHTS_NAME] = sha256
    (pair / DESCRIPTION_NAME).write_text(json.dumps(description))
    with pytest.raises(ModelError, match="does not fit the image tower"):
        load_image_tower(pair)
    path.unlink()
    with pytest.raises(ModelError, match="cannot read"):
        load_encoder(f"local-dir:{pair}")


def test_the_file_holds_what_was_saved_to_half_precision(pair: Path) -> None:
    sha256 = read_parts(pair)[IMAGE_WEIGHTS_NAME]
    read = load_weights(pair, IMAGE_WEIGHTS_NAME, sha256)
    plain = ImageTail(load_image_tower(STARTER_DIRECTORY).trainable()).tuned()
    wanted = plain["conv_head.weight"] * 1.5
    torch.testing.assert_close(read["conv_head.weight"], wanted.detach(), rtol=1e-3, atol=1e-4)
