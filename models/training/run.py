"""One run of the trainer, from a pair and its sources to a directory with a trained pair in it.

Puts the pieces together and decides nothing else; the command line above it knows options and
consoles, the loop below it knows steps, the pair knows towers. `train_unkept` does the same without
files, for the stages of a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

from models.atomic import alone_in, replace_file
from models.errors import TrainingError
from models.sources.records import Source
from models.training.checkpoint import Checkpoints, States, Unkept
from models.training.config import TrainConfig
from models.training.distributed import World, broadcast_from_main, wait_for_all
from models.training.loop import Cadence, Run, kept_in, room_in, train
from models.training.losses import Objective
from models.training.pair import Feed, TrainablePair, TrainingData, Watching
from models.training.record import (
    CURVES_NAME,
    RESULT_NAME,
    Journal,
    Progress,
    Result,
    doubts_of,
    draw_curves,
    gain_of,
    read_journal,
    write_config,
    write_result,
)
from models.training.step import Stepper, make_optimiser
from models.training.weights import Weights, copy_of, interpolate, refuse_not_finite

MakeObjective: TypeAlias = Callable[[TrainablePair, TrainConfig], Objective]
"""Another loss than the settings name, for tests and experiments."""


def run_training(
    pair: TrainablePair,
    feeds: Sequence[Feed],
    config: TrainConfig,
    world: World,
    out: Path,
    *,
    identity: Mapping[str, Any],
    report: Mapping[str, Any],
    validation_sources: Sequence[Source] = (),
    workers: int = 2,
    cadence: Cadence | None = None,
    restart: bool = False,
    watching: Watching | None = None,
    make_objective: MakeObjective | None = None,
) -> Result | None:
    """Train `pair` and write everything into `out`; continues a run that was cut off.

    Args:
        pair: on the CPU, as loaded.
        feeds: the first is what epochs go over.
        identity: further facts that a continued run must share (model, data).
        report: what the data held, kept with the config.
        validation_sources: measured before, in between and after.
        restart: drop a run that `out` holds, finished or not.

    Returns:
        how it came out, on rank 0; None on the others.

    Raises:
        TrainingError: `run-finished`, `run-busy`, `weights-not-finite`, or as `Checkpoints.load`
            and `loop.train`.
        NoSpaceError: the disk is full; the last checkpoint is intact.
        SourceError: too few pairs for the batch and ranks.
    """
    with alone_in(out) if world.main else nullcontext():
        watching = watching or Watching()
        data = pair.prepare(
            feeds, validation_sources, config, world, workers=workers, watching=watching
        )
        start = _begin(pair, config, world)
        checkpoints = Checkpoints(out, config, {**identity, "ranks": world.size})
        if world.main and restart:
            checkpoints.clear()
            (out / RESULT_NAME).unlink(missing_ok=True)
        wait_for_all()
        refuse_finished(out)
        saved = checkpoints.load()
        begun = 0 if saved is None else saved.progress.step
        wait_for_all()
        if world.main:
            write_config(out, config, identity, {**report, **data.described})
        run = _assembled(pair, data, config, world, checkpoints, watching, make_objective)
        run.journal = Journal(out, step=begun) if world.main else None
        run.cadence = cadence or Cadence()
        if saved is not None and world.main:
            watching.on_resume(begun, run.steps)
        result = None
        with room_in(out):
            try:
                progress = train(run, saved)
                pair.settle()
            finally:
                if run.journal is not None:
                    run.journal.close()
            if world.main:
                result = _finish(run, progress, start, out)
                checkpoints.clear()
        wait_for_all()
        return result


def train_unkept(
    pair: TrainablePair,
    data: TrainingData,
    config: TrainConfig,
    world: World,
    *,
    on_step: Callable[[Any], None] | None = None,
    make_objective: MakeObjective | None = None,
) -> Progress:
    """Train `pair` in place, without files, towards the last or the best weights and no further.

    Raises:
        TrainingError: `loss-not-finite`.
    """
    watching = Watching() if on_step is None else Watching(on_step=on_step)
    _begin(pair, config, world)
    progress = train(
        _assembled(pair, data, config, world, Unkept(), watching, make_objective), None
    )
    pair.settle()
    return progress


def refuse_finished(out: Path) -> None:
    """Raise TrainingError `run-finished` where a run's result lies."""
    if (out / RESULT_NAME).exists():
        raise TrainingError(
            f"{out} holds a finished run",
            code="run-finished",
            hint="name another --out, or --restart to replace it",
        )


def _begin(pair: TrainablePair, config: TrainConfig, world: World) -> Weights:
    """Bring the pair to where its first step is taken -> the weights it starts from."""
    pair.use_bias(config.objective == "siglip")
    start = copy_of(pair.module)
    pair.choose(config)
    pair.module.to(world.device)
    broadcast_from_main(pair.module)
    return start


def _assembled(
    pair: TrainablePair,
    data: TrainingData,
    config: TrainConfig,
    world: World,
    states: States,
    watching: Watching,
    make_objective: MakeObjective | None,
) -> Run:
    optimiser = make_optimiser(pair, config)
    objective = make_objective(pair, config) if make_objective else pair.objective(config)
    measured = data.validation is not None
    return Run(
        pair=pair,
        config=config,
        world=world,
        stepper=Stepper(pair, objective, optimiser, config, world),
        optimiser=optimiser,
        batches=data.batches,
        per_epoch=data.per_epoch,
        states=states,
        measured=measured,
        validation=data.validation() if data.validation is not None and world.main else None,
        on_step=watching.on_step,
    )


def _finish(run: Run, progress: Progress, start: Weights, out: Path) -> Result:
    pair, config = run.pair, run.config
    refuse_not_finite(pair.module, kept_in(run.states))
    share, tried, after = interpolate(
        start,
        copy_of(pair.module),
        config.interpolate,
        pair.module.load_state_dict,
        None if run.validation is None else run.validation.measure,
    )
    lines = read_journal(out)
    losses = [line["loss"] for line in lines if "loss" in line]
    kept_step = (progress.best_step if config.keep == "best" else 0) or progress.step
    before, final_loss = dict(progress.validations).get(0), losses[-1] if losses else None
    scale = float(pair.log_scale.detach().exp())
    gain = None if before is None or after is None else gain_of(before, after)
    result = Result(
        steps=progress.step,
        kept_step=kept_step,
        kept_epoch=-(-kept_step // run.per_epoch),
        interpolation=share,
        tried=tried,
        before=before,
        after=after,
        final_loss=final_loss,
        logit_scale=scale,
        stopped_early=progress.stopped,
        seconds=progress.seconds,
        chance=None if gain is None else gain.chance,
        gain=None if gain is None else gain.gain,
        gain_error=None if gain is None else gain.error,
        doubts=doubts_of(
            gain if share else None,  # the very weights it began with need no such doubt
            final_loss=final_loss,
            batch=run.batch,
            scale=scale,
            softmax=pair.bias is None,
        ),
    )
    pair.save(out)
    picture = draw_curves(lines)
    if picture is not None:
        replace_file(out / CURVES_NAME, picture)
    write_result(out, result)
    return result
