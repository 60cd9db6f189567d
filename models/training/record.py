"""A run's figures, and what it leaves of them beside the pair; written by `models.training.run`.

train_config.json    what was asked for, and what the data held
metrics.jsonl        one line a step or validation; TensorBoard's too, where it is installed
result.json          recall before and after, the interpolation, the kept step
curves.png           loss, rate, scale and recall over the steps, drawn from the metrics

A continued run drops the metrics after its checkpoint, so that every step is there once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final, TypeAlias

from models.atomic import replace_file
from models.figures import figure_class
from models.metrics import first_alike, retrieval_recall
from models.vectors import Vectors

METRICS_NAME: Final = "metrics.jsonl"
CONFIG_NAME: Final = "train_config.json"
RESULT_NAME: Final = "result.json"
CURVES_NAME: Final = "curves.png"

Recall: TypeAlias = dict[str, dict[str, float]]
"""{language: {`image_retrieval_recall@1`: ..., ...}}"""

_KS: Final = (1, 5, 10)


def recall_of(
    image_ND: Vectors,
    texts: Mapping[str, tuple[Vectors, Sequence[int]]],
    *,
    contents: Sequence[int] = (),
) -> Recall:
    """Recall@1/5/10 both ways, for each language on the pictures that have captions in it.

    Args:
        image_ND: unit rows.
        texts: language -> (unit rows [M, D], the picture each belongs to).
        contents: pictures with equal numbers are the same bytes: one picture, with the captions
            of all of them.
    """
    result: Recall = {}
    for language, (text_MD, every) in texts.items():
        owners = first_alike(every, contents)
        kept = sorted(set(owners))
        position = {owner: at for at, owner in enumerate(kept)}
        result[language] = {
            **retrieval_recall(image_ND[kept], text_MD, [position[o] for o in owners], _KS),
            "pictures": float(len(kept)),
            "texts": float(len(owners)),
        }
    return result


@dataclass(frozen=True, slots=True)
class Gain:
    """What a run brought on its validation set, beside what chance brings; shares, not percent.

    Attributes:
        pictures: of the set, in the language that has fewest.
        chance: R@1 of a pair that knows nothing.
        gain: of the mean R@1, both ways and all languages.
        error: standard error of that gain, if pictures were drawn again.
    """

    pictures: int
    chance: float
    gain: float
    error: float

    @property
    def within_noise(self) -> bool:
        """Whether so small a change either way says nothing (two standard errors)."""
        return abs(self.gain) <= 2 * self.error


def gain_of(before: Recall, after: Recall) -> Gain:
    """How much better, and how sure that is.

    The error is that of the difference of two binomial shares of as many trials as there are
    pictures: captions of one picture, its ways and languages are found or missed together. One
    success and one failure are added to each, or nothing would be certain of ten pictures all
    right (Agresti & Coull 1998). Both are measured on the same pictures, so the true error is
    often smaller: what is called noise may be more, what is not called so is not.

    Example:
        >>> now = {"en": {"image_retrieval_recall@1": 0.5, "pictures": 20.0}}
        >>> found = gain_of({"en": {"image_retrieval_recall@1": 0.4, "pictures": 20.0}}, now)
        >>> round(found.gain, 3), round(found.error, 3), found.chance, found.within_noise
        (0.1, 0.15, 0.05, True)
    """
    pictures = max(1, int(min(metrics["pictures"] for metrics in after.values())))
    shares = [score(before)[0], score(after)[0]]
    smoothed = [(share * pictures + 1) / (pictures + 2) for share in shares]
    error = math.sqrt(sum(share * (1 - share) / (pictures + 2) for share in smoothed))
    return Gain(pictures, 1 / pictures, shares[1] - shares[0], error)


def doubts_of(
    gain: Gain | None, *, final_loss: float | None, batch: int, scale: float, softmax: bool
) -> list[str]:
    """What speaks against taking a run for progress; for people.

    Args:
        final_loss: of the last step.
        batch: pairs of a step; guessing among them costs ln(batch).
        scale: the logit scale at the end.
        softmax: whether the loss was InfoNCE.
    """
    found = []
    guessing = math.log(max(2, batch))
    if softmax and final_loss is not None and final_loss > 0.97 * guessing:
        found.append(
            f"the loss ended at {final_loss:.2f}, and guessing among {batch} pairs costs "
            f"{guessing:.2f}: it tells no pair from another; try another --lr, or look at the data"
        )
    if scale < 1:
        found.append(
            f"the logit scale fell to {scale:.2g}: pictures and captions hardly differ any more"
        )
    if gain is not None and gain.within_noise:
        found.append(
            f"a change of {100 * gain.gain:+.1f} points of R@1 on {gain.pictures} pictures is "
            f"within the noise (two standard errors are {200 * gain.error:.1f}): measure on more"
        )
    return found


def score(recall: Mapping[str, Mapping[str, float]]) -> tuple[float, float]:
    """How good a pair is, to compare moments of a run: mean R@1, and where equal, mean recall.

    Means over both ways, all languages and, the second one, all k.
    """
    rows = [
        (name, value)
        for metrics in recall.values()
        for name, value in metrics.items()
        if "recall@" in name
    ]
    first = [value for name, value in rows if name.endswith("@1")]
    return sum(first) / len(first), sum(value for _, value in rows) / len(rows)


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step, as reported to whoever watches and to the metrics file."""

    step: int
    steps: int
    epoch: int
    loss: float
    scale: float
    lr: float
    gradient_norm: float
    pairs_per_second: float


