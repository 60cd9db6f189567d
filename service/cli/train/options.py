"""The options of `diptych train`, by heading; a run's settings are those of `TrainConfig`.

Each setting is declared once, in `models.training.config`: its option, its place in the saved
settings and its line in docs/training.md (`settings_table`) come from there. A setting nobody named
stays None here: what is safe depends on the pair and the amount of data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any, Final

import click

from models.training.config import (
    DEFAULTS,
    KEEPING,
    OPTIMISATION,
    PIXELS,
    STARTER_ALONE,
    Setting,
    settings,
)
from service.cli.options import FOLDER, ModelOptions, group, json_option, option
from service.cli.sources import Reading
from service.cli.train.filter import FilterOptions

SETTINGS: Final = {one.name: one for one in settings()}


def setting(name: str) -> Any:
    """A field that is one of `TrainConfig`'s settings."""
    one = SETTINGS[name]
    told: dict[str, Any] = {"help": one.help}
    if one.metavar:
        told["metavar"] = one.metavar
    if one.type is bool:
        return option(one.flag, is_flag=True, **told)
    if one.choices:
        told["type"] = click.Choice(one.choices)
    elif one.type is int:
        told["type"] = click.IntRange(one.least, int(one.largest))
    elif one.type is float:
        told["type"] = click.FloatRange(one.least, one.largest, one.above, one.below)
    else:
        told["callback"] = lambda _context, _option, value: _share(value)
    if one.default is not None and not one.quiet:
        told |= {"default": one.default, "show_default": True}
    elif one.default is not None:
        told |= {"default": one.default}
    return option(one.flag, **told)


