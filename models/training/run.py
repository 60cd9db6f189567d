"""One run of the trainer, from opened sources to a directory with a pair in it.

Puts the pieces together and decides nothing else; the command line above it knows options and
consoles, the loop below it knows steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from models.atomic import replace_file
from models.errors import SourceError, TrainingError
from models.sources.records import Reject, Source
from models.training.checkpoint import Checkpoints
from models.training.config import TrainConfig
from models.training.data import Kind, Mix, Shuffled, Stream, usable
from models.training.distributed import World, broadcast_from_main, wait_for_all
from models.training.loop import Cadence, Run, train
from models.training.losses import InfoNCEObjective, Objective, SigmoidObjective
from models.training.measuring import Validation
from models.training.optimiser import make_optimiser
from models.training.pair import TrainablePair
from models.training.progress import Progress, Step
from models.training.record import (
    RESULT_NAME,
    Journal,
    Result,
    draw_curves,
    interpolate,
    read_journal,
    result_of,
    write_config,
    write_result,
)
from models.training.samples import Augmentation, Augmenter, Batch, Preparer, load_batches
from models.training.saving import save_pair
from models.training.step import Stepper
from models.training.stopping import room_in
from models.training.tuning import attach_lora, lock, merge_lora
from models.training.weights import Weights, copy_of

CURVES_NAME: Final = "curves.png"


@dataclass(frozen=True, slots=True)
class Feed:
    """Sources of one kind, and how many pairs they hold."""

    kind: Kind
    sources: Sequence[Source]
    pairs: int


@dataclass(slots=True)
class Watching:
    """Who is told what, as it goes."""

    on_step: Callable[[Step], None] = field(default=lambda _: None)
    on_reject: Callable[[Reject], None] = field(default=lambda _: None)
    on_resume: Callable[[int, int], None] = field(default=lambda *_: None)
    """(step it continues after, steps in all)"""


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
    make_objective: Callable[[TrainablePair, TrainConfig], Objective] | None = None,
) -> Result | None:
    """Train `pair` and write everything into `out`; continues a run that was cut off.

    Args:
        pair: on the CPU, as loaded.
        feeds: the first is what epochs go over.
        identity: further facts that a continued run must share (model, data).
        report: what the data held, kept with the config.
        validation_sources: measured before, in between and after.
        restart: drop a run that `out` holds, finished or not.
        make_objective: another loss than the config names, for tests and experiments.

    Returns:
        how it came out, on rank 0; None on the others.

    Raises:
        TrainingError: `run-finished`, or as `Checkpoints.load` and `loop.train`.
        NoSpaceError: the disk is full; the last checkpoint is intact.
        SourceError: too few pairs for the batch and ranks.
    """
    watching = watching or Watching()
    mix = make_mix(feeds, config, world)
    pair.use_bias(config.objective == "siglip")
    start = copy_of(pair.module)
    _choose_what_learns(pair, config)
    pair.module.to(world.device)
    broadcast_from_main(pair.module)
    if config.grad_checkpointing:
        pair.module.set_grad_checkpointing(True)

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
        write_config(out, config, identity, report)
    optimiser = make_optimiser(pair.module, config)
    make = make_objective or objective_of
    run = Run(
        pair=pair,
        config=config,
        world=world,
        stepper=Stepper(pair, make(pair, config), optimiser, config, world),
        optimiser=optimiser,
        batches=lambda first: _batches(mix, first, pair, config, world, workers, watching),
        per_epoch=mix.per_epoch,
        checkpoints=checkpoints,
        journal=Journal(out, step=begun) if world.main else None,
        measured=bool(validation_sources),
        validation=_validation(validation_sources, pair, world, watching),
        cadence=cadence or Cadence(),
        on_step=watching.on_step,
    )
    if saved is not None and world.main:
        watching.on_resume(begun, run.steps)
    result = None
    with room_in(out):
        try:
            progress, end = train(run, saved)
            if config.tune == "lora":
                end = merge_lora(pair.module)
        finally:
            if run.journal is not None:
                run.journal.close()
        if world.main:
            result = _finish(run, progress, start, end, out)
    wait_for_all()
    return result


def _choose_what_learns(pair: TrainablePair, config: TrainConfig) -> None:
    if config.tune == "lora":
        locked = {"image": config.lock_image, "text": config.lock_text}
        towers = [tower for tower, rests in locked.items() if not rests]
        attach_lora(pair.module, rank=config.lora_rank, towers=towers, seed=config.seed)
        return
    lock(
        pair.module,
        image=config.lock_image,
        text=config.lock_text,
        unlock_blocks=config.unlock_blocks,
    )


def refuse_finished(out: Path) -> None:
    """Raise TrainingError `run-finished` where a run's result lies."""
    if (out / RESULT_NAME).exists():
        raise TrainingError(
            f"{out} holds a finished run",
            code="run-finished",
            hint="name another --out, or --restart to replace it",
        )


