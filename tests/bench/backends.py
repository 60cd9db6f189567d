"""Is another engine clearly ahead of torch? Both image towers, each arithmetic, in one run.

    tests/bench/backends_setup.sh FOLDER [PYTHON]
    FOLDER/bin/python tests/bench/backends.py --pictures val.tar [--text-field captions.en]
        [--work DIR] [--threads 1,2] [--batches 1,32] [--rounds 5] [--compile] [--out FILE]

The starter's tower has its real weights; a ViT-B/32 of open_clip's has random ones, which tell its
speed, and of its accuracy only that nothing is broken. Engines take turns, round by round; `speed`
is the median over rounds of the shipped engine's time divided by this one's, so that a busy machine
disturbs both alike, and `cpu_ms` the least processor time a picture took. For the starter, the
pictures' captions are searched in what each engine embeds: recall and, of fp32's first ten, the
share that is still among the first ten. int8 is calibrated on pictures that are not searched.
A backend is worth having from 1.3 at a cosine of 0.999 with the ranking unchanged. The last line is
JSON.

Shapes: B batch, D embedding, N pictures, Q captions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "bench")]

from backends_engines import (  # noqa: E402
    Array,
    Run,
    Tower,
    onnx_engines,
    openvino_engines,
    starter,
    torch_engines,
    vit,
)
from serve import cpu  # noqa: E402

from models.encoders.starter.pair import load_starter  # noqa: E402
from models.images.decode import decode_image  # noqa: E402
from models.sources import open_source  # noqa: E402
from models.sources.records import Record  # noqa: E402
from models.vectors import unit_rows  # noqa: E402

PACKAGES = ("torch", "onnxruntime", "openvino", "nncf", "onnx", "timm", "open_clip_torch")


def main() -> None:
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    encoder = load_starter(precision="fp32", backend="torch")
    pixels, captions = _pictures(options, encoder)
    report: dict[str, Any] = {
        "benchmark": "backends", "pictures": options.name or options.pictures.split("/")[-1],
        "cpu": cpu(), "cores": os.cpu_count(), "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES}, "rounds": options.rounds,
        "load": os.getloadavg()[0], "towers": {},
    }  # fmt: skip
    towers = {"starter": starter, "vit": vit}
    for key in options.towers.split(","):
        tower = towers[key]()
        inputs, aside = _inputs(tower, pixels), options.calibration
        examples, searched = inputs[:aside], inputs[aside:]
        one: dict[str, Any] = {"shipped": tower.shipped, "engines": {}}
        for threads in options.threads:
            torch.set_num_threads(threads)
            engines = dict(_engines(tower, options, examples, threads))
            if threads == options.threads[0]:
                found = one["engines"]
                shown = pixels[aside:]
                rows = _accuracy(tower, engines, searched, shown, encoder, found)
                if not tower.transformer:
                    _ranking(rows, captions[aside:], encoder, found)
            for batch in options.batches:
                _times(tower, engines, searched, batch, threads, options.rounds, one["engines"])
        report["towers"][tower.name] = one
        _show(tower.name, one)
    text = json.dumps(report)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(text)


def _engines(
    tower: Tower, options: Any, examples: Array, threads: int
) -> Iterator[tuple[str, Run]]:
    yield from torch_engines(tower, compiled=options.compile)
    yield from onnx_engines(tower, options.work, examples, threads)
    yield from openvino_engines(tower, options.work, examples, threads)


class _Engine(nn.Module):
    """An engine in the place of the starter's network, so that the rest is the starter's own."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def forward(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        return self.forward_features(pixels_B3HW).mean(dim=(2, 3))

    def forward_features(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._run(pixels_B3HW.contiguous().numpy()))


def _embedded(run: Run, pixels: Array, encoder: Any) -> Array:
    tower = encoder._image_tower()
    network, tower._network = tower._network, _Engine(run)
    try:
        batches = [list(pixels[at : at + 16]) for at in range(0, len(pixels), 16)]
        return np.concatenate([encoder.embed_images(batch) for batch in batches])
    finally:
        tower._network = network


def _accuracy(
    tower: Tower, engines: dict[str, Run], images: Array, pixels: Array, encoder: Any,
    report: dict[str, Any],
) -> dict[str, Array]:  # fmt: skip
    """Least cosine to the first engine, torch in fp32; returns what each embeds."""
    rows: dict[str, Array] = {}
    for name, run in engines.items():
        if tower.transformer:
            batches = [run(images[at : at + 16]) for at in range(0, len(images), 16)]
            rows[name] = unit_rows(np.concatenate(batches))
        else:
            rows[name] = _embedded(run, pixels, encoder)
        cosine_N = (rows[name] * next(iter(rows.values()))).sum(axis=1)
        report.setdefault(name, {})["cosine_min"] = round(float(cosine_N.min()), 6)
    return rows


