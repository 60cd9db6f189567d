"""A run's state on disk: written so that a kill at any instant leaves the old state or the new.

    training/state.json           which folder counts, with sums of its files; replaced last
    training/step-00000120/       the exact weights (of an open_clip pair the pair itself, which
                                  loads with local-dir:; while low-rank updates learn, with their
                                  factors and for the run only),
                                  optimiser.safetensors, average.safetensors
    training/best-00000100.safetensors   the best weights so far, by validation

No pickle. It knows what a checkpoint consists of, not when one is due.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from torch import Tensor

from models.atomic import replace_file
from models.errors import TrainingError
from models.training.config import TrainConfig
from models.training.pair import TrainablePair
from models.training.record import Progress
from models.training.weights import Weights

FORMAT: Final = 1
FOLDER: Final = "training"
STATE_NAME: Final = "state.json"
_OPTIMISER: Final = "optimiser.safetensors"
_AVERAGE: Final = "average.safetensors"
_OURS: Final = re.compile(
    r"\.?step-[0-9]{8,}(\.partial)?|best-[0-9]{8,}\.safetensors|\.state\.json(\.[0-9a-f]+)?\.partial"
    r"|\.best-.*\.partial"
)


@dataclass(slots=True)
class Saved:
    """What a checkpoint gives back."""

    progress: Progress
    weights: Weights
    optimiser: Weights
    average: Weights | None
    average_updates: int
    scaler: dict[str, Any]
    best: Weights | None
    folder: Path


class States(Protocol):
    """Where a run's states go; `Checkpoints` keeps them, `Unkept` does not."""

    @property
    def folder(self) -> Path | None: ...

    def save(
        self,
        pair: TrainablePair,
        progress: Progress,
        *,
        optimiser: Mapping[str, Tensor],
        average: Mapping[str, Tensor] | None = None,
        average_updates: int = 0,
        scaler: Mapping[str, Any] | None = None,
        best: Mapping[str, Tensor] | None = None,
    ) -> object: ...

    def best(self) -> Weights | None: ...


