"""`diptych evaluate`: measure encoder pairs on your pictures, as CLIP_benchmark reports it."""

from __future__ import annotations

from pathlib import Path

import click

from service.cli.output import json_option, models_options
from service.cli.sources import SOURCES, Reading, reading_options


@click.command(
    short_help="Measure retrieval, zero-shot or linear-probe accuracy.",
    epilog="\b\nExamples:\n"
    "  diptych evaluate --task retrieval --data 'val-{00000..00001}.tar' "
    "--text-field captions.en\n"
    "  diptych evaluate --task retrieval --data val.tar --model starter --model local-dir:mine\n"
    "  diptych evaluate --task zero-shot --data shelf.tar --label-field label "
    "--plot reliability.png\n"
    '  diptych evaluate --task zero-shot --data tiny.tar --label-field names.0 --template "a {c}"\n'
    "  diptych evaluate --task linear-probe --train train.tar --data test.tar "
    "--label-field label\n\n" + SOURCES,
)
@click.option(
    "--task",
    type=click.Choice(["retrieval", "zero-shot", "linear-probe"]),
    required=True,
    help="Recall@1/5/10 both ways; top-1, top-5, mean per-class recall and calibration of the "
    "labels put into prompts; the same of a linear classifier trained on --train.",
)
@click.option(
    "--data",
    "data",
    multiple=True,
    required=True,
    metavar="SOURCE",
    help="What to measure on; repeat for several sets, join parts of one by ::.",
)
@click.option(
    "--train",
    "train",
    multiple=True,
    metavar="SOURCE",
    help="Of a linear probe: labelled pictures to train on, with the fields of --data; repeatable.",
)
@click.option(
    "--shots",
    type=click.IntRange(min=1),
    metavar="K",
    help="Of a linear probe: train on at most K pictures a class.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of drawing the --shots.",
)
@reading_options
@click.option(
    "--classnames",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Names of the classes, one a line: NAME, or LABEL, a tab, NAME.",
)
@click.option(
    "--template",
    "templates",
    multiple=True,
    help="Prompt with {c} for the class; may be repeated. [default: the default set]",
)
@click.option(
    "--template-set",
    "template_sets",
    multiple=True,
    metavar="NAME",
    help="A named list of prompts: default, imagenet, food, pets, zh, ...; repeatable.",
)
@click.option(
    "--head",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Judge by what `diptych train --tune linear|adapter|prompts` left, not by prompts.",
)
@click.option(
    "--holdout",
    type=click.IntRange(min=2),
    metavar="N",
    help="Measure only the one record in N that `diptych train --holdout N` leaves out.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Of zero-shot: draw how sure the pair is against how often it is right, PNG.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the JSON documents here as well.",
)
@models_options
@json_option
def evaluate(
    task: str,
    data: tuple[str, ...],
    train: tuple[str, ...],
    shots: int | None,
    seed: int,
    reading: Reading,
    classnames: Path | None,
    templates: tuple[str, ...],
    template_sets: tuple[str, ...],
    head: Path | None,
    holdout: int | None,
    plot: Path | None,
    out: Path | None,
    models: tuple[str, ...],
    device: str,
    precision: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Measure encoder pairs on your own pictures.

    Retrieval is measured for each language of the captions. `image_retrieval_recall@k` is text to
    image, `text_retrieval_recall@k` image to text. With --json, CLIP_benchmark's shape: one
    document, or a list of them when there are several sets, languages or models.
    """
    if (task == "linear-probe") != bool(train):
        raise click.UsageError("--train SOURCE and --task linear-probe go together")
    if shots is not None and task != "linear-probe":
        raise click.UsageError("--shots belongs to --task linear-probe")
    if task != "zero-shot" and (classnames or templates or template_sets or plot):
        raise click.UsageError(
            "--classnames, --template, --template-set and --plot belong to --task zero-shot"
        )
    if head is not None:
        if task != "zero-shot" or classnames or templates or template_sets:
            raise click.UsageError("--head goes with --task zero-shot, and brings its own labels")
        if len(set(models)) > 1:
            raise click.UsageError("a --head belongs to one --model")
    if plot is not None:
        from service.cli.plots.reliability_plot import require_matplotlib

        require_matplotlib()
    from models.labels.prompts import resolve_templates
    from service.cli.evaluate.run import Run, read_class_names, run

    return run(
        Run(
            task=task,
            data=data,
            train=train,
            shots=shots,
            seed=seed,
            reading=reading,
            class_names=read_class_names(classnames) if classnames else None,
            head=head,
            templates=resolve_templates([*template_sets, *templates]),
            holdout=holdout,
            plot=plot,
            out=out,
            as_json=as_json,
        ),
        models,
        device=device,
        precision=precision,
        threads=threads,
    )
