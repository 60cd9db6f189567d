"""`diptych train` of an open_clip pair: options into a configuration, a run, and what it says."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from service.cli.exits import OK, PARTIAL
from service.cli.inspection import inspected
from service.cli.output import emit_json, note
from service.cli.train.options import TrainOptions
from service.cli.train.output import Rejects, Tables, config_lines, step_bar

if TYPE_CHECKING:
    from models.sources import Source
    from models.sources.report.counts import DataReport
    from models.training.config import TrainConfig
    from models.training.data import Kind
    from models.training.distributed import World
    from models.training.pair import TrainablePair
    from models.training.run import Feed


def train_openclip(options: TrainOptions) -> int:
    """Train and report; returns the exit code."""
    from models.devices import set_threads
    from models.training.distributed import join_world, leave_world

    set_threads(options.threads)
    world = join_world(options.device)
    try:
        return _train(options, world)
    finally:
        leave_world()


def _train(options: TrainOptions, world: World) -> int:
    from models.training.loop import Cadence
    from models.training.run import Watching, refuse_finished, run_training

    if not options.restart:
        refuse_finished(options.out)  # again by the run itself; here before anything is read
    pair = _pair(options)
    data = _data(options, pair, world)
    config = _config(
        options, pair, data.feeds[0].pairs, measured=bool(data.validation), world=world
    )
    identity = {
        "model": options.model,
        "weights_sha256": pair.weights_sha256,
        "data": list(options.data + options.extra_data),
        "class_data": [list(entry) for entry in options.class_data],
        "val": list(options.val),
        "filter_below": options.filter_below,
        "data_digest": data.digest,
    }
    if world.main:
        for line in config_lines(config, pair, data.feeds):
            note(line)
    rejects = Rejects()
    with step_bar(shown=world.main) as on_step:
        result = run_training(
            pair,
            data.feeds,
            config,
            world,
            options.out,
            identity=identity,
            report=data.described,
            validation_sources=data.validation,
            workers=options.workers or min(8, os.cpu_count() or 1),
            cadence=Cadence(options.checkpoint_steps, options.checkpoint_minutes),
            restart=options.restart,
            watching=Watching(
                on_step=on_step,
                on_reject=rejects.add,
                on_resume=lambda step, steps: note(f"continuing after step {step} of {steps}"),
            ),
        )
    if result is None:  # not rank 0
        return OK
    if options.as_json:
        emit_json({"out": str(options.out), **dataclasses.asdict(result)})
    else:
        click.echo("\n".join([*Tables.of(result), f"saved to {options.out}"]))
    rejects.tell()
    return PARTIAL if rejects.count or data.report.rejects else OK


def _pair(options: TrainOptions) -> TrainablePair:
    from models.encoders.base.model_id import parse_model_id
    from models.training.pair import fresh_pair, load_pair

    if options.fresh:
        return fresh_pair(options.model, seed=options.seed)
    return load_pair(parse_model_id(options.model))


@dataclass(frozen=True, slots=True)
class _Data:
    """What to train on and to measure on, and what both hold."""

    feeds: list[Feed]
    validation: list[Source]
    report: DataReport
    described: dict[str, Any]
    """For the saved configuration: the reports of both, and of the filter."""
    digest: str
    """Of the training data: a continued run must have the same."""


def _data(options: TrainOptions, pair: TrainablePair, world: World) -> _Data:
    from models.sources.records import HoldOut
    from models.sources.report.checks import report_lines
    from models.training.data import Surveyed, one_in_for
    from models.training.run import Feed

    described: dict[str, Any] = {}
    main, extra = (options.reading.open(specs) for specs in (options.data, options.extra_data))
    if options.filter_below is not None:
        main, extra, described["filter"] = _filtered(options, main, extra, world)
    kinds: list[tuple[Kind, list[Surveyed]]] = [
        ("main", [Surveyed(source) for source in main]),
        ("extra", [Surveyed(source) for source in extra]),
        ("class", [Surveyed(source) for source in _classes(options)]),
    ]
    every = [source for _, sources in kinds for source in sources]
    _refuse_streams(every)

    def reopen(fields: Sequence[str]) -> Sequence[Source]:
        reading = dataclasses.replace(options.reading, text_fields=tuple(fields))
        return reading.open(options.data + options.extra_data)

    report = inspected(every, reopen, prepare_text=pair.tokenizer, checked=bool(main or extra))
    described["train"] = report.to_dict()
    lines = report_lines(report)
    validation = options.reading.open([name for name in options.val if name != "none"])
    if validation:
        val_report = inspected(
            validation, reopen, prepare_text=pair.tokenizer, against=report, checked=False
        )
        described["validation"] = val_report.to_dict()
        lines += report_lines(val_report, "validation")
    one_in = None
    if not options.val:
        one_in = one_in_for(sum(source.pairs for source in kinds[0][1]))
    feeds = []
    for kind, surveyed in kinds:
        pairs = sum(source.pairs for source in surveyed)
        sources = [source.source for source in surveyed]
        if kind == "main" and one_in is not None:
            held = sum(source.held[one_in] for source in surveyed)
            pairs -= held
            validation = [HoldOut(source, one_in, held_out=True) for source in sources]
            sources = [HoldOut(source, one_in, held_out=False) for source in sources]
            lines.append(f"validation: {held} of these pictures are held back (--val none: none)")
        if pairs:
            feeds.append(Feed(kind, sources, pairs))
    if world.main:
        for line in lines:
            note(line)
    digest = "-".join(source.digest for source in every)
    return _Data(feeds, validation, report, described, digest)


def _filtered(
    options: TrainOptions, main: list[Source], extra: list[Source], world: World
) -> tuple[list[Source], list[Source], dict[str, Any]]:
    """Both without badly fitting captions, and what the filter did."""
    from models.encoders.registry import load_encoder
    from models.training.distributed import wait_for_all
    from service.cli.train.filter import filtered

    assert options.filter_below is not None
    encoder = load_encoder(options.filter_model or options.model, device=str(world.device))
    # several processes: the first one scores, the others find its scores
    cache = options.score_cache or (options.out / "scores" if world.size > 1 else None)
    if not world.main:
        wait_for_all()
    sources, report = filtered([*main, *extra], encoder, options.filter_below, cache=cache)
    if world.main:
        wait_for_all()
        for line in report.lines():
            note(line)
    return sources[: len(main)], sources[len(main) :], report.to_dict()


def _refuse_streams(sources: Sequence[Source]) -> None:
    from models.errors import SourceError

    if not all(source.rereadable for source in sources):
        raise SourceError(
            "training reads its data again and again, and standard input can be read once",
            code="not-rereadable",
            hint="write it to a file first",
        )


def _classes(options: TrainOptions) -> list[Source]:
    from models.sources.records import HoldOut

    found = []
    for spec, field in options.class_data:
        reading = dataclasses.replace(options.reading, text_fields=(field,))
        source: Source = reading.open([spec])[0]
        if options.holdout is not None:
            source = HoldOut(source, options.holdout, held_out=False)
        found.append(source)
    return found


def _config(
    options: TrainOptions, pair: TrainablePair, pairs: int, *, measured: bool, world: World
) -> TrainConfig:
    from models.training import defaults
    from models.training.config import TrainConfig

    if not measured and (options.keep == "best" or options.interpolate == "val"):
        raise click.UsageError("--keep best and --interpolate val need a validation set (--val)")
    fresh = pair.fresh
    batch = options.batch_size or defaults.batch_size_for(pairs, world.size)
    objective = options.objective
    if objective == "auto":
        objective = "clip" if pair.bias is None else "siglip"
    interpolate: Any = options.interpolate
    if interpolate is None:
        interpolate = defaults.interpolation_for(fresh=fresh, measured=measured)
    patience = options.patience
    if patience is None:
        patience = defaults.patience_for(fresh=fresh, measured=measured)
    return TrainConfig(
        epochs=options.epochs or defaults.epochs_for(pairs, batch, fresh=fresh),
        batch_size=batch,
        micro_batch=options.micro_batch,
        lr=options.lr or defaults.rate_for(fresh=fresh, lora=options.tune == "lora"),
        warmup=options.warmup,
        weight_decay=options.weight_decay,
        layer_decay=options.layer_decay,
        grad_clip=options.grad_clip,
        precision=defaults.precision_for(options.precision, world.device),
        grad_checkpointing=options.grad_checkpointing,
        objective="siglip" if objective == "siglip" else "clip",
        label_smoothing=options.label_smoothing,
        hard_negatives=options.hard_negatives,
        tune="lora" if options.tune == "lora" else "full",
        lora_rank=options.lora_rank,
        lock_image=options.lock_image,
        lock_text=options.lock_text,
        unlock_blocks=options.unlock_blocks,
        ema=options.ema,
        interpolate=interpolate,
        keep="best" if (options.keep or "best") == "best" and measured else "last",
        patience=patience,
        eval_every=options.eval_every,
        crop=(options.crop, 1.0),
        flip=options.flip,
        colour=options.colour,
        extra_share=options.extra_share,
        class_share=options.class_share,
        shuffle_buffer=options.shuffle_buffer,
        seed=options.seed,
    )
