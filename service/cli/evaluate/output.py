"""What `diptych evaluate` says: CLIP_benchmark's documents, and a table to read them by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

Document = dict[str, Any]

TASKS: Final = {
    "retrieval": "zeroshot_retrieval",
    "zero-shot": "zeroshot_classification",
    "linear-probe": "linear_probe",
}
_COUNTS: Final = ("pictures", "texts", "classes", "train_pictures")
_ALWAYS: Final = {"zero-shot": ("acc5",), "linear-probe": ("lp_acc5",)}
"""Metrics CLIP_benchmark always prints, as NaN where they mean nothing; here null, for JSON."""

_PERCENT: Final = {
    "image_retrieval_recall@1": "text -> image  R@1",
    "image_retrieval_recall@5": "               R@5",
    "image_retrieval_recall@10": "               R@10",
    "text_retrieval_recall@1": "image -> text  R@1",
    "text_retrieval_recall@5": "               R@5",
    "text_retrieval_recall@10": "               R@10",
    "acc1": "top-1",
    "acc5": "top-5",
    "mean_per_class_recall": "mean per-class recall",
    "lp_acc1": "top-1",
    "lp_acc5": "top-5",
    "lp_mean_per_class_recall": "mean per-class recall",
}
_PLAIN: Final = {
    "ece": "calibration error (ECE)",
    "ece_sigmoid": "  of the sigmoid",
    "ece_calibrated": "  at the fitted temperature",
    "temperature": "fitted temperature",
    "weight_decay": "penalty",
}


def document(
    dataset: str, model: str, task: str, language: str, metrics: Mapping[str, float]
) -> Document:
    """One result in CLIP_benchmark's shape; counts go beside the metrics, not among them."""
    counts = {key: metrics[key] for key in _COUNTS if key in metrics}
    name, _, tag = model.partition("/")
    is_tagged = bool(tag) and ":" not in model
    return {
        "dataset": dataset,
        "model": name if is_tagged else model,
        "pretrained": tag if is_tagged else "",
        "task": TASKS[task],
        "metrics": {
            **{key: value for key, value in metrics.items() if key not in counts},
            **{key: None for key in _ALWAYS.get(task, ()) if key not in metrics},
        },
        "language": language,
        "counts": counts,
    }


def table(documents: Sequence[Document]) -> list[str]:
    """Lines for people: one block a data set and language, one column a model."""
    blocks: dict[tuple[str, str], list[Document]] = {}
    for entry in documents:
        blocks.setdefault((entry["dataset"], entry["language"]), []).append(entry)
    lines: list[str] = []
    for (dataset, language), entries in blocks.items():
        counts = ", ".join(f"{value} {key}" for key, value in entries[0]["counts"].items())
        tag = f" [{language}]" if language else ""
        lines += ["", f"{dataset}{tag}: {counts.replace('_', ' ')}"]
        names = [model_name(entry) for entry in entries]
        widths = [max(8, len(name)) for name in names]
        if len(entries) > 1:
            lines.append(_row("", names, widths))
        for key, label in {**_PERCENT, **_PLAIN}.items():
            values = [entry["metrics"].get(key) for entry in entries]
            if any(value is not None for value in values):
                lines.append(_row(label, [_cell(key, value) for value in values], widths))
    return lines[1:]


def model_name(entry: Document) -> str:
    """As it was typed."""
    return "/".join(part for part in (entry["model"], entry["pretrained"]) if part)


def _row(label: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"  {label:<28}" + "  ".join(padded).rstrip()


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key in _PERCENT:
        return f"{100 * value:.1f}"
    return f"{value:.1e}" if key == "weight_decay" else f"{value:.3f}"
