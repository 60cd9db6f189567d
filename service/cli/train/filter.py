"""`--filter-below` and its companions: badly fitting captions left out before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from service.cli.output import interactive

if TYPE_CHECKING:
    from models.encoder import Encoder
    from models.evaluation.captions.filter import FilterReport
    from models.sources import Source
    from service.cli.train.options import TrainOptions

F = TypeVar("F", bound=Callable[..., Any])


class FloorType(click.ParamType):  # type: ignore[type-arg]  # not generic in older clicks
    """A cosine, or the word `auto`."""

    name = "S|auto"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float | Literal["auto"]:
        if value == "auto":
            return "auto"
        try:
            floor = float(value)
        except ValueError:
            floor = 2.0
        if not -1.0 <= floor <= 1.0:
            self.fail(f"{value!r} is neither a cosine between -1 and 1 nor auto", param, ctx)
        return floor


def filter_options(function: F) -> F:
    """`--filter-below`, `--filter-model`, ...: arguments `filter_below`, `filter_model`, ..."""
    options = [
        click.option(
            "--filter-below",
            type=FloorType(),
            help="Leave out captions whose cosine with their picture is below S; auto finds, for "
            "each language, the S that makes the fewest mistakes (see `diptych data report`).",
        ),
        click.option(
            "--filter-model",
            help="The pair that scores captions. [default: the one that is trained, as it starts]",
        ),
        click.option(
            "--filter-folds",
            is_flag=True,
            help="Judge each half of the data by a pair trained on the other half, which finds far "
            "more than judging by one that has seen it all. For the starter.",
        ),
        click.option(
            "--score-cache",
            type=click.Path(file_okay=False, path_type=Path),
            help="Remember scores in this folder, by content and model.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def filtered(
    sources: Sequence[Source],
    encoder: Encoder,
    floor: float | Literal["auto"],
    *,
    cache: Path | None,
) -> tuple[list[Source], FilterReport]:
    """The sources without the captions below the floor, scored with a bar.

    Raises:
        InputError, SourceError: see `models.evaluation.captions.filter.filter_sources`.
    """
    from tqdm import tqdm

    from models.evaluation.captions.alignment import ScoreMemory
    from models.evaluation.captions.filter import filter_sources

    counts = [source.count() for source in sources]
    total = None if None in counts else sum(count or 0 for count in counts)
    memory = ScoreMemory(encoder.fingerprint, cache)
    with tqdm(total=total, unit="picture", desc="scores", disable=not interactive()) as bar:
        return filter_sources(sources, encoder, floor, memory, on_picture=bar.update)


def filtered_in_halves(
    parts: Sequence[Sequence[Source]],
    encoders: Sequence[Encoder],
    floor: float | Literal["auto"],
) -> tuple[list[Source], dict[str, Any], list[str]]:
    """Each part without what its own judge finds below the floor -> (sources, for JSON, lines).

    Raises:
        InputError, SourceError: see `models.evaluation.captions.filter.filter_sources`.
    """
    kept: list[Source] = []
    reports, lines = [], []
    for number, (part, encoder) in enumerate(zip(parts, encoders, strict=True), 1):
        sources, report = filtered(part, encoder, floor, cache=None)
        kept += sources
        reports.append(report.to_dict())
        lines += [f"half {number}: {line}" for line in report.lines()]
    return kept, {"folds": reports}, lines


def refuse_folds(options: TrainOptions) -> None:
    """Where `--filter-folds` has nothing to do or cannot be done."""
    if options.filter_below is None:
        raise click.UsageError("--filter-folds needs --filter-below S, or auto")
    if options.filter_model is not None:
        raise click.UsageError("--filter-folds trains its own judges; leave out --filter-model")
    if options.model != "starter" or options.tune != "full":
        raise click.UsageError(
            "--filter-folds trains two judges, which takes minutes for the starter's heads alone; "
            "for other pairs filter with --filter-model"
        )
    if options.score_cache is not None:
        raise click.UsageError("--score-cache remembers a lasting pair's scores, not these judges'")
