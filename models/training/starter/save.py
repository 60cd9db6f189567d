"""A training run's directory: heads, the config that made them, metrics and a curve.

    diptych_starter.json, heads.safetensors   the pair; load with --model local-dir:DIR
    text.safetensors, image.safetensors       where a tower is not the package's own
    train_config.json, curve.png, and metrics.jsonl, which is written as it goes

Every file is written beside its place and renamed, the description last.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

from models.atomic import replace_file
from models.encoders.starter.heads import read_parts, save_heads
from models.encoders.starter.tuned_weights import copy_weights
from models.figures import figure_class
from models.training.starter.config import TrainConfig
from models.training.starter.loop import TrainResult


def save_run(
    result: TrainResult,
    config: TrainConfig,
    directory: Path,
    *,
    data: dict[str, Any],
    started_from: Path | None = None,
) -> bool:
    """Write everything into `directory`; False when there is no curve for want of matplotlib.

    Args:
        result: heads and how they came about.
        config: saved beside them.
        directory: made if it is missing.
        data: what was trained on, for the saved config.
        started_from: the pair whose towers the heads sit on; its tuned weights come along.
    """
    directory.mkdir(parents=True, exist_ok=True)
    described = {"config": asdict(config), "data": data, "kept_epoch": result.kept_epoch}
    text = json.dumps(described, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    replace_file(directory / "train_config.json", text.encode())
    curve = draw_curve(result)
    if curve is not None:
        replace_file(directory / "curve.png", curve)
    parts = read_parts(started_from) if started_from is not None else {}
    if started_from is not None:
        copy_weights(started_from, directory, parts)
    save_heads(result.heads, directory, parts=parts)
    return curve is not None


def draw_curve(result: TrainResult) -> bytes | None:
    """Loss by step and recall@10 by epoch as a PNG; None where matplotlib is not installed."""
    kind = figure_class()
    if kind is None:
        return None
    figure = kind(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([step.step for step in result.steps], [step.loss for step in result.steps])
    left.set(xlabel="step", ylabel="InfoNCE loss", title="training loss")
    for language in sorted(result.validation[0][1]) if result.validation else []:
        for way, prefix in (("text → image", "image"), ("image → text", "text")):
            right.plot(
                [epoch for epoch, _ in result.validation],
                [
                    100 * recall[language][f"{prefix}_retrieval_recall@10"]
                    for _, recall in result.validation
                ],
                label=f"{language} {way}",
            )
    right.set(xlabel="epoch", ylabel="recall@10, %", title="validation")
    if result.validation:
        right.legend()
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