@dataclass(slots=True)
class Progress:
    """State of the loop.

    Attributes:
        step: optimiser steps taken, which is also how many batches were drawn.
        validations: (steps taken, recall); the first is before training.
        best_step: after which step the best weights were, by validation.
        best: their score.
        waited: validations since then.
        stopped: whether patience ended the run.
        seconds: spent on steps so far.
    """

    step: int = 0
    validations: list[tuple[int, Recall]] = field(default_factory=list)
    best_step: int = 0
    best: tuple[float, float] | None = None
    waited: int = 0
    stopped: bool = False
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Progress:
        """Inverse of `to_dict` through JSON; KeyError or TypeError for anything else."""
        values = dict(data)
        values["validations"] = [(int(step), recall) for step, recall in values["validations"]]
        values["best"] = None if values["best"] is None else tuple(values["best"])
        return cls(**values)


class Journal:
    """Appends to `metrics.jsonl` of a run directory.

    Args:
        directory: of the run.
        step: the last step that counts; later lines are dropped.
    """

    def __init__(self, directory: Path, *, step: int = 0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / METRICS_NAME
        kept = [line for line in read_journal(directory) if _at(line) <= step] if step else []
        replace_file(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._board: Any = _summary_writer(directory, step)

    def step(self, step: Any) -> None:
        """A dataclass of numbers with a `step` among them."""
        # NaN is not JSON, and the line that says so is the last one before the run stops
        values = {
            name: value if not isinstance(value, float) or math.isfinite(value) else None
            for name, value in asdict(step).items()
        }
        self._file.write(json.dumps(values) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"train/{name}", value, step.step)

    def validation(self, step: int, recall: Recall) -> None:
        self._file.write(json.dumps({"after_step": step, "validation": recall}) + "\n")
        if self._board is not None:
            for language, metrics in recall.items():
                for name, value in metrics.items():
                    self._board.add_scalar(f"validation/{language}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_journal(directory: Path) -> list[dict[str, Any]]:
    """The lines so far; a last one that a kill cut off is passed over."""
    lines = []
    try:
        text = (directory / METRICS_NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def _at(line: dict[str, Any]) -> int:
    return int(line.get("step", line.get("after_step", 0)))


def _summary_writer(directory: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1 if step else None)


def draw_curves(lines: Sequence[dict[str, Any]]) -> bytes | None:
    """The lines of `metrics.jsonl` -> a PNG; None where matplotlib is not installed."""
    kind = figure_class()
    if kind is None:
        return None
    steps = [line for line in lines if "loss" in line]
    validations = [line for line in lines if "validation" in line]
    figure = kind(figsize=(11, 7), layout="constrained")
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


@dataclass(frozen=True, slots=True)
class Result:
    """How a run came out.

    Attributes:
        steps: taken.
        kept_step: whose weights were kept: the best by validation, or the last.
        kept_epoch: the one that step is in.
        interpolation: share of these weights in the result.
        tried: mean R@1 on validation of each share tried.
        before, after: recall on validation; None without one.
        final_loss, logit_scale: of the last step.
        stopped_early: whether patience ended the run.
        seconds: spent on steps.
        chance: R@1 of a pair that knows nothing, on this validation set.
        gain, gain_error: of the mean R@1, and the standard error of that; see `gain_of`.
        doubts: what speaks against taking the run for progress, for people.
    """

    steps: int
    kept_step: int
    kept_epoch: int
    interpolation: float
    tried: dict[str, float]
    before: Recall | None
    after: Recall | None
    final_loss: float | None
    logit_scale: float
    stopped_early: bool
    seconds: float
    chance: float | None = None
    gain: float | None = None
    gain_error: float | None = None
    doubts: list[str] = field(default_factory=list)


def write_config(
    directory: Path, config: Any, identity: Mapping[str, Any], data: Mapping[str, Any]
) -> None:
    """Beside the result from the first step on, so that a stopped run tells what it was."""
    directory.mkdir(parents=True, exist_ok=True)
    described = {"config": asdict(config), **identity, "report": data}
    _write(directory / CONFIG_NAME, described)


def write_result(directory: Path, result: Result) -> None:
    _write(directory / RESULT_NAME, asdict(result))


def _write(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    replace_file(path, text.encode())
