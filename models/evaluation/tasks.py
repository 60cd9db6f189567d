"""What is measured of an encoder pair on one set: a task by name, its figures, its calibration.

`diptych evaluate` calls it for every pair and every set; the figures are made in `accuracy`,
`retrieval` and `linear_probe`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from models.encoder import Encoder
from models.errors import InvalidLabelsError
from models.evaluation.linear_probe import evaluate_linear_probe
from models.evaluation.measures import (
    evaluate_retrieval,
    head_logits,
    zero_shot_logits,
    zero_shot_metrics,
)
from models.labels.calibration import FEWEST_EXAMPLES, Calibration, calibrate
from models.labels.class_head import ClassHead
from models.sources.embedded import Collected

Task: TypeAlias = Literal["retrieval", "zero-shot", "linear-probe"]


class Measured(NamedTuple):
    """Figures of one set, of captions in one language; `language` is empty for classification."""

    language: str
    metrics: dict[str, float]
    calibration: Calibration | None = None


def measure_retrieval(encoder: Encoder, collected: Collected) -> Iterator[Measured]:
    """Recall both ways, for each language of the captions."""
    for language, metrics in evaluate_retrieval(encoder, collected).items():
        yield Measured(language, metrics)


def measure_linear_probe(
    trained: Collected, collected: Collected, *, shots: int | None, seed: int
) -> Iterator[Measured]:
    """Accuracy of a linear classifier trained on at most `shots` pictures a class."""
    yield Measured("", evaluate_linear_probe(trained, collected, shots=shots, seed=seed))


def measure_zero_shot(
    encoder: Encoder,
    collected: Collected,
    *,
    templates: Sequence[str],
    class_names: Mapping[str, str] | None = None,
    head: ClassHead | None = None,
) -> Iterator[Measured]:
    """Accuracy of the labels put into prompts, or of a trained head in their place.

    Where there are pictures and classes enough, also the calibration and its temperature.
    """
    if head is not None:
        found = head_logits(head, collected)
        metrics = zero_shot_metrics(found)
    else:
        found = zero_shot_logits(encoder, collected, templates=templates, class_names=class_names)
        metrics = zero_shot_metrics(found, logit_bias=encoder.logit_bias)
    calibration = None
    if found.classes > 1 and len(found.target_B) >= FEWEST_EXAMPLES:
        calibration = calibrate(found.logits_BC, found.target_B)
        metrics["ece_calibrated"] = calibration.ece_after
        metrics["temperature"] = calibration.temperature
    yield Measured("", metrics, calibration)


def read_class_names(path: Path) -> dict[str, str]:
    """{label: name} in the order of the lines; a line without a tab names its class by itself.

    Names may occur twice, as in lists that people use: "crane" is a bird and a machine. Where the
    name is the label, too, only the first of them can be a picture's; the others still compete.

    Raises:
        InvalidLabelsError: the file cannot be read, or names a label twice.
    """
    names: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidLabelsError(f"cannot read {path}: {error}") from error
    for line in lines:
        label, tab, name = line.partition("\t")
        if not label.strip():
            continue
        if label.strip() in names and not tab:
            label = f"{label.strip()} (class {len(names)})"
            names[label] = line.strip()
            continue
        if label.strip() in names:
            raise InvalidLabelsError(f"{path} names {label.strip()!r} twice")
        names[label.strip()] = name.strip() if tab else label.strip()
    return names
