"""What a run leaves behind: the interpolated pair, and figures before and after.

open_clip_config.json, open_clip_model.safetensors   the pair
train_config.json    what was asked for, and what the data held
result.json          recall before and after, the interpolation, the kept step
metrics.jsonl, curves.png
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from models.atomic import replace_file
from models.training.config import TrainConfig
from models.training.measuring import Recall, score
from models.training.progress import Progress
from models.training.weights import Weights, interpolated

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
