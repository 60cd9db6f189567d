"""Training throughput next to open_clip's own loop: same model, pictures and machine.

    python tests/bench/train.py [--batch 32] [--steps 4] [--rounds 5] [--threads N] [--device cuda]
                                [--out FILE]

Both decode the same JPEG files, crop them at random, tokenise, and take AdamW steps on the same
small ViT in fp32. open_clip's side is `open_clip_train.train.train_one_epoch` from its wheel, fed
by its CSV dataset's five lines (the class itself wants pandas) through a DataLoader with as many
worker processes as this side has threads. Rounds are interleaved, and their order turns. A third
contender is this side with the text tower run over the whole context, as open_clip does: what is
left of the difference without that saving. The last line is JSON, kept in results/ (train.json is
of a CPU, train-cuda.json of a GPU).
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import platform
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from models.encoders.base.model_id import parse_model_id
from models.sources import open_source
from models.training.config import TrainConfig
from models.training.distributed import World
from models.training.open_clip import load_pair, make_mix
from models.training.pair import Batch, Feed
from models.training.samples import Augmentation, Augmenter, Preparer, load_batches
from models.training.step import Stepper, make_optimiser

RESULT = Path(__file__).parent / "results" / "train.json"
MODEL: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {
        "image_size": 224,
        "layers": 6,
        "width": 256,
        "head_width": 64,
        "patch_size": 32,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 256,
        "heads": 4,
        "layers": 6,
    },
}
WORDS = [
    "a",
    "the",
    "red",
    "old",
    "small",
    "dog",
    "man",
    "woman",
    "street",
    "beach",
    "car",
    "house",
    "tree",
    "runs",
    "stands",
    "near",
    "with",
]
RATE = 1e-4


def make_data(folder: Path, pictures: int) -> tuple[list[Path], list[str], str]:
    """JPEG files of 500 x 375 with captions of about ten words, and the same as a shard."""
    dice = np.random.default_rng(0)
    paths, captions = [], []
    for at in range(pictures):
        coarse = dice.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        path = folder / f"{at:05d}.jpg"
        picture.save(path, quality=90)
        paths.append(path)
        captions.append(" ".join(dice.choice(WORDS, size=int(dice.integers(6, 15)))))
    shard = folder / "data.tar"
    with tarfile.open(shard, "w") as archive:
        for path, caption in zip(paths, captions, strict=True):
            for name, data in (
                (path.name, path.read_bytes()),
                (f"{path.stem}.txt", caption.encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return paths, captions, str(shard)


class CsvLike(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """open_clip_train.data.CsvDataset without pandas."""

    def __init__(self, paths: list[Path], captions: list[str], transform: Any, tokenize: Any):
        self._paths, self._captions = paths, captions
        self._transform, self._tokenize = transform, tokenize

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self._transform(Image.open(str(self._paths[at])))
        return image, self._tokenize([self._captions[at]])[0]


def theirs(
    folder: Path, paths: list[Path], captions: list[str], options: argparse.Namespace
) -> Callable[[], int]:
    """One call: an epoch of `steps` batches through open_clip's loop -> pairs."""
    model, transform, _ = open_clip.create_model_and_transforms(
        f"local-dir:{folder}", device=options.device, output_dict=True
    )
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    loader = DataLoader(
        CsvLike(paths, captions, transform, tokenizer),
        batch_size=options.batch,
        shuffle=True,
        num_workers=options.threads,
        persistent_workers=True,
        pin_memory=options.device != "cpu",
        drop_last=True,
    )
    loader.num_samples, loader.num_batches = len(paths), len(loader)  # type: ignore[attr-defined]
    # parameters split as in open_clip_train.main
    named = list(model.named_parameters())
    bare = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n]
    rest = [p for n, p in named if all(p is not q for q in bare)]
    optimiser = torch.optim.AdamW(
        [{"params": bare, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.2}],
        lr=RATE, betas=(0.9, 0.98), eps=1e-6,
    )  # fmt: skip
    arguments = SimpleNamespace(
        device=options.device, precision="fp32", distill=False, accum_freq=1, rank=0,
        skip_scheduler=False, horovod=False, grad_clip_norm=1.0, local_rank=0, world_size=1,
        distributed=False, log_local=False, log_every_n_steps=1, batch_size=options.batch,
        wandb=False,
    )  # fmt: skip
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda _: None)}
    schedule = cosine_lr(optimiser, RATE, 10, 10_000)
    epoch = 0

    def call() -> int:
        nonlocal epoch
        train_one_epoch(
            model, data, open_clip.ClipLoss(), epoch, optimiser, None, schedule, None, arguments
        )
        epoch += 1
        return len(loader) * options.batch

    return call


