"""The state of a heads' run on disk, after each epoch: killed, it continues at the last one.

    training/state.json, training/epoch-0007.safetensors

The tensors are written first and named, with their sum, by the JSON file that is replaced last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from models.atomic import replace_file
from models.training.checkpoint import (
    FOLDER,
    STATE_NAME,
    damaged,
    read_tensors,
    refuse_other,
    write_tensors,
)
from models.training.starter.loop import State, Step

FORMAT: Final = 1


class FileMemory:
    """See `models.training.starter.loop.Memory`.

    Args:
        directory: of the run.
        described: what the run was started with; a state of another run is refused.
    """

    def __init__(self, directory: Path, described: Mapping[str, Any]) -> None:
        self._folder = directory / FOLDER
        self._described: dict[str, Any] = json.loads(json.dumps(described))

    def load(self, state: State) -> bool:
        """Raises TrainingError: `resume-mismatch`, `checkpoint-damaged`."""
        path = self._folder / STATE_NAME
        if not path.exists():
            return False
        try:
            kept = json.loads(path.read_bytes())
            if kept["format"] != FORMAT:
                raise damaged(path, f"format {kept['format']!r}, this version reads {FORMAT}")
            refuse_other(self._folder.parent, kept["run"], self._described)
            tensors = read_tensors(self._folder / kept["file"], kept["sha256"])
            _fill(state, kept, tensors)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise damaged(path, " ".join(str(error).split())[:200]) from error
        return True

    def save(self, state: State) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"epoch-{state.epoch:04d}.safetensors"
        kept = {
            "format": FORMAT,
            "run": self._described,
            "file": file.name,
            "sha256": write_tensors(file, _tensors(state)),
            "epoch": state.epoch,
            "kept_epoch": state.result.kept_epoch,
            "best": None if state.best is None else state.best[0],
            "average_steps": None if state.average is None else state.average.state()[0],
            "steps": [asdict(step) for step in state.result.steps],
            "validation": state.result.validation,
        }
        replace_file(self._folder / STATE_NAME, json.dumps(kept).encode())
        for other in self._folder.glob("epoch-*.safetensors"):
            if other != file:
                other.unlink()

    def clear(self) -> None:
        """The run is done, or is started over."""
        (self._folder / STATE_NAME).unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)


def _tensors(state: State) -> dict[str, Tensor]:
    tensors = {f"heads/{name}": value for name, value in state.heads.state_dict().items()}
    for at, values in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{at}/{name}": value for name, value in values.items()}
    if state.average is not None:
        tensors |= {f"average/{at}": value for at, value in enumerate(state.average.state()[1])}
    if state.best is not None:
        tensors |= {f"best/{name}": value for name, value in state.best[1].items()}
    tensors["random/order"] = state.generator.get_state()
    tensors["random/global"] = torch.get_rng_state()
    return tensors


def _fill(state: State, kept: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    def part(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }

    state.heads.load_state_dict(part("heads/"))
    described = state.optimiser.state_dict()
    described["state"] = {}
    for name, value in part("optimiser/").items():
        at, _, key = name.partition("/")
        described["state"].setdefault(int(at), {})[key] = value
    state.optimiser.load_state_dict(described)
    if state.average is not None:
        averages = part("average/")
        ordered = [averages[str(at)] for at in range(len(averages))]
        state.average.restore(int(kept["average_steps"]), ordered)
    if kept["best"] is not None:
        first, whole = kept["best"]
        state.best = ((float(first), float(whole)), part("best/"))
    state.generator.set_state(tensors["random/order"])
    torch.set_rng_state(tensors["random/global"])
    state.epoch = int(kept["epoch"])
    state.result.kept_epoch = int(kept["kept_epoch"])
    state.result.steps[:] = [Step(**step) for step in kept["steps"]]
    state.result.validation[:] = [(int(epoch), recall) for epoch, recall in kept["validation"]]
