"""`diptych train` of the starter: heads over frozen towers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.exits import OK, PARTIAL
from service.cli.output import emit_json, interactive, note
from service.cli.train.look import looked_over
from service.cli.train.options import TrainOptions
from service.cli.train.output import before_after, step_bar

if TYPE_CHECKING:
    from models.encoders.starter.heads import StarterHeads
    from models.encoders.starter.towers import ImageTower, TextTower
    from models.sources import Source
    from models.training.features.pairs import DataReport
    from models.training.starter.config import TrainConfig
    from models.training.starter.run import HeadsRun


def train_starter(options: TrainOptions) -> int:
    """Train and report; returns the exit code."""
    from models.devices import resolve_device, set_threads
    from models.encoders.starter.pair import (
        STARTER_DIRECTORY,
        load_image_tower,
        load_text_tower,
        starter_dtype,
    )
    from models.encoders.starter.towers import ImageTower, TextTower
    from models.training.features.maker import FeatureMaker
    from models.training.features.pairs import Rehearsal, gather
    from models.training.starter.run import run_heads, split

    _refuse_others(options)
    classes = [
        dataclasses.replace(options.reading, text_fields=(field,)).open([spec])[0]
        for spec, field in options.class_data
    ]
    measured = options.reading.open([name for name in options.val if name != "none"])
    set_threads(options.threads)
    where = resolve_device(options.device)
    start = None if options.fresh else STARTER_DIRECTORY
    text_tower = TextTower() if start is None else load_text_tower(start)
    dtype = starter_dtype(options.precision, where)
    if start is None:
        image_tower = ImageTower(device=where, dtype=dtype)
    else:
        image_tower = load_image_tower(start, device=where, dtype=dtype)
    captioned, extra, filtered = _captioned(options, image_tower, text_tower)
    described: dict[str, Any] = {} if filtered is None else {"filter": filtered}
    described["data"] = looked_over(options, text_tower.prepare, [*captioned, *extra], measured)
    with _feature_bar() as on_features:
        maker = FeatureMaker(
            image_tower,
            text_tower,
            cache=options.cache,
            on_progress=on_features,
        )
        pairs, report = gather(
            captioned, maker, extra=extra, classes=classes, holdout=options.holdout
        )
        described["train"] = report.to_dict()
        rejects = list(report.rejects)
        validation = None
        if measured:
            validation, val_report = gather(measured, maker)
            described["validation"] = val_report.to_dict()
            rejects += val_report.rejects
        # the recipe of the shipped heads starts fresh and uses all it is given
        elif not options.val and not options.fresh and (halves := split(pairs)) is not None:
            pairs, validation = halves
        rehearsal = Rehearsal(pairs.image_NF, maker) if options.concept_share else None
        config = _config(options, len(pairs), measured=validation is not None)
        heads = _starting_heads(config, maker.text_tower)
    for line in report_lines(report):
        note(line)
    if validation is not None and not measured:
        note(f"validation: {len(validation)} of these pictures are held back (--val none: none)")
    note(
        f"run: {config.epochs} epochs, batch {config.batch_size}, lr {config.lr:.3g}, keep "
        f"{config.keep}, interpolation {config.interpolate}"
    )
    with step_bar() as on_step:
        run = run_heads(
            heads,
            pairs,
            config,
            options.out,
            validation=validation,
            rehearsal=rehearsal,
            described=described,
            restart=options.restart,
            started_from=start,
            on_step=on_step,
            on_resume=lambda epoch: note(f"continuing after epoch {epoch} of {config.epochs}"),
        )
    if not run.drawn:
        note("no curve.png: matplotlib is not installed (pip install matplotlib)")
    if options.as_json:
        emit_json(_summary(run, options.out, described))
    else:
        click.echo("\n".join([*result_lines(run), f"saved to {options.out}"]))
    return PARTIAL if rejects else OK


def _starting_heads(config: TrainConfig, text_tower: TextTower) -> StarterHeads:
    from models.encoders.starter.heads import load_heads
    from models.encoders.starter.pair import STARTER_DIRECTORY
    from models.training.starter.start import fresh_heads

    if config.init == "fresh":
        return fresh_heads(config, text_tower)
    return load_heads(STARTER_DIRECTORY)[0].requires_grad_(True)


def _captioned(
    options: TrainOptions, image_tower: ImageTower, text_tower: TextTower
) -> tuple[list[Source], list[Source], dict[str, Any] | None]:
    """(main sources, extra ones, what a filter did to them)"""
    from models.encoders.registry import load_encoder
    from service.cli.train.filter import filtered

    main, extra = (options.reading.open(specs) for specs in (options.data, options.extra_data))
    if options.filter_below is None:
        return main, extra, None
    if options.filter_folds:
        return _judged_in_halves(options, main, extra, image_tower, text_tower)
    encoder = load_encoder(options.filter_model or "starter", device=options.device)
    sources, report = filtered(
        [*main, *extra], encoder, options.filter_below, cache=options.score_cache
    )
    for line in report.lines():
        note(line)
    return sources[: len(main)], sources[len(main) :], report.to_dict()


def _judged_in_halves(
    options: TrainOptions,
    main: list[Source],
    extra: list[Source],
    image_tower: ImageTower,
    text_tower: TextTower,
) -> tuple[list[Source], list[Source], dict[str, Any]]:
    from models.training.features.maker import FeatureMaker
    from models.training.starter.judging import halves, judges
    from service.cli.train.filter import filtered_in_halves

    assert options.filter_below is not None
    main_parts, extra_parts = halves(main), halves(extra)
    parts = [[*one, *other] for one, other in zip(main_parts, extra_parts, strict=True)]
    pictures = sum(source.count() or 0 for source in [*main, *extra]) // 2
    config = _config(options, pictures, measured=False)
    with _feature_bar() as on_features:
        maker = FeatureMaker(image_tower, text_tower, cache=options.cache, on_progress=on_features)
        note("training two judges, each on one half")
        encoders = judges(
            parts, maker, image_tower, lambda: _starting_heads(config, text_tower), config
        )
    kept, described, lines = filtered_in_halves(parts, encoders, options.filter_below)
    for line in lines:
        note(line)
    per_part = len(main) + len(extra)
    mains = [kept[at] for at in range(len(kept)) if at % per_part < len(main)]
    others = [kept[at] for at in range(len(kept)) if at % per_part >= len(main)]
    return mains, others, described


def _config(options: TrainOptions, pictures: int, *, measured: bool) -> TrainConfig:
    from models.training.starter import defaults
    from models.training.starter.config import TrainConfig

    fresh = options.fresh
    interpolate: Any = options.interpolate
    if interpolate is None:
        interpolate = defaults.interpolation_for(fresh=fresh, measured=measured)
    patience = options.patience
    if patience is None:
        patience = defaults.patience_for(fresh=fresh, measured=measured)
    keep: Any = options.keep or defaults.keep_for(fresh=fresh, measured=measured)
    return TrainConfig(
        epochs=options.epochs or defaults.epochs_for(fresh=fresh),
        batch_size=options.batch_size or defaults.BATCH,
        lr=options.lr or defaults.rate_for(pictures, fresh=fresh),
        warmup=options.warmup,
        weight_decay=options.weight_decay,
        label_smoothing=options.label_smoothing,
        extra_share=options.extra_share,
        class_share=options.class_share,
        concept_share=options.concept_share,
        ema=options.ema,
        init="fresh" if fresh else "starter",
        keep=keep,
        patience=patience,
        interpolate=interpolate,
        seed=options.seed,
        holdout=options.holdout,
    )


def _refuse_others(options: TrainOptions) -> None:
    """Options that say nothing to frozen towers are refused, not passed over."""
    if options.keep == "best" and (not options.val or options.val == ("none",)):
        raise click.UsageError("--keep best needs --val to tell which epoch is best")
    given = {
        "--micro-batch": options.micro_batch is not None,
        "--grad-checkpointing": options.grad_checkpointing,
        "--objective siglip": options.objective == "siglip",
        "--hard-negatives": options.hard_negatives > 0,
        "--lock-image": options.lock_image,
        "--lock-text": options.lock_text,
        "--unlock-blocks": options.unlock_blocks > 0,
        "--layer-decay": options.layer_decay != 1.0,
        "--flip": options.flip,
        "--colour": options.colour > 0,
        "--checkpoint-steps": options.checkpoint_steps is not None,
    }
    if wrong := [name for name, is_given in given.items() if is_given]:
        raise click.UsageError(
            f"{', '.join(wrong)}: the starter's towers are frozen and its heads small; these "
            "options are for open_clip models (--model)"
        )


def report_lines(report: DataReport) -> list[str]:
    """What the towers made of it, before the first step."""
    captions = ", ".join(f"{count} {name}" for name, count in sorted(report.captions.items()))
    lines = [f"used: {report.pictures} pictures; captions: {captions}"]
    if report.classes:
        lines.append(f"      {report.classes} classes by name")
    if report.rejects:
        lines.append(f"      {len(report.rejects)} rejected (undecodable or unreadable), e.g.:")
        lines += [
            f"        {reject.source} {reject.key}: {reject.code}: {reject.detail}"
            for reject in report.rejects[:5]
        ]
    return lines


def result_lines(run: HeadsRun) -> list[str]:
    """Recall before and after, in percent; empty without a validation set."""
    epoch = run.result.kept_epoch
    line = f"epoch {epoch}, {100 * run.share:.0f} % of the way from the heads it started with"
    if run.before is None or run.after is None:
        return [line, "no validation, nothing measured"]
    return [line, *before_after(run.before, run.after)]


def _summary(run: HeadsRun, out: Path, described: dict[str, Any]) -> dict[str, Any]:
    return {
        "out": str(out),
        "data": described,
        "kept_epoch": run.result.kept_epoch,
        "interpolation": run.share,
        "tried": run.tried,
        "steps": len(run.result.steps),
        "final_loss": run.result.steps[-1].loss,
        "logit_scale": run.result.steps[-1].scale,
        "before": run.before,
        "after": run.after,
    }


@contextmanager
def _feature_bar() -> Iterator[Callable[[str, int, int], None]]:
    from tqdm import tqdm

    with tqdm(disable=not interactive(), desc="features") as bar:

        def show(what: str, done: int, total: int) -> None:
            bar.unit = what
            bar.total = total
            bar.n = done
            bar.refresh()

        yield show
