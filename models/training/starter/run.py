"""One run of the heads' training, from features to a directory: continued, guarded, interpolated.

The loop knows steps; this knows the files beside it. Legend: N pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from models.encoders.starter.heads import StarterHeads
from models.sources.records import is_held_out
from models.training.data import one_in_for
from models.training.features.pairs import Kind, Pairs, Rehearsal
from models.training.record import Journal, interpolate
from models.training.starter.config import TrainConfig
from models.training.starter.loop import Recall, Step, TrainResult, measure, train
from models.training.starter.memory import FileMemory
from models.training.starter.save import save_run
from models.training.weights import copy_of


@dataclass(slots=True)
class HeadsRun:
    """How a run came out.

    Attributes:
        result: of the loop; its heads are the interpolated ones.
        share: of the trained heads in them; `tried` has R@1 on validation of each share tried.
        before, after: recall on validation, None without one.
        drawn: whether there is a curve.
    """

    result: TrainResult
    share: float
    tried: dict[str, float]
    before: Recall | None
    after: Recall | None
    drawn: bool


def split(pairs: Pairs) -> tuple[Pairs, Pairs] | None:
    """(to train on, to measure on): a tenth or less held back by key, as the trainer of other
    pairs does; None where there are too few pictures to spare."""
    is_main_N = pairs.kind_N == Kind.MAIN
    one_in = one_in_for(int(is_main_N.sum()))
    if one_in is None:
        return None
    held_N = torch.tensor([is_held_out(key, one_in) for key in pairs.keys]) & is_main_N
    if not held_N.any():
        return None
    return pairs.part((~held_N).nonzero()[:, 0]), pairs.part(held_N.nonzero()[:, 0])


def run_heads(
    heads: StarterHeads,
    pairs: Pairs,
    config: TrainConfig,
    out: Path,
    *,
    validation: Pairs | None,
    rehearsal: Rehearsal | None,
    described: dict[str, Any],
    restart: bool = False,
    started_from: Path | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_resume: Callable[[int], None] | None = None,
) -> HeadsRun:
    """Train `heads` and write everything into `out`; continues a run that was cut off there.

    Args:
        described: of the data, kept beside the result.
        restart: drop an unfinished run first.
        started_from: the pair whose towers the heads sit on; its tuned weights come along.
        on_resume: told the epoch it continues after.

    Raises:
        TrainingError: see `models.training.starter.loop.train` and `FileMemory`.
    """
    start = copy_of(heads)
    memory = FileMemory(out, {"config": asdict(config), "features": _digest(pairs)})
    if restart:
        memory.clear()
    watched = _Watched(memory, on_resume)
    journal: Journal | None = None

    def note(step: Step) -> None:
        # opened late: only now it is known which step the run continues after
        nonlocal journal
        journal = journal or Journal(out, step=step.step - 1)
        journal.step(step)
        if on_step is not None:
            on_step(step)

    def measured(step: int, recall: Recall) -> None:
        nonlocal journal
        journal = journal or Journal(out, step=step)
        journal.validation(step, recall)

    try:
        result = train(
            heads,
            pairs,
            config,
            validation=validation,
            rehearsal=rehearsal,
            on_step=note,
            on_validation=measured,
            memory=watched,
        )
    finally:
        if journal is not None:
            journal.close()
    share, tried, after = interpolate(
        start,
        copy_of(heads),
        config.interpolate,
        heads.load_state_dict,
        None if validation is None else lambda: measure(heads, validation),
    )
    before = dict(result.validation).get(0)
    described = described | {"interpolation": share, "tried": tried}
    drawn = save_run(result, config, out, data=described, started_from=started_from)
    memory.clear()
    return HeadsRun(result, share, tried, before, after, drawn)


class _Watched:
    """The memory, telling when it had something to continue from."""

    def __init__(self, memory: FileMemory, on_resume: Callable[[int], None] | None) -> None:
        self._memory = memory
        self._on_resume = on_resume

    def load(self, state: Any) -> bool:
        found = self._memory.load(state)
        if found and self._on_resume is not None:
            self._on_resume(state.epoch)
        return found

    def save(self, state: Any) -> None:
        self._memory.save(state)


def _digest(pairs: Pairs) -> str:
    """Of everything that is learned: other data or towers, another digest."""
    hasher = hashlib.sha256()
    for tensor in (pairs.image_NF, pairs.caption_MS, pairs.group_N, pairs.choice_count_N):
        hasher.update(tensor.contiguous().numpy().tobytes())
    return hasher.hexdigest()[:32]