def ours(
    folder: Path, shard: str, options: argparse.Namespace, *, whole_context: bool = False
) -> Callable[[], int]:
    """One call: as many steps through this project's step and loader -> pairs."""
    pair = load_pair(parse_model_id(f"local-dir:{folder}"))
    if whole_context:
        pair._encode_text = pair.module.encode_text
    world = World(0, 1, torch.device(options.device))
    config = TrainConfig(epochs=1, batch_size=options.batch, lr=RATE, weight_decay=0.2)
    pair.module.to(world.device)
    optimiser = make_optimiser(pair, config)
    stepper = Stepper(pair, pair.objective(config), optimiser, config, world)
    mix = make_mix(
        [Feed("main", [open_source(shard)], options.batch * options.steps)], config, world
    )
    preparer = Preparer(Augmenter(pair.preprocess_cfg, Augmentation()), pair.tokenizer)
    batches: Iterator[Batch] = load_batches(
        mix.batches(0), preparer, workers=options.threads, processes=options.device != "cpu"
    )

    def call() -> int:
        for _ in range(options.steps):
            outcome = stepper(next(batches), RATE)
            assert outcome.finite
        return options.steps * options.batch

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.INFO)  # open_clip logs every step
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths, captions, shard = make_data(folder, options.batch * options.steps)
        content = {"model_cfg": MODEL, "preprocess_cfg": {}}
        (folder / "open_clip_config.json").write_text(json.dumps(content))
        torch.manual_seed(0)
        from safetensors.torch import save_file

        save_file(open_clip.CLIP(**MODEL).state_dict(), folder / "open_clip_model.safetensors")
        calls = {
            "open_clip": theirs(folder, paths, captions, options),
            "diptych": ours(folder, shard, options),
            "diptych_whole_context": ours(folder, shard, options, whole_context=True),
        }
        for call in calls.values():
            call()  # workers started, caches warm
        rates: dict[str, list[float]] = {name: [] for name in calls}
        for round_ in range(options.rounds):
            order = list(calls)
            order = order[round_ % 3 :] + order[: round_ % 3]
            for contender in order:
                started = time.perf_counter()
                pairs = calls[contender]()
                rates[contender].append(pairs / (time.perf_counter() - started))
            print({contender: round(values[-1], 1) for contender, values in rates.items()})
    middle = {contender: round(median(values), 1) for contender, values in rates.items()}
    summary = {
        "bench": "train",
        "pairs_per_second": middle,
        "ratio": round(
            median(a / b for a, b in zip(rates["diptych"], rates["open_clip"], strict=True)), 2
        ),
        "ratio_whole_context": round(
            median(
                a / b
                for a, b in zip(rates["diptych_whole_context"], rates["open_clip"], strict=True)
            ),
            2,
        ),
        "batch": options.batch,
        "steps": options.steps,
        "rounds": options.rounds,
        "threads": options.threads,
        "device": options.device,
        "cpu": platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if options.device.startswith("cuda") else None,
        "cores": os.cpu_count(),
        "versions": {"torch": torch.__version__, "open_clip": open_clip.__version__},
    }
    options.out.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