def _settings_under(heading: str) -> type[Any]:
    named = [(one.name, Any, setting(one.name)) for one in settings(heading)]
    return make_dataclass("Settings", named, frozen=True, slots=True, kw_only=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """What is learned from, and what is measured."""

    data: tuple[str, ...] = option(
        "--data",
        multiple=True,
        metavar="SOURCE",
        help="Captioned pictures: folder, shards or manifest (docs/sources.md); repeatable.",
    )
    val: tuple[str, ...] = option(
        "--val",
        multiple=True,
        metavar="SOURCE",
        help="Captioned pictures to measure; repeatable. Without it a tenth or less of --data is "
        "held back where it holds 100 pictures or more; `--val none` holds nothing back.",
    )
    extra_data: tuple[str, ...] = option(
        "--extra-data",
        multiple=True,
        metavar="SOURCE",
        help="Captioned pictures of another kind, mixed in for breadth; repeatable.",
    )
    class_data: tuple[tuple[str, str], ...] = option(
        "--class-data",
        multiple=True,
        nargs=2,
        metavar="SOURCE FIELD",
        help="Pictures of single things and the field with their names; repeatable.",
    )
    extra_share: float = setting("extra_share")
    class_share: float = setting("class_share")
    holdout: int | None = option(
        "--holdout",
        type=click.IntRange(min=2),
        metavar="N",
        help="Leave one record in N of every --class-data source out, to evaluate on.",
    )
    reading: Reading = group(Reading)
    filtering: FilterOptions = group(FilterOptions)

    @property
    def measured(self) -> list[str]:
        """The sources that --val names."""
        return [name for name in self.val if name != "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Where a run leaves what, and how it begins."""

    out: Path = option(
        "--out",
        required=True,
        type=FOLDER,
        help="Directory for the trained pair; load it with --model local-dir:DIR.",
    )
    init: str = option(
        "--init",
        type=click.Choice(["pretrained", "starter", "fresh"]),
        default="pretrained",
        show_default=True,
        help="Continue from the model's weights, or start over with random ones; with `fresh`, "
        "--model may be a bare architecture (ViT-B-32). `starter` is an older word for "
        "`pretrained`.",
    )
    restart: bool = option(
        "--restart", is_flag=True, help="Drop a run that --out holds, and begin anew."
    )
    checkpoint_minutes: float = option(
        "--checkpoint-minutes",
        type=click.FloatRange(min=0),
        default=10.0,
        show_default=True,
        help="Time between checkpoints; each validation writes one too.",
    )
    checkpoint_steps: int | None = option(
        "--checkpoint-steps",
        type=click.IntRange(min=1),
        metavar="N",
        help="A checkpoint every N steps instead.",
    )
    seed: int = setting("seed")

    @property
    def fresh(self) -> bool:
        return self.init == "fresh"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineAndJson:
    """Which pair, where it runs, and how the result is told."""

    pair: ModelOptions = group(ModelOptions)
    as_json: bool = json_option()


OptimisationSettings: Any = _settings_under(OPTIMISATION)
KeepingSettings: Any = _settings_under(KEEPING)
PixelSettings: Any = _settings_under(PIXELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureOptions:
    """What happens to pictures on their way."""

    settings: Any = group(PixelSettings)
    workers: int | None = option(
        "--workers",
        type=click.IntRange(min=1),
        help="Threads that decode pictures. [default: the number of cores, at most 8]",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StarterOptions:
    """What only the starter pair knows."""

    concept_share: float = setting("concept_share")
    cache: Path | None = option(
        "--cache",
        type=FOLDER,
        help="Keep the towers' features here, so that another run starts at once.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What the command line said; None where it said nothing and a default depends."""

    sets: DataOptions = group(DataOptions, "Data")
    run: RunOptions = group(RunOptions, "Run")
    machine: MachineAndJson = group(MachineAndJson, "Model and machine")
    optimisation: Any = group(OptimisationSettings, OPTIMISATION)
    keeping: Any = group(KeepingSettings, KEEPING)
    pictures: PictureOptions = group(PictureOptions, PIXELS)
    starter: StarterOptions = group(StarterOptions, STARTER_ALONE)

    @property
    def model(self) -> str:
        return self.machine.pair.name

    def asked(self) -> dict[str, Any]:
        """The settings of the run by name, as they were asked for."""
        return {name: value for name, value in _values(self) if name in SETTINGS}

    def changed(self) -> Iterator[Setting]:
        """The settings that were asked to be something else than they are by default."""
        asked = self.asked()
        return (one for name, one in SETTINGS.items() if asked[name] not in (one.default, False))


def _values(options: Any) -> Iterator[tuple[str, Any]]:
    for one in fields(options):
        value = getattr(options, one.name)
        if hasattr(value, "__dataclass_fields__"):
            yield from _values(value)
        else:
            yield one.name, value


def settings_table() -> str:
    """The settings with their defaults for each kind of pair, as docs/training.md has them."""
    kinds = list(DEFAULTS)
    lines = [f"| | {' | '.join(kinds)} | |", "|---|" + "---|" * (len(kinds) + 1)]
    for one in SETTINGS.values():
        cells = [_default(one, kind) for kind in kinds]
        # the table has columns for what --help has brackets for
        words = (one.help or "").split(" [default")[0]
        why = f"{one.why[0].upper()}{one.why[1:]}." if one.why else ""
        told = " ".join(filter(None, [words, why]))
        lines.append(" | ".join([f"| `{one.flag}`", *cells, told]) + " |")
    return "\n".join(lines) + "\n"


def _default(one: Setting, kind: str) -> str:
    if one.name in DEFAULTS[kind]:
        return DEFAULTS[kind][one.name].told
    towers_alone = one.needs_towers or one.heading == PIXELS
    if one.heading == STARTER_ALONE if "starter" not in kind else towers_alone:
        return "–"
    if one.type is bool:
        return "off"
    return f"{one.default:g}" if isinstance(one.default, float | int) else one.default or ""


def _share(value: str | None) -> float | str | None:
    if value is None or value == "val":
        return value
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise click.BadParameter("a number from 0 to 1, or val")
    return share
