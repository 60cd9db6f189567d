"""`--filter-below` and its companions: badly fitting captions left out before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from service.cli.options import FOLDER, option
from service.cli.output import count_all, note, progress_bar

if TYPE_CHECKING:
    from models.encoder import Encoder
    from models.evaluation.captions.filter import FilterReport
    from models.sources import Source
    from models.training.config import TrainConfig
    from models.training.starter import StarterPair


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


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterOptions:
    """Which captions are left out, and by whose judgement."""

    filter_below: float | Literal["auto"] | None = option(
        "--filter-below",
        type=FloorType(),
        help="Leave out captions whose cosine with their picture is below S; auto finds, for "
        "each language, the S that makes the fewest mistakes (see `diptych data report`).",
    )
    filter_model: str | None = option(
        "--filter-model",
        help="The pair that scores captions. [default: the one that is trained, as it starts]",
    )
    filter_folds: bool = option(
        "--filter-folds",
        is_flag=True,
        help="Judge each half of the data by a pair trained on the other half, which finds far "
        "more than judging by one that has seen it all. For the starter.",
    )
    score_cache: Path | None = option(
        "--score-cache", type=FOLDER, help="Remember scores in this folder, by content and model."
    )


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
    from models.evaluation.captions.alignment import ScoreMemory
    from models.evaluation.captions.filter import filter_sources

    memory = ScoreMemory(encoder.fingerprint, cache)
    with progress_bar("scores", "picture", count_all(sources)) as bar:
        return filter_sources(sources, encoder, floor, memory, on_picture=bar.by)


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


def judged_in_halves(
    pair: StarterPair,
    main: Sequence[Source],
    extra: Sequence[Source],
    config: TrainConfig,
    floor: float | Literal["auto"],
) -> tuple[list[Source], list[Source], dict[str, Any]]:
    """Both without what two judges, each trained on one half, find below the floor in the other.

    Returns:
        (main sources, extra ones, what was done, JSON-compatible).
    """
    from models.training.starter import halves, judges

    main_parts, extra_parts = halves(main), halves(extra)
    parts = [[*one, *other] for one, other in zip(main_parts, extra_parts, strict=True)]
    note("training two judges, each on one half")
    kept, described, lines = filtered_in_halves(parts, judges(parts, pair, config), floor)
    for line in lines:
        note(line)
    per_part = len(main) + len(extra)
    mains = [kept[at] for at in range(len(kept)) if at % per_part < len(main)]
    others = [kept[at] for at in range(len(kept)) if at % per_part >= len(main)]
    return mains, others, described


def refuse_folds(filtering: FilterOptions, model: str, tune: str) -> None:
    """Where `--filter-folds` has nothing to do or cannot be done."""
    from models.encoders.registry import is_starter

    if filtering.filter_below is None:
        raise click.UsageError("--filter-folds needs --filter-below S, or auto")
    if filtering.filter_model is not None:
        raise click.UsageError("--filter-folds trains its own judges; leave out --filter-model")
    if not is_starter(model) or tune != "full":
        raise click.UsageError(
            "--filter-folds trains two judges, which takes minutes for the starter's heads alone; "
            "for other pairs filter with --filter-model"
        )
    if filtering.score_cache is not None:
        raise click.UsageError("--score-cache remembers a lasting pair's scores, not these judges'")
