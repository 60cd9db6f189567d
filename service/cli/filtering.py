"""`--filter-below` and its companions: badly fitting captions left out before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from service.cli.output import interactive

if TYPE_CHECKING:
    from models.data import Source
    from models.encoder import Encoder
    from models.quality.filtering import FilterReport

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
    """`--filter-below`, `--filter-model`, `--score-cache`: arguments `filter_below`, ..."""
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
        InputError, SourceError: see `models.quality.filtering.filter_sources`.
    """
    from tqdm import tqdm

    from models.quality.filtering import filter_sources
    from models.quality.memory import ScoreMemory

    counts = [source.count() for source in sources]
    total = None if None in counts else sum(count or 0 for count in counts)
    memory = ScoreMemory(encoder.fingerprint, cache)
    with tqdm(total=total, unit="picture", desc="scores", disable=not interactive()) as bar:
        return filter_sources(sources, encoder, floor, memory, on_picture=bar.update)
