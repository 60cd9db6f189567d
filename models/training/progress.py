"""How far a run is, apart from its tensors: numbers that go into a checkpoint as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from models.training.measuring import Recall


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
