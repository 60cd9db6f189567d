"""Ways to tune a pair to a small labelled set, in one table: train on one source, test on another.

    python tests/bench/tuning.py --train grocery-store/train-00000.tar \\
        --test grocery-store/test-00000.tar --label-field label [--model starter] [--out FILE]

Zero-shot prompts, Tip-Adapter, a linear head, an adapter, learned prompts, LoRA and full
fine-tuning. Of the starter pair, LoRA and full fine-tuning reach the last convolution of its image
tower and its image head; what lies before is computed once, without augmentation. Its text tower
is numpy and takes no gradients, so prompts cannot be learned. Of an open_clip pair they reach the
image tower, against class directions that rest. Where something has to be chosen (a penalty, when
to stop), it is chosen on a fifth of the training pictures. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.encoder import Encoder
from models.encoders.base.model_id import parse_model_id
from models.encoders.registry import load_encoder
from models.encoders.starter.heads import load_heads
from models.encoders.starter.pair import STARTER_DIRECTORY
from models.labels.prompts import DEFAULT_TEMPLATES
from models.labels.zeroshot import cache_logits, class_logits, class_matrix
from models.metrics import mean_per_class_recall, top_k_accuracy
from models.sources import open_source
from models.sources.embedded import Collected, prepare_rows
from models.sources.records import Reject
from models.training.class_heads import fit_head, held_back, labelled
from models.training.open_clip import load_pair
from models.training.tuning import attach_lora, merge_lora
from models.vectors import unit_rows

BATCH = 32
EPOCHS = 3
RATES = {"lora": 1e-3, "full": 1e-4}


class StarterTail(nn.Module):
    """The starter's last convolution and image head; `before` is the rest of its tower."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        network, heads = encoder._image_tower()._network, load_heads(STARTER_DIRECTORY)[0]
        self.before = [network.conv_stem, network.bn1, network.blocks]
        last = nn.Sequential(network.conv_head, network.bn2, network.global_pool)
        self.visual = nn.ModuleDict({"last": last, "head": heads.image})

    @torch.inference_mode()
    def start(self, images: Sequence[Any]) -> Tensor:
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().sub(127.5).div(127.5)
        for part in self.before:
            x = part(x)
        return x.half().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.visual["head"](self.visual["last"](x.float())), dim=1)


