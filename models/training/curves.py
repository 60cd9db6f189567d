"""A run as a picture: loss, rate, scale and recall over the steps, drawn from its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any


def draw_curves(lines: Sequence[dict[str, Any]]) -> bytes | None:
    """The lines of `metrics.jsonl` -> a PNG; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    steps = [line for line in lines if "loss" in line]
    validations = [line for line in lines if "validation" in line]
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    for panel, name, label in zip(
        panels, ("loss", "lr", "scale"), ("loss", "learning rate", "logit scale"), strict=False
    ):
        panel.plot([line["step"] for line in steps], [line[name] for line in steps])
        panel.set(xlabel="step", title=label)
        panel.ticklabel_format(axis="y", useOffset=False)
    for language in sorted(validations[0]["validation"]) if validations else []:
        for way, prefix in (("text → image", "image"), ("image → text", "text")):
            panels[3].plot(
                [line["after_step"] for line in validations],
                [
                    100 * line["validation"][language][f"{prefix}_retrieval_recall@1"]
                    for line in validations
                ],
                marker="o",
                label=f"{language} {way}",
            )
    panels[3].set(xlabel="step", title="recall@1 on validation, %")
    if validations:
        panels[3].legend()
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
