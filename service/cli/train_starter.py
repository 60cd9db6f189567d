"""`diptych train` of the starter: heads over frozen towers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.exits import OK, PARTIAL
from service.cli.inspecting import inspected
from service.cli.output import emit_json, interactive, note
from service.cli.train_options import TrainOptions
from service.cli.train_output import before_after, step_bar

if TYPE_CHECKING:
    from models.data import Source
    from models.encoder import PreparedText
    from models.starter.training.loop import TrainResult
    from models.starter.training.pairs import DataReport

_GLANCED = 500
"""Pictures decoded for the report: all of them are before training, and each is reported."""


def train_starter(options: TrainOptions) -> int:
    """Train and report; returns the exit code."""
    from models.devices import resolve_device, set_threads
    from models.starter.encoder import STARTER_DIRECTORY
    from models.starter.heads import load_heads
    from models.starter.precision import starter_dtype
    from models.starter.towers import ImageTower, TextTower
    from models.starter.training.config import TrainConfig
    from models.starter.training.features import FeatureMaker
    from models.starter.training.loop import train as run
    from models.starter.training.pairs import gather
    from models.starter.training.rehearsal import Rehearsal
    from models.starter.training.save import save_run
    from models.starter.training.start import fresh_heads

    if options.keep == "best" and not options.val:
        raise click.UsageError("--keep best needs --val to tell which epoch is best")
    config = TrainConfig(
        epochs=options.epochs or 30,
        batch_size=options.batch_size or 2048,
        lr=options.lr or 1e-3,
        weight_decay=options.weight_decay,
        extra_share=options.extra_share,
        class_share=options.class_share,
        concept_share=options.concept_share,
        init="fresh" if options.fresh else "starter",
        keep="best" if options.keep == "best" else "last",
        seed=options.seed,
        holdout=options.holdout,
    )
    captioned = options.reading.open(options.data)
    extra = options.reading.open(options.extra_data)
    classes = [
        dataclasses.replace(options.reading, text_fields=(field,)).open([spec])[0]
        for spec, field in options.class_data
    ]
    measured = options.reading.open([name for name in options.val if name != "none"])
    set_threads(options.threads)
    described: dict[str, Any] = {}
    if options.filter_below is not None:
        captioned, extra, described["filter"] = _filtered(options, captioned, extra)
    text_tower = TextTower()
    described["data"] = _looked_over(options, text_tower.prepare, captioned, extra, measured)
    where = resolve_device(options.device)
    with _feature_bar() as on_features:
        maker = FeatureMaker(
            ImageTower(device=where, dtype=starter_dtype(options.precision, where)),
            text_tower,
            cache=options.cache,
            on_progress=on_features,
        )
        pairs, report = gather(
            captioned, maker, extra=extra, classes=classes, holdout=options.holdout
        )
        validation, val_report = gather(measured, maker) if measured else (None, None)
        rehearsal = Rehearsal(pairs.image_NF, maker) if options.concept_share else None
        if config.init == "fresh":
            heads = fresh_heads(config, maker.text_tower)
        else:
            heads = load_heads(STARTER_DIRECTORY)[0].requires_grad_(True)
    for line in report_lines(report):
        note(line)
    with step_bar() as on_step:
        result = run(
            heads, pairs, config, validation=validation, rehearsal=rehearsal, on_step=on_step
        )
    described["train"] = report.to_dict()
    if val_report is not None:
        described["validation"] = val_report.to_dict()
    drawn = save_run(result, config, options.out, data=described)
    if not drawn:
        note("no curve.png: matplotlib is not installed (pip install matplotlib)")
    rejects = [*report.rejects, *(val_report.rejects if val_report else [])]
    if options.as_json:
        emit_json(_summary(result, options.out, described))
    else:
        click.echo("\n".join([*result_lines(result), f"saved to {options.out}"]))
    return PARTIAL if rejects else OK


def _filtered(
    options: TrainOptions, captioned: list[Source], extra: list[Source]
) -> tuple[list[Source], list[Source], dict[str, Any]]:
    """Both without badly fitting captions, and what the filter did."""
    from models.registry import load_encoder
    from service.cli.filtering import filtered

    assert options.filter_below is not None
    encoder = load_encoder(
        options.filter_model or options.model,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
    )
    sources, report = filtered(
        [*captioned, *extra], encoder, options.filter_below, cache=options.score_cache
    )
    for line in report.lines():
        note(line)
    return sources[: len(captioned)], sources[len(captioned) :], report.to_dict()


def _looked_over(
    options: TrainOptions,
    prepare_text: Callable[[str], PreparedText],
    captioned: list[Source],
    extra: list[Source],
    measured: list[Source],
) -> dict[str, Any]:
    """Tell what the sets hold and refuse one that teaches nothing; pictures are decoded later."""
    from models.training.data_checks import report_lines as lines_of
    from models.training.data_report import sampling

    def reopen(fields: Sequence[str]) -> list[Source]:
        reading = dataclasses.replace(options.reading, text_fields=tuple(fields))
        return reading.open(options.data + options.extra_data)

    train = [*captioned, *extra]
    if not train:
        return {}
    report = inspected(train, reopen, prepare_text=prepare_text, one_in=sampling(train, _GLANCED))
    lines = lines_of(report)
    found = {"train": report.to_dict()}
    if measured:
        one_in = sampling(measured, _GLANCED)
        validation = inspected(
            measured,
            reopen,
            prepare_text=prepare_text,
            one_in=one_in,
            against=report,
            checked=False,
        )
        lines += lines_of(validation, "validation")
        found["validation"] = validation.to_dict()
    for line in lines:
        note(line)
    return found


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


def result_lines(result: TrainResult) -> list[str]:
    """Recall before and after, in percent; empty without a validation set."""
    if not result.validation:
        return [f"trained {result.kept_epoch} epochs; no --val, nothing measured"]
    before = result.validation[0][1]
    after = dict(result.validation)[result.kept_epoch]
    return [f"epoch {result.kept_epoch}", *before_after(before, after)]


def _summary(result: TrainResult, out: Path, described: dict[str, Any]) -> dict[str, Any]:
    validation = dict(result.validation)
    return {
        "out": str(out),
        "data": described,
        "kept_epoch": result.kept_epoch,
        "steps": len(result.steps),
        "final_loss": result.steps[-1].loss,
        "logit_scale": result.steps[-1].scale,
        "before": validation.get(0),
        "after": validation.get(result.kept_epoch),
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
