"""`diptych train`: fit the starter's heads to captioned pictures of your own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.exits import OK, PARTIAL
from service.cli.output import emit_json, interactive, json_option, model_options, note

if TYPE_CHECKING:
    from models.starter.training.loop import Step, TrainResult
    from models.starter.training.pairs import DataReport


@click.command(short_help="Train an encoder pair on captioned pictures.")
@click.option(
    "--data",
    "data",
    multiple=True,
    metavar="SOURCE",
    help="Captioned pictures: folder, webdataset shards or JSONL manifest; may be repeated.",
)
@click.option(
    "--extra-data",
    "extra_data",
    multiple=True,
    metavar="SOURCE",
    help="Captioned pictures of another kind, mixed in for breadth; may be repeated.",
)
@click.option(
    "--class-data",
    "class_data",
    multiple=True,
    nargs=2,
    metavar="SOURCE FIELD",
    help="Pictures of single things and the field with their names; may be repeated.",
)
@click.option(
    "--val", "val", multiple=True, metavar="SOURCE", help="Captioned pictures to measure."
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for the trained pair; load it with --model local-dir:DIR.",
)
@click.option("--text-field", help="Where the captions are, e.g. captions.en.")
@click.option("--epochs", type=click.IntRange(min=1), default=30, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=2), default=2048, show_default=True)
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=1e-3, show_default=True)
@click.option("--weight-decay", type=click.FloatRange(min=0), default=0.1, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--extra-share",
    type=click.FloatRange(min=0, max=0.4),
    default=0.15,
    show_default=True,
    help="Share of each batch that comes from --extra-data.",
)
@click.option(
    "--class-share",
    type=click.FloatRange(min=0, max=0.4),
    default=0.1,
    show_default=True,
    help="Share of each batch that comes from --class-data.",
)
@click.option(
    "--concept-share",
    type=click.FloatRange(min=0, max=0.4),
    default=0.2,
    show_default=True,
    help="Share of each batch that rehearses the names of ImageNet's 1,000 classes.",
)
@click.option(
    "--init",
    type=click.Choice(["starter", "fresh"]),
    default="starter",
    show_default=True,
    help="Continue from the heads that come with Diptych, or start over.",
)
@click.option(
    "--keep",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="The last epoch, or the best on --val.",
)
@click.option(
    "--holdout",
    type=click.IntRange(min=2),
    metavar="N",
    help="Leave one record in N of every --class-data source out, to evaluate on.",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the towers' features here, so that another run starts at once.",
)
@model_options
@json_option
def train(
    data: tuple[str, ...],
    extra_data: tuple[str, ...],
    class_data: tuple[tuple[str, str], ...],
    val: tuple[str, ...],
    out: Path,
    text_field: str | None,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    seed: int,
    extra_share: float,
    class_share: float,
    concept_share: float,
    init: str,
    keep: str,
    holdout: int | None,
    cache: Path | None,
    model: str | None,
    device: str,
    precision: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Fit the starter's heads to captioned pictures; its towers stay frozen.

    \b
    diptych train --data ~/Pictures/captioned --out my-pair
    diptych train --data 'train-{00000..00009}.tar' --val val.tar --out my-pair --epochs 10
    diptych index build ~/Pictures --out photos.index --model local-dir:my-pair

    Writes the pair, its config, metrics.jsonl and a curve into --out. Runs with the same seed,
    data and --threads on one machine give the same heads, bit for bit.
    """
    from models.data import open_source
    from models.devices import resolve_device, set_threads
    from models.environment import default_model
    from models.starter.encoder import STARTER_DIRECTORY, load_text_tower
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

    if (model or default_model()) != "starter":
        raise click.UsageError(
            f"--model {model or default_model()}: this version trains heads over the starter's "
            "frozen towers only (--model starter); fine-tuning of open_clip models is planned"
        )
    if not data and not extra_data and not class_data:
        raise click.UsageError("nothing to train on: name at least one --data or --class-data")
    if keep == "best" and not val:
        raise click.UsageError("--keep best needs --val to tell which epoch is best")
    config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        extra_share=extra_share,
        class_share=class_share,
        concept_share=concept_share,
        init="fresh" if init == "fresh" else "starter",
        keep="best" if keep == "best" else "last",
        seed=seed,
        holdout=holdout,
    )
    captioned = [open_source(spec, text_field=text_field) for spec in data]
    extra = [open_source(spec, text_field=text_field) for spec in extra_data]
    classes = [open_source(spec, text_field=field) for spec, field in class_data]
    measured = [open_source(spec, text_field=text_field) for spec in val]
    set_threads(threads)
    where = resolve_device(device)
    start = STARTER_DIRECTORY if config.init == "starter" else None
    with _feature_bar() as on_features:
        maker = FeatureMaker(
            ImageTower(device=where, dtype=starter_dtype(precision, where)),
            TextTower() if start is None else load_text_tower(start),
            cache=cache,
            on_progress=on_features,
        )
        pairs, report = gather(captioned, maker, extra=extra, classes=classes, holdout=holdout)
        validation, val_report = gather(measured, maker) if measured else (None, None)
        rehearsal = Rehearsal(pairs.image_NF, maker) if concept_share else None
        if start is None:
            heads = fresh_heads(config, maker.text_tower)
        else:
            heads = load_heads(start)[0].requires_grad_(True)
    for line in report_lines(report):
        note(line)
    with _step_bar() as on_step:
        result = run(
            heads, pairs, config, validation=validation, rehearsal=rehearsal, on_step=on_step
        )
    described: dict[str, Any] = {"train": report.to_dict()}
    if val_report is not None:
        described["validation"] = val_report.to_dict()
    drawn = save_run(result, config, out, data=described, started_from=start)
    if not drawn:
        note("no curve.png: matplotlib is not installed (pip install matplotlib)")
    rejects = [*report.rejects, *(val_report.rejects if val_report else [])]
    if as_json:
        emit_json(_summary(result, out, described))
    else:
        click.echo("\n".join([*result_lines(result), f"saved to {out}"]))
    return PARTIAL if rejects else OK


