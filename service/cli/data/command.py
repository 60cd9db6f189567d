"""`diptych data`: a data set looked over before anything is trained on it."""

from __future__ import annotations

from pathlib import Path

import click

from service.cli.output import json_option, model_options
from service.cli.sources import SOURCES, Reading, reading_options


@click.group(short_help="Look a data set over before training on it.")
def data() -> None:
    """Look a data set over before training on it."""


@data.command(
    epilog="\b\nExamples:\n"
    "  diptych data report my-pictures/\n"
    "  diptych data report 'shards/{00000..00009}.tar' --text-field captions.en --no-scores\n"
    "  diptych data report train.jsonl --against val.jsonl --worst 50 --out scores.jsonl\n"
    "  diptych data report web.parquet --model local-dir:my-pair --cache scores --plot scores.png\n"
    "\n" + SOURCES
)
@click.argument("specs", metavar="SOURCE...", nargs=-1, required=True)
@reading_options
@click.option(
    "--against",
    multiple=True,
    metavar="SOURCE",
    help="Another set, such as the one to validate on: tell which pictures are in both.",
)
@click.option("--no-scores", is_flag=True, help="Only count: no picture goes through the model.")
@click.option(
    "--worst",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="List so many of the captions that fit their pictures least.",
)
@click.option(
    "--duplicates-at",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    help="Cosine from which two pictures are near-duplicates. [default: 0.95]",
)
@click.option(
    "--no-duplicates", is_flag=True, help="Compare no pictures: every pair of them takes a while."
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every caption's score here, one JSON object a line.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the scores' histograms, PNG.",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Remember scores in this folder; `diptych train --filter-below` finds them there.",
)
@model_options
@json_option
def report(
    specs: tuple[str, ...],
    reading: Reading,
    against: tuple[str, ...],
    no_scores: bool,
    worst: int,
    duplicates_at: float | None,
    no_duplicates: bool,
    out: Path | None,
    plot: Path | None,
    cache: Path | None,
    model: str | None,
    device: str,
    precision: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Tell what a set of captioned pictures holds, and how well the captions fit.

    Counted are pictures and captions by language, copies, caption lengths and what the model's
    context cuts off, damaged pictures, records that lack one half. Then each caption is scored by
    its cosine to its picture and compared with the scores of captions beside other pictures, which
    tells about how many are wrong. A set nothing can be learned from is refused with exit code 2.

    Score with a model that was not trained on these very captions: what it learned by heart fits.
    """
    if no_scores and (out or plot or cache or duplicates_at is not None):
        raise click.UsageError("--out, --plot, --cache and --duplicates-at need the scores")
    if no_duplicates and duplicates_at is not None:
        raise click.UsageError("give either --duplicates-at or --no-duplicates")
    if plot is not None:
        from service.cli.plots.reliability_plot import require_matplotlib

        require_matplotlib()
    from service.cli.data.report import Wanted, run

    wanted = Wanted(
        scores=not no_scores,
        worst=worst,
        duplicates_at=None if no_duplicates or no_scores else (duplicates_at or 0.95),
        out=out,
        plot=plot,
        cache=cache,
        as_json=as_json,
    )
    return run(
        specs,
        reading,
        against,
        wanted,
        model=model,
        device=device,
        precision=precision,
        threads=threads,
    )