def _ranking(
    rows: dict[str, Array], captions: list[str], encoder: Any, report: dict[str, Any]
) -> None:
    texts_QD = encoder.embed_texts([encoder.prepare_text(text) for text in captions])
    right_Q1 = np.arange(len(captions))[:, None]
    before: Any = None
    for name, rows_ND in rows.items():
        order = np.argsort(-(texts_QD @ rows_ND.T), axis=1, kind="stable")[:, :10]
        before = order if before is None else before
        shared = [len(set(a) & set(b)) / 10 for a, b in zip(order, before, strict=True)]
        report[name] |= {
            **{
                f"R@{k}": round(100 * float((order[:, :k] == right_Q1).any(1).mean()), 2)
                for k in (1, 5, 10)
            },
            "same_ten": round(float(np.mean(shared)), 4),
        }


def _times(
    tower: Tower, engines: dict[str, Run], images: Array, batch: int, threads: int, rounds: int,
    report: dict[str, Any],
) -> None:  # fmt: skip
    given = np.ascontiguousarray(images[np.arange(batch) % len(images)])
    walls: dict[str, list[float]] = {name: [] for name in engines}
    spent: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(-1, rounds):
        for name, run in engines.items():
            time.sleep(0.02)  # thread pools of the last one go to sleep
            wall, processor = time.perf_counter(), time.process_time()
            run(given)
            if turn >= 0:
                walls[name].append(time.perf_counter() - wall)
                spent[name].append(time.process_time() - processor)
    for name in engines:
        ratios = [a / b for a, b in zip(walls[tower.shipped], walls[name], strict=True)]
        used = [a / b for a, b in zip(spent[tower.shipped], spent[name], strict=True)]
        report.setdefault(name, {})[f"threads {threads}, batch {batch}"] = {
            "ms": round(1e3 * min(walls[name]) / batch, 2),
            "cpu_ms": round(1e3 * min(spent[name]) / batch, 2),
            "speed": round(statistics.median(ratios), 2),
            "speed_cpu": round(statistics.median(used), 2),
        }


def _pictures(options: Any, encoder: Any) -> tuple[Array, list[str]]:
    """uint8 [N, 260, 260, 3] and one caption each."""
    pixels, captions = [], []
    for record in open_source(options.pictures, text_field=options.text_field):
        if isinstance(record, Record) and record.image is not None and record.texts:
            pixels.append(encoder.prepare_image(decode_image(record.image)))
            captions.append(next(iter(record.texts.values()))[0])
        if len(pixels) == options.calibration + options.count:
            break
    return np.stack(pixels), captions


def _inputs(tower: Tower, pixels: Array) -> Array:
    if not tower.transformer:
        return np.ascontiguousarray(
            ((pixels.astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2)
        )
    at = (pixels.shape[1] - tower.side) // 2
    cut = pixels[:, at : at + tower.side, at : at + tower.side].astype(np.float32) / 255
    return np.ascontiguousarray(((cut - 0.45) / 0.27).transpose(0, 3, 1, 2), dtype=np.float32)


def _show(name: str, one: dict[str, Any]) -> None:
    print(f"{name}; 1.0 is {one['shipped']}", file=sys.stderr)
    for engine, found in one["engines"].items():
        speeds = {key: value["speed"] for key, value in found.items() if isinstance(value, dict)}
        rest = {key: value for key, value in found.items() if not isinstance(value, dict)}
        print(f"  {engine:24} {speeds} {rest}", file=sys.stderr)


def _options() -> Any:
    def numbers(text: str) -> list[int]:
        return [int(one) for one in text.split(",")]

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", required=True, help="a source of captioned pictures")
    parser.add_argument("--name", help="what to call it in the report")
    parser.add_argument("--text-field", default="captions.en")
    parser.add_argument("--count", type=int, default=300, help="pictures that are searched")
    parser.add_argument("--calibration", type=int, default=100, help="pictures for int8 only")
    parser.add_argument("--work", type=Path, default=Path("build/backends"))
    parser.add_argument("--towers", default="starter,vit")
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--batches", type=numbers, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile too; needs a C++ compiler"
    )
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
