"""Pieces of the trainer, each against a second way of saying the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import blocks, tiny_pair
from torch import Tensor

from models.encoders.base.model_id import parse_model_id
from models.encoders.open_clip.assembly import transform
from models.encoders.open_clip.lookup import find_fresh
from models.errors import ModelError
from models.images.decode import decode_image
from models.training.config import Circumstances, TrainConfig, resolved
from models.training.distributed import World
from models.training.loop import learning_rate
from models.training.losses import InfoNCEObjective
from models.training.open_clip import OpenClipPair, load_pair
from models.training.pair import Batch
from models.training.samples import disturbed
from models.training.step import Stepper, make_optimiser, set_rate
from models.training.tuning import Place, lock, places

HERE = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pair(tmp_path_factory.mktemp("parts") / "pair")


def load(folder: Path) -> OpenClipPair:
    return load_pair(parse_model_id(f"local-dir:{folder}"))


def a_batch(pair: OpenClipPair, size: int = 6, hard: int = 0) -> Batch:
    dice = Random(0)
    pictures = [decode_image(blocks(at, size=32)) for at in range(size)]
    pixels = [np.asarray(picture).transpose(2, 0, 1) for picture in pictures]
    texts = [f"the number {at} of a heap" for at in range(size)]
    worse = [disturbed(text, dice) for text in texts for _ in range(hard)]
    tokens = [torch.from_numpy(pair.tokenizer(text).tokens) for text in texts]
    return Batch(
        image_BX=torch.from_numpy(np.stack(pixels)),
        text_MX=torch.stack(tokens),
        group_B=torch.arange(size),
        keys=tuple(texts),
        hard_HX=torch.from_numpy(np.stack([pair.tokenizer(t).tokens for t in worse]))
        if hard
        else None,
    )


def gradients(folder: Path, batch: Batch, **named: Any) -> tuple[float, dict[str, Tensor]]:
    """(loss, gradient by parameter) of one step; the weights are moved afterwards, not before."""
    pair = load(folder)
    config = TrainConfig(epochs=1, batch_size=6, lr=1e-3, grad_clip=0, **named)
    lock(pair.module, image=config.lock_image, text=config.lock_text)
    optimiser = make_optimiser(pair, config)
    outcome = Stepper(pair, pair.objective(config), optimiser, config, HERE)(batch, 1e-3)
    found = pair.module.named_parameters()
    return outcome.loss, {n: p.grad.clone() for n, p in found if p.grad is not None}


@pytest.mark.parametrize("hard", [0, 2])
def test_a_step_in_pieces_has_the_loss_and_gradients_of_the_whole(folder: Path, hard: int) -> None:
    batch = a_batch(load(folder), hard=hard)
    loss, whole = gradients(folder, batch)
    for size in (1, 4):
        other, pieces = gradients(folder, batch, micro_batch=size)
        assert other == pytest.approx(loss, rel=1e-5)
        for name, value in whole.items():
            torch.testing.assert_close(pieces[name], value, rtol=1e-3, atol=1e-6)


def test_a_step_is_what_open_clip_and_the_plain_loss_come_to(folder: Path) -> None:
    pair = load(folder)
    batch = a_batch(pair)
    loss, found = gradients(folder, batch)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}", output_dict=True)
    pixels = [
        transform(pair.preprocess_cfg)(Image.fromarray(image.numpy().transpose(1, 2, 0)))
        for image in batch.image_BX
    ]
    value = open_clip.ClipLoss()(**model.train()(torch.stack(pixels), batch.text_MX))
    value.backward()
    assert loss == pytest.approx(float(value.detach()), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_hard_negatives_make_the_loss_harder_and_locked_towers_keep_it(folder: Path) -> None:
    pair = load(folder)
    easy, hard = a_batch(pair), a_batch(pair, hard=2)
    assert gradients(folder, hard)[0] > gradients(folder, easy)[0]
    loss, whole = gradients(folder, hard)
    for locked in ("lock_image", "lock_text"):
        for micro in (None, 4):
            other, found = gradients(folder, hard, **{locked: True, "micro_batch": micro})
            assert other == pytest.approx(loss, rel=1e-5)
            for name, value in found.items():
                torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-6)
            assert set(found) < set(whole)


def test_autocast_in_bf16_stays_close_and_checkpointing_changes_nothing(folder: Path) -> None:
    batch = a_batch(load(folder))
    loss, whole = gradients(folder, batch)
    low, _ = gradients(folder, batch, precision="bf16")
    assert low == pytest.approx(loss, rel=0.02)
    assert low != loss
    pair = load(folder)
    pair.module.set_grad_checkpointing(True)
    config = TrainConfig(epochs=1, batch_size=6, lr=1e-3, grad_clip=0)
    optimiser = make_optimiser(pair, config)
    Stepper(pair, pair.objective(config), optimiser, config, HERE)(batch, 1e-3)
    for name, parameter in pair.module.named_parameters():
        assert torch.equal(parameter.grad, whole[name]), name


def test_gradients_are_clipped_to_their_norm(folder: Path) -> None:
    batch = a_batch(load(folder))
    whole = gradients(folder, batch)[1]
    norm = math.sqrt(sum(float(value.pow(2).sum()) for value in whole.values()))
    pair = load(folder)
    config = TrainConfig(epochs=1, batch_size=6, lr=1e-3, grad_clip=norm / 4)
    optimiser = make_optimiser(pair, config)
    outcome = Stepper(pair, pair.objective(config), optimiser, config, HERE)(batch, 1e-3)
    assert outcome.gradient_norm == pytest.approx(norm, rel=1e-4)
    for name, parameter in pair.module.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name] / 4, rtol=1e-3, atol=1e-7)


def test_what_is_not_finite_does_not_reach_the_weights(folder: Path) -> None:
    pair = load(folder)
    before = {name: value.clone() for name, value in pair.module.state_dict().items()}
    config = TrainConfig(epochs=1, batch_size=6, lr=1e-3)
    objective = InfoNCEObjective(pair.log_scale)
    objective.forward = lambda *_, **__: pair.log_scale * float("nan")  # type: ignore[method-assign]
    stepper = Stepper(pair, objective, make_optimiser(pair, config), config, HERE)
    assert not stepper(a_batch(pair), 1e-3).finite
    assert all(torch.equal(value, before[n]) for n, value in pair.module.state_dict().items())


def test_norms_biases_gains_positions_and_the_scale_do_not_decay(folder: Path) -> None:
    pair = load(folder)
    module = pair.module
    exempt = {name for name, p in module.named_parameters() if not pair.decays(name, p)}
    assert {"logit_scale", "ln_final.weight", "visual.ln_pre.bias"} <= exempt
    assert {"positional_embedding", "visual.positional_embedding"} <= exempt
    assert "visual.class_embedding" in exempt
    assert not {"token_embedding.weight", "visual.proj", "visual.conv1.weight"} & exempt
    config = TrainConfig(epochs=1, batch_size=2, lr=1.0, weight_decay=0.3, layer_decay=0.5)
    optimiser = make_optimiser(pair, config)
    held = [p for group in optimiser.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(module.parameters()))
    set_rate(optimiser, 0.1)
    names = {id(p): name for name, p in module.named_parameters()}
    rates = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimiser.param_groups
        for p in group["params"]
    }
    assert rates["visual.proj"] == (0.1, 0.3)
    assert rates["logit_scale"] == (0.1, 0.0)
    assert rates["visual.transformer.resblocks.1.mlp.c_fc.weight"] == (0.05, 0.3)
    assert rates["visual.transformer.resblocks.0.mlp.c_fc.bias"] == (0.025, 0.0)
    assert rates["visual.conv1.weight"] == (0.0125, 0.3)
    assert rates["token_embedding.weight"] == (0.0125, 0.3)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        (
            "ViT-B-32",
            {
                "visual.conv1.weight": Place("image", 0, 13),
                "visual.transformer.resblocks.11.ln_1.weight": Place("image", 12, 13),
                "visual.proj": Place("image", 13, 13),
                "transformer.resblocks.0.attn.in_proj_weight": Place("text", 1, 13),
                "text_projection": Place("text", 13, 13),
                "logit_scale": Place("both", 1, 1),
            },
        ),
        (
            "ViT-B-16-SigLIP",
            {
                "visual.trunk.patch_embed.proj.weight": Place("image", 0, 13),
                "visual.trunk.pos_embed": Place("image", 0, 13),
                "visual.trunk.blocks.11.norm1.weight": Place("image", 12, 13),
                "visual.trunk.attn_pool.latent": Place("image", 13, 13),
                "text.token_embedding.weight": Place("text", 0, 13),
                "text.transformer.resblocks.11.ln_1.bias": Place("text", 12, 13),
                "text.ln_final.weight": Place("text", 13, 13),
                "logit_bias": Place("both", 1, 1),
            },
        ),
        (
            "RN50",
            {
                "visual.conv1.weight": Place("image", 0, 5),
                "visual.bn3.weight": Place("image", 0, 5),
                "visual.layer1.0.conv1.weight": Place("image", 1, 5),
                "visual.layer4.2.bn3.weight": Place("image", 4, 5),
                "visual.attnpool.q_proj.weight": Place("image", 5, 5),
            },
        ),
        (
            "convnext_base",
            {
                "visual.trunk.stem.0.weight": Place("image", 0, 5),
                "visual.trunk.stages.3.blocks.0.norm.weight": Place("image", 4, 5),
            },
        ),
    ],
)
def test_every_parameter_has_its_place(architecture: str, expected: dict[str, Place]) -> None:
    with torch.device("meta"):  # shapes without memory
        config = open_clip.get_model_config(architecture)
        custom = config.pop("custom_text", False)
        if "timm_model_name" in config["vision_cfg"]:
            config["vision_cfg"]["timm_model_pretrained"] = False
        kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        found = places(kind(**config))
    for name, place in expected.items():
        assert found[name] == place, name


def test_the_rate_rises_then_falls_along_a_cosine() -> None:
    rates = [learning_rate(step, steps=50, peak=2.0, warmup=0.2) for step in range(50)]
    assert rates[:10] == pytest.approx([2.0 * (step + 1) / 10 for step in range(10)])
    assert rates[10:] == pytest.approx([1.0 + math.cos(math.pi * step / 40) for step in range(40)])


def test_a_disturbed_caption_has_the_same_words_in_another_order() -> None:
    dice = Random(1)
    for text in ("The horse eats the grass.", "a red car beside a blue bus", "一只白猫在草地上"):
        other = disturbed(text, dice)
        assert other != text
        assert sorted(other) == sorted(text)
    assert {disturbed(text, dice) for text in ("", "x", "aa", "the the")} == {""}
    swapped = {disturbed("a cat and the dog", dice) for _ in range(20)}
    assert swapped == {"a dog and the cat"}


def test_defaults_do_little_to_little_data(folder: Path) -> None:
    def chosen(kind: str, **named: Any) -> TrainConfig:
        return resolved({}, kind, Circumstances(**named))

    assert chosen("fine-tuning", pairs=16).epochs == 10
    assert resolved({"batch_size": 128}, "fine-tuning", Circumstances(pairs=1_000_000)).epochs == 1
    assert chosen("fine-tuning", pairs=16).lr < chosen("fresh", pairs=16).lr
    assert chosen("fine-tuning", pairs=16, measured=False).interpolate == 0.5
    assert chosen("fresh", pairs=16, measured=True).interpolate == 1.0
    assert chosen("fine-tuning", pairs=3, ranks=2).batch_size % 2 == 0
    assert load(folder).arithmetic("auto", torch.device("cpu")) == "fp32"


def test_a_bare_architecture_is_found_and_a_misspelt_one_helped_with() -> None:
    assert find_fresh("ViT-B-32").model_cfg["embed_dim"] == 512
    assert find_fresh("ViT-B-16-SigLIP").preprocess_cfg["mean"] == (0.5, 0.5, 0.5)
    with pytest.raises(ModelError, match="ViT-B-33") as caught:
        find_fresh("ViT-B-33")
    assert "ViT-B-32" in str(caught.value.hint)


def test_a_clip_pair_turned_into_a_sigmoid_one_says_so(folder: Path, tmp_path: Path) -> None:
    from models.encoders.open_clip.pair import OpenClipEncoder
    from models.encoders.registry import load_encoder

    pair = load(folder)
    pair.use_bias(True)
    assert float(pair.log_scale.detach().exp()) == pytest.approx(10.0)
    pair.save(tmp_path)
    encoder = load_encoder(f"local-dir:{tmp_path}", device="cpu")
    assert isinstance(encoder, OpenClipEncoder)
    assert encoder.logit_bias == -10.0
    pair.use_bias(False)
    pair.save(tmp_path)
    assert "logit_bias" not in load_file(tmp_path / "open_clip_model.safetensors")
    assert load_encoder(f"local-dir:{tmp_path}", device="cpu").logit_bias is None