class Unkept:
    """The states of a run that leaves no files: only the best weights are remembered."""

    folder = None

    def __init__(self) -> None:
        self._best: Weights | None = None

    def save(self, *_: object, best: Mapping[str, Tensor] | None = None, **__: object) -> None:
        self._best = self._best if best is None else dict(best)

    def best(self) -> Weights | None:
        return self._best


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
        directory: of the run; state lies in its folder `training`.
        config, identity: what the run was started with. A state of other values is refused.
    """

    def __init__(self, directory: Path, config: TrainConfig, identity: Mapping[str, Any]) -> None:
        self.folder = directory / FOLDER
        # through JSON, so that what is compared has the types of what was read
        self._described: dict[str, Any] = json.loads(
            json.dumps({"config": asdict(config), **identity})
        )
        self._best: tuple[str, str] | None = None

    def save(
        self,
        pair: TrainablePair,
        progress: Progress,
        *,
        optimiser: Mapping[str, Tensor],
        average: Mapping[str, Tensor] | None = None,
        average_updates: int = 0,
        scaler: Mapping[str, Any] | None = None,
        best: Mapping[str, Tensor] | None = None,
    ) -> Path:
        """Commit a state -> its folder. `best` is given when it changed since the last one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = self.folder / f"step-{progress.step:08d}"
        scratch = self.folder / f".{folder.name}.partial"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        weights = pair.checkpoint(scratch)
        files = {weights: _sum_of(scratch / weights)}
        files[_OPTIMISER] = write_tensors(scratch / _OPTIMISER, optimiser)
        if average is not None:
            files[_AVERAGE] = write_tensors(scratch / _AVERAGE, average)
        if best is not None:
            name = f"best-{progress.best_step:08d}.safetensors"
            self._best = (name, write_tensors(self.folder / name, best))
        # a folder of that name is of a state that was not committed, or is this very one again
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
        state = {
            "format": FORMAT,
            "run": self._described,
            "folder": folder.name,
            "weights": weights,
            "files": files,
            "best": self._best,
            "progress": progress.to_dict(),
            "average_updates": average_updates,
            "scaler": dict(scaler or {}),
        }
        text = json.dumps(state, indent=1, ensure_ascii=False) + "\n"
        replace_file(self.folder / STATE_NAME, text.encode())
        self._sweep()
        return folder

    def load(self) -> Saved | None:
        """The last committed state; None where there is none.

        Raises:
            TrainingError: `resume-mismatch` where it is of other settings, data or weights;
                `checkpoint-damaged` where it cannot be read.
        """
        path = self.folder / STATE_NAME
        if not path.exists():
            return None
        try:
            state = json.loads(path.read_bytes())
            if state["format"] != FORMAT:
                raise damaged(path, f"format {state['format']!r}, this version reads {FORMAT}")
            refuse_other(self.folder.parent, state["run"], self._described)
            folder = self.folder / str(state["folder"])
            files, weights = state["files"], str(state["weights"])
            self._best = None if state["best"] is None else tuple(state["best"])
            average = _AVERAGE in files
            return Saved(
                progress=Progress.from_dict(state["progress"]),
                weights=read_tensors(folder / weights, files[weights]),
                optimiser=read_tensors(folder / _OPTIMISER, files[_OPTIMISER]),
                average=read_tensors(folder / _AVERAGE, files[_AVERAGE]) if average else None,
                average_updates=int(state["average_updates"]),
                scaler=dict(state["scaler"]),
                best=self.best(),
                folder=folder,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(path, " ".join(str(error).split())[:200]) from error

    def best(self) -> Weights | None:
        """The best weights that were committed."""
        return (
            None if self._best is None else read_tensors(self.folder / self._best[0], self._best[1])
        )

    def clear(self) -> None:
        """Drop everything: the run is done, or is started over."""
        # first what makes the rest count
        (self.folder / STATE_NAME).unlink(missing_ok=True)
        self._remove(set())
        with suppress(OSError):  # it is not there, or holds something of somebody else's
            self.folder.rmdir()

    def _sweep(self) -> None:
        """Drop what the committed state does not name."""
        state = json.loads((self.folder / STATE_NAME).read_bytes())
        kept = {STATE_NAME, state["folder"], *([state["best"][0]] if state["best"] else [])}
        self._remove(kept)

    def _remove(self, kept: Collection[str]) -> None:
        """Remove what checkpoints are made of, but for some; a folder `training` may hold more."""
        for path in self.folder.glob("*"):
            if path.name in kept or not _OURS.fullmatch(path.name):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def refuse_other(directory: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise TrainingError `resume-mismatch` where two runs are not the same one."""
    if different := differences(found, wanted):
        raise TrainingError(
            f"{directory} holds an unfinished run with other settings: " + "; ".join(different),
            code="resume-mismatch",
            hint="run the same command to continue it, name another --out, or drop it with "
            "--restart",
        )


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Settings that differ, as `name: before -> now`.

    Example:
        >>> differences({"config": {"lr": 1}, "data": "a"}, {"config": {"lr": 2}, "data": "a"})
        ['lr: 1 -> 2']
    """
    lines: list[str] = []
    for name in sorted({*found, *wanted}):
        before, now = found.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += differences(before, now)
        elif before != now:
            lines.append(f"{name}: {_short(before)} -> {_short(now)}")
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def damaged(path: Path, why: str) -> TrainingError:
    """A state that cannot be continued from."""
    return TrainingError(
        f"{path} cannot be continued from: {why}",
        code="checkpoint-damaged",
        hint="--restart drops it and begins anew",
    )


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file -> its sha256."""
    from safetensors.torch import save

    copied = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    data = save(copied)
    replace_file(path, data)
    return hashlib.sha256(data).hexdigest()


def read_tensors(path: Path, expected: str) -> Weights:
    """Read what `write_tensors` wrote; ValueError or OSError where it is not that any more."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise ValueError(f"{path.name} is damaged")
    try:
        return dict(load(data))
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
