"""What a run leaves behind beside the pair: metrics as they come, curves, settings and figures.

train_config.json    what was asked for, and what the data held
metrics.jsonl        one line a step or validation; TensorBoard's too, where it is installed
result.json          recall before and after, the interpolation, the kept step
curves.png           loss, rate, scale and recall over the steps, drawn from the metrics

A continued run drops the metrics after its checkpoint, so that every step is there once. Called by
`models.training.run`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from models.atomic import replace_file
from models.figures import figure_class
from models.training.config import TrainConfig
from models.training.measuring import Recall, score
from models.training.progress import Progress
from models.training.weights import Weights, interpolated

METRICS_NAME: Final = "metrics.jsonl"


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


CONFIG_NAME: Final = "train_config.json"
RESULT_NAME: Final = "result.json"
SHARES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, slots=True)
class Result:
    """How a run came out.

    Attributes:
        steps: taken.
        kept_step: whose weights were kept: the best by validation, or the last.
        interpolation: share of these weights in the result.
        tried: mean R@1 on validation of each share tried.
        before, after: recall on validation; None without one.
        final_loss, logit_scale: of the last step.
        stopped_early: whether patience ended the run.
        seconds: spent on steps.
    """

    steps: int
    kept_step: int
    interpolation: float
    tried: dict[str, float]
    before: Recall | None
    after: Recall | None
    final_loss: float | None
    logit_scale: float
    stopped_early: bool
    seconds: float


def interpolate(
    start: Weights,
    end: Weights,
    share: float | str,
    load: Callable[[Weights], object],
    measure: Callable[[], Recall] | None,
) -> tuple[float, dict[str, float], Recall | None]:
    """Load the interpolated weights -> (share, R@1 of each share tried, recall of the result).

    With `val` the best of `SHARES` by validation; of equal ones the one nearest to the middle,
    which is where both ends agree most.
    """
    if share != "val" or measure is None:
        value = 0.5 if share == "val" else float(share)
        load(interpolated(start, end, value))
        return value, {}, None if measure is None else measure()
    measured: dict[float, Recall] = {}
    for value in SHARES:
        load(interpolated(start, end, value))
        measured[value] = measure()
    best = max(SHARES, key=lambda value: (score(measured[value]), -abs(value - 0.5), value))
    load(interpolated(start, end, best))
    tried = {f"{value:.1f}": score(recall)[0] for value, recall in measured.items()}
    return best, tried, measured[best]


def result_of(
    progress: Progress,
    *,
    keep: str,
    share: float,
    tried: dict[str, float],
    after: Recall | None,
    final_loss: float | None,
    logit_scale: float,
) -> Result:
    before = dict(progress.validations).get(0)
    return Result(
        steps=progress.step,
        kept_step=(progress.best_step if keep == "best" else 0) or progress.step,
        interpolation=share,
        tried=tried,
        before=before,
        after=after,
        final_loss=final_loss,
        logit_scale=logit_scale,
        stopped_early=progress.stopped,
        seconds=progress.seconds,
    )


def write_config(
    directory: Path, config: TrainConfig, identity: Mapping[str, Any], data: Mapping[str, Any]
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
