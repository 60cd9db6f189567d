"""Memory and gradients of cached large batches, on a small ViT with a text tower.

    python tests/bench/gradcache.py [--batch 4096] [--micro 64] [--out FILE]

Each figure is a process of its own: an ordinary step on one micro-batch, a cached step on the large
batch, and ordinary steps on growing batches as the control that shows what memory would do. Memory
is the peak of the resident set during the step, and how far that lies above the moment before it.
Pictures are made piece by piece, as a loader would bring them; they are not part of what is
measured. The gradients are compared in fp32 on a batch that fits. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import psutil
import torch
from torch import Tensor

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "support")]

from loss_inputs import objective_for  # noqa: E402

from models.training.step import cached_backward  # noqa: E402

CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 512, "width": 64, "heads": 2, "layers": 2},
}
FULL = [64, 128, 256, 512, 1024]
COMPARED = 256


def pair() -> Any:
    torch.manual_seed(0)
    return open_clip.CLIP(**CONFIG).train()


def encoder(model: Any) -> Callable[[slice], tuple[Tensor, Tensor]]:
    def encode(piece: slice) -> tuple[Tensor, Tensor]:
        made = [example(number) for number in range(piece.start, piece.stop)]
        image_b3HW, text_bL = (torch.stack(tensors) for tensors in zip(*made, strict=True))
        return (
            model.encode_image(image_b3HW, normalize=True),
            model.encode_text(text_bL, normalize=True),
        )

    return encode


def example(number: int) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(number)
    return torch.randn(3, 64, 64, generator=dice), torch.randint(1, 512, (16,), generator=dice)


def step(model: Any, batch: int, micro: int | None) -> float:
    if micro is None:
        loss = objective_for(model)(*encoder(model)(slice(0, batch)))
        loss.backward()
        return loss.item()
    pieces = [slice(begin, begin + micro) for begin in range(0, batch, micro)]
    return cached_backward(pieces, encoder(model), objective_for(model, chunk=64)).item()


def measure(batch: int, micro: int | None) -> dict[str, Any]:
    """One step in this process, after a first one on two pairs that loads what torch loads late."""
    model = pair()
    step(model, 2, None)
    gc.collect()
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    started = time.perf_counter()
    loss = step(model, batch, micro)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text().splitlines()
    peak = 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return {
        "batch": batch,
        "micro": micro,
        "loss": loss,
        "peak_mb": round(peak / 2**20, 1),
        "step_mb": round((peak - before) / 2**20, 1),
        "seconds": round(seconds, 1),
    }


def in_a_child(batch: int, micro: int | None) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", "--batch", str(batch)]
    command += ["--micro", str(micro or 0)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output)
    print(("cached" if micro else "full"), result, flush=True)
    return result


def gradient_difference(micro: int) -> dict[str, float]:
    """How far the cached gradients are from the full batch's, and plain accumulation's are."""
    found = {"full": pair(), "cached": pair(), "accumulated": pair()}
    step(found["full"], COMPARED, None)
    step(found["cached"], COMPARED, micro)
    for begin in range(0, COMPARED, micro):
        objective = objective_for(found["accumulated"])
        rows = encoder(found["accumulated"])(slice(begin, begin + micro))
        (objective(*rows) * micro / COMPARED).backward()
    flat = {
        name: torch.cat([parameter.grad.double().flatten() for parameter in model.parameters()])
        for name, model in found.items()
    }
    full = flat.pop("full")
    return {name: float((one - full).norm() / full.norm()) for name, one in flat.items()}


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--micro", type=int, default=64)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        print(json.dumps(measure(options.batch, options.micro or None)))
        return
    alone = in_a_child(options.micro, None)
    cached = in_a_child(options.batch, options.micro)
    full = [in_a_child(batch, None) for batch in FULL]
    apart = gradient_difference(options.micro)
    result: dict[str, Any] = {
        "benchmark": "gradcache",
        "micro_batch_alone": alone,
        "cached": cached,
        "cached_peak_over_micro": round(cached["peak_mb"] / alone["peak_mb"], 3),
        "full": full,
        "gradient_difference": {name: float(f"{value:.2g}") for name, value in apart.items()},
        "compared_batch": COMPARED,
        "dtype": "fp32",
        "parameters": sum(parameter.numel() for parameter in pair().parameters()),
        "threads": 1,
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
    }
    print(json.dumps(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