def report_lines(report: DataReport) -> list[str]:
    """What was found, and what was not usable, before the first step."""
    captions = ", ".join(f"{count} {name}" for name, count in sorted(report.captions.items()))
    lines = [f"data: {report.pictures} pictures; captions: {captions}"]
    if report.classes:
        lines.append(f"      {report.classes} classes by name")
    if report.without_caption:
        lines.append(
            f"      {report.without_caption} records passed over: no picture or no caption"
        )
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
    lines = [f"{'':24}{'before':>22}{'after':>22}   (epoch {result.kept_epoch})"]
    lines.append(f"{'':24}{'R@1   R@5  R@10':>22}{'R@1   R@5  R@10':>22}")
    for language in sorted(after):
        for way, prefix in (("text -> image", "image"), ("image -> text", "text")):
            cells = [_cell(side[language], prefix) for side in (before, after)]
            lines.append(f"{language + ' ' + way:24}{cells[0]:>22}{cells[1]:>22}")
    return lines


def _cell(metrics: dict[str, float], prefix: str) -> str:
    return " ".join(f"{100 * metrics[f'{prefix}_retrieval_recall@{k}']:5.1f}" for k in (1, 5, 10))


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


@contextmanager
def _step_bar() -> Iterator[Callable[[Step], None]]:
    from tqdm import tqdm

    with tqdm(disable=not interactive(), desc="training", unit="step") as bar:

        def show(step: Step) -> None:
            bar.total = step.steps
            bar.set_postfix(
                loss=f"{step.loss:.3f}",
                scale=f"{step.scale:.1f}",
                samples_per_s=f"{step.pairs_per_second:.0f}",
                refresh=False,
            )
            bar.update()

        yield show