class OpenClipTail(nn.Module):
    """The whole image tower of an open_clip pair."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.visual = load_pair(parse_model_id(model)).module.visual

    def start(self, images: Sequence[Any]) -> Tensor:
        return torch.from_numpy(np.stack(images)).half()

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.visual(x.float()), dim=1)


@dataclass
class Data:
    """Pictures of one source: rows, labels, and what the tail begins with."""

    collected: Collected
    begun_N: Tensor


def read(spec: str, field: str, encoder: Encoder, tail: Any, limit: int | None) -> Data:
    source = open_source(spec, label_field=field)
    begun, rows, labels, waiting = [], [], [], []

    def flush() -> None:
        if waiting:
            begun.append(tail.start(waiting))
            with torch.no_grad():
                rows.append(tail(begun[-1].clone()).numpy())
            waiting.clear()

    for ready in prepare_rows(source, encoder.prepare_image, source=source.name):
        if isinstance(ready, Reject) or ready[1] is None or ready[0].label is None:
            continue
        if limit is not None and labels.count(ready[0].label) >= limit:
            continue
        labels.append(ready[0].label)
        waiting.append(ready[1])
        if len(labels) == 1:  # what is tuned is what the encoder runs
            same = tail(tail.start(waiting).clone()).detach().numpy()
            assert np.allclose(same, encoder.embed_images(waiting), atol=5e-3)
        if len(waiting) == BATCH:
            flush()
    flush()
    return Data(Collected(unit_rows(np.concatenate(rows)), labels=labels), torch.cat(begun).clone())


def fine_tune(
    kind: str, tail: Any, train: Data, class_CD: Tensor, scale: float, epochs: int
) -> tuple[int, int]:
    """Cross entropy against resting class directions -> (numbers that learn, the epoch kept)."""
    torch.manual_seed(0)
    _, target_N, _ = labelled(train.collected)
    held_N = held_back(target_N)
    mine, kept = np.flatnonzero(~held_N), np.flatnonzero(held_N)
    learning = attach_lora(tail, towers=["image"]) if kind == "lora" else 0
    if kind == "full":
        tail.requires_grad_(True)
        learning = sum(value.numel() for value in tail.parameters())
    optimiser = torch.optim.AdamW(
        [value for value in tail.parameters() if value.requires_grad], lr=RATES[kind]
    )
    target = torch.from_numpy(target_N)
    best, best_epoch, best_state = -1.0, 0, None
    dice = np.random.default_rng(0)
    for epoch in range(epochs + 1):
        accuracy = float(
            (embed(tail, train.begun_N[kept]) @ class_CD.T)
            .argmax(1)
            .eq(target[kept])
            .float()
            .mean()
        )
        if accuracy > best:
            best, best_epoch = accuracy, epoch
            best_state = {key: value.clone() for key, value in tail.state_dict().items()}
        if epoch == epochs:
            break
        tail.train()
        for part in tail.modules():
            if isinstance(part, _BatchNorm):
                part.eval()
        order = dice.permutation(mine)
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH]
            loss = functional.cross_entropy(
                scale * tail(train.begun_N[rows]) @ class_CD.T, target[rows]
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    tail.load_state_dict(best_state)
    if kind == "lora":
        merge_lora(tail)
    return learning, best_epoch


@torch.no_grad()
def embed(tail: Any, begun_N: Tensor) -> Tensor:
    tail.eval()
    return torch.cat([tail(part) for part in begun_N.split(BATCH)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--label-field", default="label")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--limit", type=int, help="read so many pictures a label, of each source")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # torch, because its layers are what is tuned
    encoder: Any = load_encoder(
        options.model, device="cpu", precision="fp32", threads=1, backend="torch"
    )
    starter = options.model == "starter"
    tail: Any = StarterTail(encoder) if starter else OpenClipTail(options.model)
    tail.eval()
    fresh = {key: value.clone() for key, value in tail.state_dict().items()}
    started = time.perf_counter()
    train = read(options.train, options.label_field, encoder, tail, options.limit)
    test = read(options.test, options.label_field, encoder, tail, options.limit)
    embedding = time.perf_counter() - started
    print(f"embedded in {embedding:.0f} s", flush=True)
    train_ND, target_N, labels = labelled(train.collected)
    position = {label: at for at, label in enumerate(labels)}
    right = [position[str(label)] for label in test.collected.labels]
    test_BD = test.collected.image_ND
    class_CD = class_matrix(encoder, labels, DEFAULT_TEMPLATES)
    scale = encoder.logit_scale
    table: list[dict[str, Any]] = []

    def row(name: str, judge: Callable[[], tuple[Any, int, str]]) -> None:
        began = time.perf_counter()
        try:
            score_BC, learned, chosen = judge()
        except NotImplementedError as error:
            table.append({"way": name, "why_not": str(error)})
            print(f"{name:14} {error}", flush=True)
            return
        table.append(
            {
                "way": name,
                "top1": round(100 * top_k_accuracy(score_BC, right, 1), 1),
                "mean_per_class": round(100 * mean_per_class_recall(score_BC, right), 1),
                "parameters": learned,
                "chosen": chosen,
                "seconds": round(time.perf_counter() - began, 1),
            }
        )
        print(
            "{way:14} {top1:5} {mean_per_class:5} {parameters:9} {seconds:7} s  {chosen}".format(
                **table[-1]
            ),
            flush=True,
        )

    def zero_shot() -> tuple[Any, int, str]:
        return class_logits(test_BD, class_CD, logit_scale=scale), 0, ""

    def tip_adapter() -> tuple[Any, int, str]:
        added_BC = cache_logits(test_BD, train_ND, target_N.tolist(), len(labels))
        return zero_shot()[0] + added_BC, 0, "all training pictures as examples"

    def by_head(kind: Any) -> Callable[[], tuple[Any, int, str]]:
        def judge() -> tuple[Any, int, str]:
            if kind == "prompts" and starter:
                raise NotImplementedError("the starter's text tower takes no gradients")
            tuned = fit_head(
                kind,
                encoder,
                train.collected,
                templates=DEFAULT_TEMPLATES,
                pair=lambda: load_pair(parse_model_id(options.model)),
            )
            what = "penalty" if kind == "linear" else "epochs"
            return tuned.head.logits(test_BD), tuned.parameters, f"{what} {tuned.chosen:.2g}"

        return judge

    def by_weights(kind: str) -> Callable[[], tuple[Any, int, str]]:
        def judge() -> tuple[Any, int, str]:
            tail.load_state_dict(fresh)
            directions = torch.from_numpy(class_CD)
            learned, epoch = fine_tune(kind, tail, train, directions, scale, options.epochs)
            tuned_BD = embed(tail, test.begun_N).numpy()
            return tuned_BD @ class_CD.T, learned, f"epoch {epoch} of {options.epochs}"

        return judge

    row("zero-shot", zero_shot)
    row("tip-adapter", tip_adapter)
    for kind in ("linear", "adapter", "prompts"):
        row(kind, by_head(kind))
    for kind in ("lora", "full"):
        row(kind, by_weights(kind))
    result = {
        "benchmark": "tuning",
        "model": options.model,
        "train": Path(options.train).parent.name + "/" + Path(options.train).name,
        "test": Path(options.test).parent.name + "/" + Path(options.test).name,
        "pictures": [len(target_N), len(right)],
        "classes": len(labels),
        "limit": options.limit,
        "embedding_seconds": round(embedding, 1),
        "rates": RATES,
        "table": table,
        "threads": 1,
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    print(json.dumps(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
