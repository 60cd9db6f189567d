"""`diptych train`: an encoder pair learns from captioned pictures of your own.

One flow for every family of pairs: what to learn from, the settings, a run, and what it says.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from models.encoders.base.model_id import STARTER
from models.training.config import foreign
from service.cli.exits import OK, PARTIAL
from service.cli.inspection import inspected
from service.cli.options import HeadedCommand, takes
from service.cli.output import emit_json, note, progress_bar
from service.cli.train.filter import filtered, judged_in_halves, refuse_folds
from service.cli.train.options import TrainOptions
from service.cli.train.progress import Rejects, RunBar, config_lines, result_lines

if TYPE_CHECKING:
    from models.sources import Source
    from models.sources.report.counts import DataReport
    from models.training.config import TrainConfig
    from models.training.data import Kind
    from models.training.distributed import World
    from models.training.pair import Feed, TrainablePair

_GLANCED = 500
"""Pictures decoded for the report where all of them are before the first step anyway."""


@click.command(cls=HeadedCommand, short_help="Train an encoder pair on captioned pictures.")
@takes(TrainOptions)
def train(options: TrainOptions) -> int:
    """Train an encoder pair on captioned pictures, carefully.

    \b
    diptych train --data ~/Pictures/captioned --out my-pair
    diptych train --data 'train-{00000..00009}.tar' --val val.tar --out tuned \\
        --model ViT-B-32/laion2b_s34b_b79k
    diptych train --data train.jsonl --out mine --init fresh --model ViT-B-32 \\
        --batch-size 4096 --micro-batch 64 --precision bf16
    torchrun --nproc-per-node 8 --no-python diptych train --data ... --out tuned --model ...
    diptych index build ~/Pictures --out photos.index --model local-dir:tuned
    diptych train --data train.tar --label-field label --tune linear --out shelf
    diptych classify ~/Pictures --head shelf/head.safetensors

    The starter's towers stay frozen and its heads learn; of an open_clip model all learns that is
    not locked. Before and after are measured on --val. Killed and run again with the same
    command, a run continues where it was. docs/training.md says what the defaults are and why.
    """
    from models.devices import import_torch, set_threads

    import_torch("training")
    sets, tune = options.sets, options.keeping.tune
    if sets.filtering.filter_folds:
        refuse_folds(sets.filtering, options.model, tune)
    if tune in ("linear", "adapter", "prompts"):
        from service.cli.train.head import train_head

        return train_head(options)
    if not sets.data and not sets.extra_data and not sets.class_data:
        raise click.UsageError("nothing to train on: name at least one --data or --class-data")
    if tune == "lora" and options.keeping.unlock_blocks:
        raise click.UsageError("--unlock-blocks has no meaning for --tune lora")
    from models.encoders.registry import is_starter

    if options.model == STARTER or (not options.run.fresh and is_starter(options.model)):
        _refuse_for_heads(options)
    elif options.starter.cache is not None:
        raise click.UsageError("--cache keeps features of the starter's towers; they are not used")

    from models.training.distributed import join_world, leave_world

    set_threads(options.machine.pair.machine.threads)
    world = join_world(options.machine.pair.machine.device)
    try:
        return _train(options, world)
    finally:
        leave_world()


def _refuse_for_heads(options: TrainOptions) -> None:
    """Options that say nothing to frozen towers are refused, not passed over."""
    if options.keeping.tune == "lora":
        raise click.UsageError("the starter's heads learn whole; --tune lora is for open_clip")
    if options.keeping.keep == "best" and not options.sets.measured:
        raise click.UsageError("--keep best needs --val to tell which epoch is best")
    wrong = [
        f"{one.flag} siglip" if one.name == "objective" else one.flag
        for one in foreign(options.asked(), "starter")
    ]
    if wrong:
        raise click.UsageError(
            f"{', '.join(wrong)}: the starter's towers are frozen and its heads small; these "
            "options are for open_clip models (--model)"
        )


def _train(options: TrainOptions, world: World) -> int:
    from models.training.loop import Cadence
    from models.training.pair import PairRequest, Watching, load_trainable
    from models.training.record import CURVES_NAME
    from models.training.run import refuse_finished, run_training

    run, sets = options.run, options.sets
    if not run.restart:
        refuse_finished(run.out)  # again by the run itself; here before anything is read
    pair = load_trainable(
        PairRequest(
            model=options.model,
            device=world.device,
            fresh=run.fresh,
            seed=run.seed,
            precision=options.machine.pair.machine.precision,
            cache=options.starter.cache,
        )
    )
    found = _found(options, pair, world)
    config = _config(options, pair, found.feeds, world, measured=bool(found.validation))
    identity = {
        "model": options.model,
        "weights_sha256": pair.weights_sha256,
        "data": list(sets.data + sets.extra_data),
        "class_data": [list(entry) for entry in sets.class_data],
        "val": list(sets.val),
        "filter_below": sets.filtering.filter_below,
        "data_digest": found.digest,
    }
    if world.main:
        for line in config_lines(config, pair, found.feeds):
            note(line)
    rejects = Rejects()
    with progress_bar("training", "step", shown=world.main) as drawn:
        bar = RunBar(drawn)
        result = run_training(
            pair,
            found.feeds,
            config,
            world,
            run.out,
            identity=identity,
            report=found.described,
            validation_sources=found.validation,
            workers=options.pictures.workers or min(8, os.cpu_count() or 1),
            cadence=Cadence(run.checkpoint_steps, run.checkpoint_minutes),
            restart=run.restart,
            watching=Watching(
                on_step=bar.step,
                on_reject=rejects.add,
                on_resume=lambda step, steps: note(f"continuing after step {step} of {steps}"),
                on_features=bar.features,
                on_note=note if world.main else lambda _: None,
            ),
        )
    if result is None:  # not rank 0
        return OK
    if not (run.out / CURVES_NAME).exists():
        note(f"no {CURVES_NAME}: matplotlib is not installed (pip install matplotlib)")
    if options.machine.as_json:
        described = {"data": found.described}
        emit_json({"out": str(run.out), **described, **dataclasses.asdict(result)})
    else:
        click.echo("\n".join([*result_lines(result), f"saved to {run.out}"]))
    rejects.tell()
    return PARTIAL if rejects.count or found.report.rejects else OK


@dataclass(frozen=True, slots=True)
class _Found:
    """What to train on and to measure on, and what both hold."""

    feeds: list[Feed]
    validation: list[Source]
    report: DataReport
    described: dict[str, Any]
    """For the saved settings: the reports of both, and of the filter."""
    digest: str
    """Of the training data: a continued run must have the same."""


def _found(options: TrainOptions, pair: TrainablePair, world: World) -> _Found:
    from models.sources.report.checks import report_lines
    from models.sources.report.counts import sampling
    from models.training.data import Surveyed, one_in_for, refuse_streams
    from models.training.pair import feeds_of

    sets = options.sets
    described: dict[str, Any] = {}
    main, extra = (sets.reading.open(specs) for specs in (sets.data, sets.extra_data))
    if sets.filtering.filter_below is not None:
        main, extra, described["filter"] = _filtered(options, pair, main, extra, world)
    kinds: list[tuple[Kind, list[Surveyed]]] = [
        ("main", [Surveyed(source) for source in main]),
        ("extra", [Surveyed(source) for source in extra]),
        ("class", [Surveyed(source) for source in _classes(options)]),
    ]
    every = [source for _, sources in kinds for source in sources]
    refuse_streams(every)

    def reopen(fields: Sequence[str]) -> Sequence[Source]:
        return sets.reading.with_text_fields(fields).open(sets.data + sets.extra_data)

    def glance(sources: Sequence[Source]) -> int | None:
        return sampling(sources, _GLANCED) if pair.decodes_first else None

    report = inspected(
        every,
        reopen,
        prepare_text=pair.prepare_text,
        one_in=glance(every),
        checked=bool(main or extra),
    )
    described["train"] = report.to_dict()
    lines = report_lines(report)
    validation = sets.reading.open(sets.measured)
    if validation:
        val_report = inspected(
            validation,
            reopen,
            prepare_text=pair.prepare_text,
            one_in=glance(validation),
            against=report,
            checked=False,
        )
        described["validation"] = val_report.to_dict()
        lines += report_lines(val_report, "validation")
    one_in = None
    if not sets.val and pair.holds_back:
        one_in = one_in_for(sum(source.pairs for source in kinds[0][1]))
    feeds, held_back, held = feeds_of(kinds, one_in)
    if held:
        validation = held_back
        lines.append(
            f"validation: {held} of these pictures are held back, none of which shares its bytes "
            "or a caption with one that is trained on (--val none: none)"
        )
    elif one_in is not None:
        lines.append(
            "validation: nothing can be held back, too many pictures share their bytes or "
            "captions: name a set of its own (--val)"
        )
    if world.main:
        for line in lines:
            note(line)
    digest = "-".join(source.digest for source in every)
    return _Found(feeds, validation, report, described, digest)


def _filtered(
    options: TrainOptions,
    pair: TrainablePair,
    main: list[Source],
    extra: list[Source],
    world: World,
) -> tuple[list[Source], list[Source], dict[str, Any]]:
    """Both without badly fitting captions, and what the filter did."""
    from models.encoders.registry import load_encoder
    from models.training.distributed import wait_for_all

    filtering = options.sets.filtering
    assert filtering.filter_below is not None
    if filtering.filter_folds:
        from models.training.config import Circumstances, resolved
        from models.training.starter import StarterPair

        assert isinstance(pair, StarterPair)
        pictures = sum(source.count() or 0 for source in [*main, *extra]) // 2
        at = Circumstances(pairs=pictures, pictures=pictures)
        config = resolved(_asked(options, pair, world), pair.kind, at)
        return judged_in_halves(pair, main, extra, config, filtering.filter_below)
    encoder = load_encoder(filtering.filter_model or options.model, device=str(world.device))
    # several processes: the first one scores, the others find its scores
    shared = options.run.out / "scores" if world.size > 1 else None
    if not world.main:
        wait_for_all()
    sources, report = filtered(
        [*main, *extra], encoder, filtering.filter_below, cache=filtering.score_cache or shared
    )
    if world.main:
        wait_for_all()
        for line in report.lines():
            note(line)
    return sources[: len(main)], sources[len(main) :], report.to_dict()


def _classes(options: TrainOptions) -> list[Source]:
    from models.sources.records import HoldOut

    sets = options.sets
    found = []
    for spec, field in sets.class_data:
        source: Source = sets.reading.with_text_fields([field]).open([spec])[0]
        if sets.holdout is not None:
            source = HoldOut(source, sets.holdout, held_out=False)
        found.append(source)
    return found


def _asked(options: TrainOptions, pair: TrainablePair, world: World) -> dict[str, Any]:
    asked = options.asked()
    if asked["objective"] == "auto":
        asked["objective"] = "clip" if pair.bias is None else "siglip"
    if wrong := foreign(asked, pair.kind):
        raise click.UsageError(
            f"{', '.join(one.flag for one in wrong)}: of no use to this kind of pair and run; "
            "leave them out (docs/training.md has a table of what each kind knows)"
        )
    precision = pair.arithmetic(options.machine.pair.machine.precision, world.device)
    return asked | {"precision": precision}


def _config(
    options: TrainOptions,
    pair: TrainablePair,
    feeds: Sequence[Feed],
    world: World,
    *,
    measured: bool,
) -> TrainConfig:
    from models.training.config import Circumstances, resolved

    keeping = options.keeping
    if not measured and (keeping.keep == "best" or keeping.interpolate == "val"):
        raise click.UsageError("--keep best and --interpolate val need a validation set (--val)")
    at = Circumstances(
        pairs=feeds[0].pairs,
        pictures=sum(feed.pairs for feed in feeds),
        ranks=world.size,
        measured=measured,
        tune=keeping.tune,
    )
    return resolved(_asked(options, pair, world), pair.kind, at)