def make_mix(feeds: Sequence[Feed], config: TrainConfig, world: World) -> Mix:
    """The composition of every batch.

    Raises:
        SourceError: fewer pairs than ranks, or a batch of a single pair.
    """
    shares = {"extra": config.extra_share, "class": config.class_share}
    streams = [
        Stream(
            feed.kind,
            Shuffled(
                feed.sources,
                usable,
                seed=config.seed,
                name=f"{feed.kind}{at}",
                buffer=config.shuffle_buffer,
            ),
            feed.pairs,
            shares.get(feed.kind, 0.0) if at else 0.0,
        )
        for at, feed in enumerate(feeds)
    ]
    mix = Mix(streams, config.batch_size)
    if mix.size < 2 or mix.size % world.size:
        raise SourceError(
            f"batches of {mix.size} pairs cannot be shared by {world.size} processes"
            if world.size > 1
            else f"a batch of {mix.size} pairs has nothing to contrast",
            code="too-few-pairs",
            hint=f"--batch-size must be a multiple of {world.size}, with as many pairs in the data",
        )
    return mix


def objective_of(pair: TrainablePair, config: TrainConfig) -> Objective:
    """The configured loss around the pair's own scale and bias."""
    if pair.bias is not None:
        return SigmoidObjective(pair.log_scale, pair.bias)
    return InfoNCEObjective(pair.log_scale, label_smoothing=config.label_smoothing)


def _batches(
    mix: Mix,
    first: int,
    pair: TrainablePair,
    config: TrainConfig,
    world: World,
    workers: int,
    watching: Watching,
) -> Iterator[Batch]:
    augmentation = Augmentation(crop=config.crop, flip=config.flip, colour=config.colour)
    preparer = Preparer(
        Augmenter(pair.preprocess_cfg, augmentation),
        pair.tokenizer,
        hard_negatives=config.hard_negatives,
    )
    own = mix.size // world.size
    mine = slice(world.rank * own, (world.rank + 1) * own)
    plans = (batch[mine] for batch in mix.batches(first))
    return load_batches(
        plans,
        preparer,
        workers=workers,
        processes=world.device.type != "cpu",
        on_reject=watching.on_reject,
    )


def _validation(
    sources: Sequence[Source], pair: TrainablePair, world: World, watching: Watching
) -> Validation | None:
    if not sources or not world.main:
        return None
    validation = Validation(sources, pair, world.device)
    for reject in validation.rejects:
        watching.on_reject(reject)
    if not validation.languages:
        raise SourceError(
            "the validation set holds no picture with a caption",
            code="no-captions",
            hint="name the field they are in (--text-field), or --val none",
        )
    return validation


def _finish(run: Run, progress: Progress, start: Weights, end: Weights, out: Path) -> Result:
    share, tried, after = interpolate(
        start,
        end,
        run.config.interpolate,
        run.pair.module.load_state_dict,
        None if run.validation is None else run.validation.measure,
    )
    lines = read_journal(out)
    losses = [line["loss"] for line in lines if "loss" in line]
    result = result_of(
        progress,
        keep=run.config.keep,
        share=share,
        tried=tried,
        after=after,
        final_loss=losses[-1] if losses else None,
        logit_scale=float(run.pair.log_scale.detach().exp()),
    )
    save_pair(run.pair, out)
    picture = draw_curves(lines)
    if picture is not None:
        replace_file(out / CURVES_NAME, picture)
    write_result(out, result)
    run.checkpoints.clear()
    return result
