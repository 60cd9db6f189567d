"""A training run's directory: heads, the config that made them, metrics and a curve.

    diptych_starter.json, heads.safetensors   the pair; load with --model local-dir:DIR
    train_config.json, curve.png, and metrics.jsonl, which is written as it goes

Every file is written beside its place and renamed, the description last.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

from models.files import replace_file
from models.starter.heads import save_heads
from models.starter.training.config import TrainConfig
from models.starter.training.loop import TrainResult


def save_run(
    result: TrainResult, config: TrainConfig, directory: Path, *, data: dict[str, Any]
) -> bool:
    """Write everything into `directory`; False when there is no curve for want of matplotlib."""
    directory.mkdir(parents=True, exist_ok=True)
    described = {"config": asdict(config), "data": data, "kept_epoch": result.kept_epoch}
    text = json.dumps(described, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    replace_file(directory / "train_config.json", text.encode())
    curve = draw_curve(result)
    if curve is not None:
        replace_file(directory / "curve.png", curve)
    save_heads(result.heads, directory)
    return curve is not None


def draw_curve(result: TrainResult) -> bytes | None:
    """Loss by step and recall@10 by epoch as a PNG; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(9, 4), layout="constrained")
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
