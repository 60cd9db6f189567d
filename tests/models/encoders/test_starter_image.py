"""The tuned image tower: trained, saved as changes, and refused where it does not belong."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.encoders.registry import load_encoder
from models.encoders.starter import DESCRIPTION_NAME
from models.encoders.starter.description import read_parts
from models.encoders.starter.heads import load_heads, save_heads
from models.encoders.starter.image_graph import save_graph
from models.encoders.starter.image_session import ImageSession
from models.encoders.starter.image_tower import ImageTower, normalised
from models.encoders.starter.pair import STARTER_DIRECTORY, load_image_tower
from models.encoders.starter.text_tower import TextTower
from models.encoders.starter.tuned_weights import (
    IMAGE_GRAPH_NAME,
    IMAGE_WEIGHTS_NAME,
    TEXT_WEIGHTS_NAME,
    copy_weights,
    install,
    load_weights,
    save_weights,
)
from models.errors import ModelError
from models.sources import open_source
from models.training.config import TrainConfig
from models.training.features.maker import WHOLE_SHARE, PictureBank, PictureMaker, varied
from models.training.features.pairs import Pairs, gather
from models.training.record import Step
from models.training.starter import train_heads
from models.training.starter_stages import HeadsOverTower, RowlessRehearsal, StagedPair

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
def maker(tower: ImageTower, tmp_path_factory: pytest.TempPathFactory) -> PictureMaker:
    return PictureMaker(tower, TextTower(), cache=tmp_path_factory.mktemp("pixels"))


@pytest.fixture(scope="module")
def pairs(folder: Path, maker: PictureMaker) -> Pairs:
    return gather([open_source(str(folder / "pairs.jsonl"))], maker)[0]


def prepared(tower: ImageTower, count: int = 3) -> list[np.ndarray]:
    noise = np.random.default_rng(7)
    return [
        tower.prepare(Image.fromarray(noise.integers(0, 255, (80, 100, 3), dtype=np.uint8)))
        for _ in range(count)
    ]


def fresh_joint(tower: ImageTower, bank: PictureBank) -> HeadsOverTower:
    heads = load_heads(STARTER_DIRECTORY)[0].requires_grad_(True)
    return HeadsOverTower(heads, tower.trainable(), bank)


def test_the_bank_holds_what_is_embedded_and_reads_it_again_from_files(
    pairs: Pairs,
    maker: PictureMaker,
    tower: ImageTower,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row_N = pairs.image_NF[:, -1].long()
    assert row_N.tolist() == list(range(len(CAPTIONS)))
    images = [tower.prepare(Image.open(folder / f"{n}.png")) for n in range(len(CAPTIONS))]
    assert np.array_equal(maker.bank.whole(row_N).numpy(), np.stack(images))
    torch.testing.assert_close(pairs.image_NF[:, :-1], tower.features(images), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(ImageTower, "prepare", lambda *_: pytest.fail("decoded again"))
    again, _ = gather([open_source(str(folder / "pairs.jsonl"))], maker)
    other_N = again.image_NF[:, -1].long()
    assert other_N.tolist() == [row + len(CAPTIONS) for row in row_N.tolist()]
    assert torch.equal(maker.bank.whole(other_N), maker.bank.whole(row_N))


def test_a_bank_counts_rows_over_its_sources() -> None:
    bank = PictureBank()
    first_N = bank.add(np.arange(4, dtype=np.uint8).repeat(48).reshape(4, 4, 4, 3))
    second_N = bank.add(np.full((2, 4, 4, 3), 99, np.uint8))
    assert first_N.tolist() == [0, 1, 2, 3]
    assert second_N.tolist() == [4, 5]
    found_BHW3 = bank.whole(torch.tensor([5, 3, 0]))
    assert found_BHW3.shape == (3, 4, 4, 3)
    assert found_BHW3[:, 0, 0, 0].tolist() == [99, 3, 0]


def drawn(pixels_BHW3: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return varied(pixels_BHW3, torch.Generator().manual_seed(seed))


def test_whole_pictures_are_the_pixels_themselves_or_their_mirror_image() -> None:
    noise = torch.Generator().manual_seed(4)
    one_HW3 = torch.randint(0, 256, (20, 20, 3), dtype=torch.uint8, generator=noise)
    found_BCHW = drawn(one_HW3.expand(400, 20, 20, 3))
    plain_CHW = one_HW3.permute(2, 0, 1).float()
    near = [
        ((found_BCHW - x_CHW).abs().amax(dim=(1, 2, 3)) < 0.01).sum().item()
        for x_CHW in (plain_CHW, plain_CHW.flip(2))
    ]
    # binomial, 400 draws: three deviations are about 0.07
    assert sum(near) / 400 == pytest.approx(WHOLE_SHARE, abs=0.08)
    assert near[0] / sum(near) == pytest.approx(0.5, abs=0.13)


def test_crops_show_a_part_and_no_black_edges() -> None:
    # left to right from 50 to 200: a crop's range is a part of that, in order or mirrored
    ramp_W = torch.linspace(50, 200, 64).round().to(torch.uint8)
    found_BCHW = drawn(ramp_W[None, None, :, None].expand(300, 64, 64, 3))
    width_B = found_BCHW[:, 0, 32].amax(dim=1) - found_BCHW[:, 0, 32].amin(dim=1)
    assert width_B.min() > 50  # the narrowest crop: 0.58 of a side, at three quarters' contrast
    assert width_B.min() < 110
    assert found_BCHW.min() > 10
    # rows of one picture stay alike: nothing was turned or sheared
    torch.testing.assert_close(found_BCHW[:, :, 5], found_BCHW[:, :, 60], rtol=1e-3, atol=0.05)


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    noise = torch.Generator().manual_seed(4)
    pixels_BHW3 = torch.randint(0, 256, (6, 20, 20, 3), dtype=torch.uint8, generator=noise)
    assert torch.equal(drawn(pixels_BHW3), drawn(pixels_BHW3))
    assert not torch.equal(drawn(pixels_BHW3), drawn(pixels_BHW3, seed=2))


def test_in_training_the_tower_sees_the_drawn_pixels(
    pairs: Pairs, maker: PictureMaker, tower: ImageTower
) -> None:
    joint = fresh_joint(tower, maker.bank)
    row_N = pairs.image_NF[:, -1].long()
    view_B3HW = maker.bank.draw(row_N, torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain_BF = tower.trainable().forward_features(normalised(view_B3HW)).mean(dim=(2, 3))
        ours_BF = joint._run(view_B3HW)
        other_B3HW = maker.bank.draw(row_N, torch.Generator().manual_seed(1))
        other_BF = joint._run(other_B3HW)
    assert float(torch.cosine_similarity(plain_BF, ours_BF).min()) > 0.995  # bf16
    assert float(torch.cosine_similarity(plain_BF, other_BF).min()) < 0.995


def test_nothing_is_forgotten_before_the_first_step_and_something_after(
    pairs: Pairs, maker: PictureMaker, tower: ImageTower
) -> None:
    joint = fresh_joint(tower, maker.bank).eval()
    image_NF = pairs.image_NF
    before_ND = joint.embed_images(image_NF)
    expected_ND = joint.heads().embed_images(image_NF[:, :-1])
    torch.testing.assert_close(before_ND, expected_ND, rtol=1e-4, atol=1e-4)
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
    pairs: Pairs, maker: PictureMaker, tower: ImageTower
) -> None:
    config = TrainConfig(
        epochs=5, batch_size=10, lr=3e-5, concept_share=0.5, seed=1, grad_clip=0.0, eps=1e-8
    )
    losses, weights = [], []
    rehearsal = RowlessRehearsal(pairs.image_NF[:, :-1], maker)
    for _ in range(2):
        joint = fresh_joint(tower, maker.bank)
        steps: list[Step] = []
        train_heads(StagedPair(joint), pairs, config, rehearsal=rehearsal, on_step=steps.append)
        losses.append([step.loss for step in steps])
        weights.append({name: value.clone() for name, value in joint.tuned().items()})
    assert losses[0] == losses[1]
    assert np.mean(losses[0][-3:]) < np.mean(losses[0][:3])
    own = dict(tower.trainable().named_parameters())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], own[name]) for name in weights[0])


def arrays(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Sharing the tensors' memory."""
    return {name: value.numpy() for name, value in state.items()}


