"""The training loop: steps, validations, checkpoints, and the weights a run ends with.

Reads top to bottom. It is given everything it uses and knows no formats or console;
`models.training.run` puts the pieces together. The same loop for every family of pairs.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch

from models.errors import NoSpaceError, TrainingError
from models.training.checkpoint import Saved, States
from models.training.config import TrainConfig
from models.training.distributed import World, wait_for_all
from models.training.pair import Batch, Measured, TrainablePair
from models.training.record import Journal, Progress, Step, score
from models.training.step import Stepper, load_optimiser, optimiser_tensors
from models.training.weights import MovingAverage, Weights, copy_of, refuse_not_finite

NAMED_KEYS: Final = 8


@dataclass(frozen=True, slots=True)
class Cadence:
    """When to write a checkpoint: each so many steps, or minutes since the last one."""

    steps: int | None = None
    minutes: float = 10.0


@dataclass(slots=True, kw_only=True)
class Run:
    """A run's pieces, put together by `models.training.run`."""

    pair: TrainablePair
    config: TrainConfig
    world: World
    stepper: Stepper
    optimiser: torch.optim.Optimizer
    batches: Callable[[int], Iterator[Batch]]
    """first step -> its batch and those after it"""
    per_epoch: int
    states: States
    measured: bool
    """whether there is a validation set, on every rank; `validation` itself is rank 0's"""
    validation: Measured | None
    on_step: Callable[[Step], None]
    journal: Journal | None = None
    batch: int = 0
    """pairs of a step over all ranks, once one was taken"""
    cadence: Cadence = field(default_factory=Cadence)

    @property
    def steps(self) -> int:
        return self.config.epochs * self.per_epoch


def train(run: Run, saved: Saved | None) -> Progress:
    """Take the steps that are left, and leave the module with the weights they came to.

    These are the moving average's where there is one, and those of the best validation where
    there is one.

    Raises:
        TrainingError: `loss-not-finite`; the last checkpoint is kept.
    """
    config = run.config
    learning = run.pair.learning()
    average = MovingAverage(learning, config.ema) if config.ema else None
    progress = Progress()
    if saved is not None:
        progress = _restore(run, saved, average)
    elif run.measured:
        _validate(run, progress, None, before=True)
    if saved is None:
        _commit(run, progress, average)
    batches = run.batches(progress.step)
    committed = time.monotonic()
    try:
        while progress.step < run.steps and not progress.stopped:
            started = time.perf_counter()
            step = _step(run, progress, next(batches), started)
            if average is not None:
                average.update(learning)
            improved = None
            done_epochs, within = divmod(step.step, run.per_epoch)
            measure = (
                run.measured
                and within == 0
                and (done_epochs % config.eval_every == 0 or done_epochs == config.epochs)
            )
            if measure or step.step == run.steps:
                refuse_not_finite(run.pair.module, kept_in(run.states))
            if measure:
                improved = _validate(run, progress, average)
            # a validation is part of what is committed, or it would be done and written twice
            if measure or _due(run, progress, committed):
                _commit(run, progress, average, improved)
                committed = time.monotonic()
    finally:
        batches.close()  # type: ignore[attr-defined]
    _final(run, progress, average)
    return progress


def _step(run: Run, progress: Progress, batch: Batch, started: float) -> Step:
    """`started` is when its batch was asked for: waiting for pictures counts as time too."""
    config = run.config
    # dropout of step n is a matter of seed, n and rank: nothing to save, nothing to restore
    torch.manual_seed(derived(config.seed, progress.step, run.world.rank))
    rate = learning_rate(progress.step, steps=run.steps, peak=config.lr, warmup=config.warmup)
    outcome = run.stepper(batch, rate)
    run.batch = len(batch.keys) * run.world.size
    seconds = time.perf_counter() - started
    progress.step += 1
    progress.seconds += seconds
    step = Step(
        step=progress.step,
        steps=run.steps,
        epoch=(progress.step - 1) // run.per_epoch + 1,
        loss=outcome.loss,
        scale=float(run.pair.log_scale.detach().exp()),
        lr=rate,
        gradient_norm=outcome.gradient_norm,
        pairs_per_second=len(batch.keys) * run.world.size / seconds,
    )
    if run.journal is not None:
        run.journal.step(step)
    # gradients beyond fp16's range are the scaler's business, a loss is not
    if not math.isfinite(step.loss) or not (outcome.finite or run.stepper.scaler.is_enabled()):
        raise _not_finite(run, step, batch)
    run.on_step(step)
    return step


