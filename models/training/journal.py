"""A run's metrics as they come: one JSON line a step or validation, and TensorBoard if installed.

A continued run drops the lines after its checkpoint, so that every step is there once.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from models.atomic import replace_file
from models.training.measuring import Recall

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