def tuned_state(tower: ImageTower) -> dict[str, torch.Tensor]:
    return {
        name: value * (1.5 if name == "conv_head.weight" else 1.0)
        for name, value in tower.trainable().state_dict().items()
    }


@pytest.fixture
def pair(tower: ImageTower, tmp_path: Path) -> Path:
    """The starter with an image tower that differs in one layer from the package's."""
    own = tower.trainable().state_dict()
    parts = read_parts(STARTER_DIRECTORY)
    del parts[IMAGE_GRAPH_NAME]
    copy_weights(STARTER_DIRECTORY, tmp_path, parts)
    parts[IMAGE_WEIGHTS_NAME] = save_weights(
        tuned_state(tower), tmp_path, IMAGE_WEIGHTS_NAME, own=own
    )
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
    changes = load_image_tower(pair)
    sha256 = save_graph(changes.trainable(), pair)
    parts = {TEXT_WEIGHTS_NAME: read_parts(pair)[TEXT_WEIGHTS_NAME], IMAGE_GRAPH_NAME: sha256}
    save_heads(load_heads(pair)[0], pair, parts=parts)
    graph_BF = ImageSession(pair, sha256).rows(images)
    np.testing.assert_allclose(load_image_tower(pair).rows(images), graph_BF, rtol=1e-4, atol=1e-4)
    # the weights were rounded to fp16 on the way
    cosine_B = torch.cosine_similarity(torch.from_numpy(graph_BF), changes.features(images))
    assert float(cosine_B.min()) > 0.9999
    assert load_encoder(f"local-dir:{pair}").backend == "onnx"
    (pair / IMAGE_GRAPH_NAME).write_bytes(b"\x08\x07" + bytes(100))
    with pytest.raises(ModelError, match="not the image tower"):
        ImageSession(pair, sha256)


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