def _not_finite(run: Run, step: Step, batch: Batch) -> TrainingError:
    """The loss or a gradient is NaN or infinite: told with the records of its batch."""
    what = "gradient" if math.isfinite(step.loss) else "loss"
    named = ", ".join(batch.keys[:NAMED_KEYS])
    more = len(batch.keys) - NAMED_KEYS
    folder = run.states.folder
    kept = kept_in(run.states)
    if folder is not None and run.pair.checkpoints_load:
        kept += " and loads with --model local-dir:"
    return TrainingError(
        f"step {step.step}: the {what} is not finite; its batch was {named}"
        + (f" and {more} more" if more > 0 else ""),
        code="loss-not-finite",
        hint=f"look at these records, or try a lower --lr or --precision fp32{kept}",
    )


def kept_in(states: States) -> str:
    """Where the last good state of a run is, for a hint; nothing where there is none."""
    return "" if states.folder is None else f"; the last good state is in {states.folder}"


def _validate(
    run: Run, progress: Progress, average: MovingAverage | None, *, before: bool = False
) -> Weights | None:
    """Measure -> the weights, if they are the best so far. Rank 0 measures, the others wait."""
    weights = None
    with _averaged(run, average):
        if run.validation is not None:
            recall = run.validation.measure()
            found = score(recall)
            progress.validations.append((progress.step, recall))
            if run.journal is not None:
                run.journal.validation(progress.step, recall)
            # R@1 alone decides when to stop; the other figures only tell equal ones apart
            if progress.best is None or found[0] > progress.best[0]:
                progress.waited = 0
            elif not before:
                progress.waited += 1
            if progress.best is None or found > progress.best:
                progress.best, progress.best_step = found, progress.step
                weights = copy_of(run.pair.module)
            patience = run.config.patience
            progress.stopped = bool(patience) and progress.waited >= patience
    progress.stopped = _agreed(run, progress.stopped)
    return weights


def _agreed(run: Run, value: bool) -> bool:
    """Rank 0's value, on every rank."""
    if run.world.size == 1:
        return value
    told = torch.tensor(float(value), device=run.world.device)
    torch.distributed.broadcast(told, src=0)
    return bool(told)


def _due(run: Run, progress: Progress, committed: float) -> bool:
    if run.cadence.steps is not None:
        return progress.step % run.cadence.steps == 0
    return _agreed(run, time.monotonic() - committed >= 60 * run.cadence.minutes)


def _commit(
    run: Run, progress: Progress, average: MovingAverage | None, best: Weights | None = None
) -> None:
    refuse_not_finite(run.pair.module, kept_in(run.states))
    if run.world.main:
        run.states.save(
            run.pair,
            progress,
            optimiser=optimiser_tensors(run.optimiser, run.pair),
            average=None if average is None else average.average,
            average_updates=0 if average is None else average.updates,
            scaler=run.stepper.scaler.state_dict(),
            best=best,
        )
    wait_for_all()


def _restore(run: Run, saved: Saved, average: MovingAverage | None) -> Progress:
    run.pair.module.load_state_dict(saved.weights)
    if saved.optimiser:
        load_optimiser(run.optimiser, run.pair, saved.optimiser)
    if average is not None and saved.average is not None:
        average.updates = saved.average_updates
        for name, value in saved.average.items():
            average.average[name].copy_(value)
    if saved.scaler:
        run.stepper.scaler.load_state_dict(saved.scaler)
    return saved.progress


@contextmanager
def _averaged(run: Run, average: MovingAverage | None) -> Iterator[None]:
    """The module with the averages in the place of its weights, for a while."""
    if average is None:
        yield
        return
    module = run.pair.module
    own = copy_of(module)
    module.load_state_dict(average.over(own))
    try:
        yield
    finally:
        module.load_state_dict(own)


def _final(run: Run, progress: Progress, average: MovingAverage | None) -> None:
    # step 0 is no training at all: how much of that to keep is interpolation's to say
    kept = run.config.keep == "best" and progress.best_step > 0
    weights = run.states.best() if kept else None
    if weights is None and average is not None:
        weights = average.over(copy_of(run.pair.module))
    if weights is not None:
        run.pair.module.load_state_dict(weights)


def derived(*parts: int) -> int:
    """A seed of its own for each combination of numbers, below 2 ** 63."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def learning_rate(
    step: int, *, steps: int, peak: float, warmup: float, floor: float = 0.0
) -> float:
    """The rate of step `step`, counted from 0.

    Rises linearly over the first `warmup` share of the steps, then falls along half a cosine to
    `floor` times the peak (Loshchilov & Hutter 2017).

    Example:
        >>> [round(learning_rate(s, steps=4, peak=1.0, warmup=0.5), 2) for s in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    warm = max(1, round(warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


@contextmanager
def room_in(directory: Path) -> Iterator[None]:
    """A full disk, told as such: what was committed is intact, because it is replaced in one step.

    Raises:
        NoSpaceError
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpaceError(
            f"no space left for {directory}",
            hint="the last checkpoint is intact: free some space and run the same command again",
        ) from error