def test_changes_come_back_within_half_a_step(pair: Path, tower: ImageTower) -> None:
    sha256 = read_parts(pair)[IMAGE_WEIGHTS_NAME]
    own = tower.trainable().state_dict()
    found = {name: value.clone() for name, value in own.items()}
    install(load_weights(pair, IMAGE_WEIGHTS_NAME, sha256), arrays(found), IMAGE_WEIGHTS_NAME)
    for name, wanted in tuned_state(tower).items():
        if wanted.ndim < 2:
            torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=1e-4)
            continue
        largest_R = (wanted - own[name]).flatten(1).abs().amax(dim=1)
        off_R = (found[name] - wanted).flatten(1).abs().amax(dim=1)
        assert bool((off_R <= largest_R / 254 * 1.01 + 1e-7).all()), name
    # control: what was not tuned is the package's own, to the bit
    assert torch.equal(found["conv_stem.weight"], own["conv_stem.weight"])
    assert not torch.equal(found["conv_head.weight"], own["conv_head.weight"])


def test_weights_in_half_precision_are_read_too(tower: ImageTower, tmp_path: Path) -> None:
    wanted = {"conv_head.weight": tuned_state(tower)["conv_head.weight"]}
    sha256 = save_weights(wanted, tmp_path, IMAGE_WEIGHTS_NAME)
    found = tower.trainable().state_dict()
    install(load_weights(tmp_path, IMAGE_WEIGHTS_NAME, sha256), arrays(found), IMAGE_WEIGHTS_NAME)
    torch.testing.assert_close(
        found["conv_head.weight"], wanted["conv_head.weight"], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"conv_head.weight.change": torch.zeros(1280, 352, 1, 1)},
        {
            "conv_head.weight.change": torch.zeros(1280, 352, 1, 1),
            "conv_head.weight.step": torch.zeros(7),
        },
        {"conv_head.change": torch.zeros(3), "conv_head.step": torch.zeros(3)},
    ],
)
def test_changes_that_do_not_fit_are_refused(
    tower: ImageTower, wrong: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ModelError, match="does not fit the image tower"):
        install(arrays(wrong), arrays(tower.trainable().state_dict()), IMAGE_WEIGHTS_NAME)
