"""Options declared as fields of a frozen dataclass; every command is given one such object.

A field says its flag, help, type and default. From that one place come what `--help` shows, what
the command receives, and, through `declared`, whatever else must not drift from them (a table in
the documentation, the settings saved beside a result):

    @dataclass(frozen=True, slots=True, kw_only=True)
    class VerifyOptions:
        index: Path = option("--index", required=True, type=PATH, help="The index.")
        deep: bool = option("--deep", is_flag=True, help="Every kept version.")
        pair: ModelOptions = group(ModelOptions)
        as_json: bool = json_option()

    @click.command()
    @takes(VerifyOptions)
    def verify(options: VerifyOptions) -> int:
        encoder = options.pair.load()

`--help` lists options in the order of the fields, a group's where the group stands. The class is
an ordinary dataclass: it can be made without a command line, with the same defaults.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from models.encoders.base.backends import BACKENDS, prefer_backend
from models.environment import default_model

if TYPE_CHECKING:
    from indexer.store.sweep import Keeping
    from models.encoder import Encoder

T = TypeVar("T")
R = TypeVar("R")

_PARAMETER = "diptych.parameter"
_GROUP = "diptych.group"
_UNSAID: Any = object()

PATH = click.Path(path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
OLD_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class Declaration:
    """One option or argument of a command.

    Attributes:
        name: of the field that holds its value.
        flags: as typed, such as `-k` or `--index`; empty for an argument.
        settings: what click is told of it: type, help, default, ...
        heading: what `--help` lists it under; None for no heading of its own.
    """

    name: str
    flags: tuple[str, ...]
    settings: dict[str, Any]
    heading: str | None = None

    def in_(self, environment: str) -> Declaration:
        """The same, also settable by a variable named after the flag."""
        flag = next(flag for flag in self.flags if flag.startswith("--"))
        variable = f"{environment}_{flag[2:].replace('-', '_').upper()}"
        settings = {"cls": EnvironmentOption, "envvar": variable, "show_envvar": True}
        return dataclasses.replace(self, settings=settings | self.settings)

    def add_to(self, function: Any) -> Any:
        """The function with this parameter noted on it, as click's own decorators do."""
        if not self.flags:
            return click.argument(self.name, **self.settings)(function)
        settings = {"cls": HeadedOption, "heading": self.heading, **self.settings}
        return click.option(*self.flags, self.name, **settings)(function)


def option(*flags: str, **settings: Any) -> Any:
    """A field filled by an option; `settings` are those of `click.option`.

    Without a default the field is False for a flag, () where several values may be given, None
    where nothing need be.
    """
    return _field(Declaration("", flags, settings))


def argument(**settings: Any) -> Any:
    """A field filled by a positional argument; `settings` are those of `click.argument`."""
    return _field(Declaration("", (), {"required": False, **settings}))


def group(cls: type[T], heading: str | None = None) -> T:
    """A field that is another class of options, all of them under `heading` where it is given."""
    made: T = dataclasses.field(default_factory=cls, metadata={_GROUP: (cls, heading)})
    return made


def index_option(help: str = "The index.", **settings: Any) -> Any:
    """`--index`, the directory of an index."""
    return option("--index", required=True, type=PATH, help=help, **settings)


def json_option() -> Any:
    return option("--json", is_flag=True, help="Print the result as JSON.")


def declared(cls: type[Any], heading: str | None = None) -> Iterator[Declaration]:
    """The options and arguments of a class, those of its groups among them, in order."""
    for one in dataclasses.fields(cls):
        if _GROUP in one.metadata:
            inner, own = one.metadata[_GROUP]
            yield from declared(inner, own or heading)
        else:
            found: Declaration = one.metadata[_PARAMETER]
            yield dataclasses.replace(found, name=one.name, heading=heading)


def takes(
    cls: type[T], *, environment: str | None = None, but: Sequence[str] = ()
) -> Callable[[Callable[[T], R]], Callable[..., R]]:
    """Decorate a command's function: its options are the class's, its one argument an instance.

    Args:
        environment: what variables that set an option begin with; `DIPTYCH` makes `--log-format`
            readable as `DIPTYCH_LOG_FORMAT`. None for no variables.
        but: fields that have none.
    """
    given = [
        one if environment is None or one.name in but or not one.flags else one.in_(environment)
        for one in declared(cls)
    ]
    assert len({one.name for one in given}) == len(given), "click knows a value by its name"

    def decorate(function: Callable[[T], R]) -> Callable[..., R]:
        @functools.wraps(function)
        def command(**values: Any) -> R:
            return function(_filled(cls, values))

        for one in reversed(given):
            one.add_to(command)
        return command

    return decorate


class FiniteFloat(click.types.FloatParamType):
    """A number: what is none, or without end, is refused like a word."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class FiniteRange(click.FloatRange, FiniteFloat):
    """Both in one; NaN lies in every range of click's own."""


_MOST_WHOLE = 2**63 - 1
"""No size, count or seed is larger, and beyond it arithmetic fails."""


def _finite(kind: Any) -> Any:
    """The type of an option that takes no number without end."""
    if kind in (float, click.FLOAT):
        return FiniteFloat()
    if type(kind) is click.FloatRange:
        return FiniteRange(kind.min, kind.max, kind.min_open, kind.max_open, kind.clamp)
    return WholeRange(kind.min) if type(kind) is click.IntRange and kind.max is None else kind


class WholeRange(click.IntRange):
    """A whole number that arithmetic can hold."""

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        number: int = super().convert(value, param, ctx)
        if abs(number) > _MOST_WHOLE:
            self.fail(f"{value} is too large.", param, ctx)
        return number


_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?)(?:i?B)?", re.IGNORECASE)


class ByteSize(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.4
    """`4G`, `512MiB`, `1000000`: powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value.strip())
        size = 0.0 if match is None else float(match[1])
        if match is None or size == 0:
            self.fail(f"{value!r} is not a size; write 4G or 512M", param, ctx)
        size *= 1024 ** " KMGT".index(match[2].upper() or " ")
        if size > _MOST_WHOLE:
            self.fail(f"{value} is too large.", param, ctx)
        return int(size)


def _field(declaration: Declaration) -> Any:
    settings = declaration.settings
    if "type" in settings:
        settings["type"] = _finite(settings["type"])
    default = settings.get("default", _UNSAID)
    if default is _UNSAID and not settings.get("required"):
        many = settings.get("multiple") or settings.get("nargs") == -1
        default = () if many else (False if settings.get("is_flag") else None)
    metadata = {_PARAMETER: declaration}
    if default is _UNSAID:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _filled(cls: type[T], values: dict[str, Any]) -> T:
    """An instance of the class; what belongs to its groups goes to them."""
    fields: dict[str, Any] = {}
    for one in dataclasses.fields(cls):  # type: ignore[arg-type]  # every T here is a dataclass
        inner = one.metadata.get(_GROUP)
        fields[one.name] = values[one.name] if inner is None else _filled(inner[0], values)
    return cls(**fields)


class HeadedOption(click.Option):
    """An option that knows the heading `--help` lists it under."""

    def __init__(self, *args: Any, heading: str | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.heading = heading


class EnvironmentOption(HeadedOption):
    """An option that a variable may set.

    Kubernetes gives a container `DIPTYCH_PORT=tcp://10.0.0.1:8000` where a Service in its namespace
    is called diptych: such a link is nobody's setting.
    """

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        number = isinstance(self.type, click.types.IntParamType)
        return None if value is not None and number and "://" in value else value


class HeadedCommand(click.Command):
    """A command whose `--help` lists its options under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = getattr(parameter, "heading", None) or "Other"
                headings.setdefault(heading, []).append(record)
        for heading, records in headings.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def _preferred(backend: str) -> str:
    prefer_backend(backend)
    return backend


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineOptions:
    """Where a pair runs, and in what arithmetic."""

    device: str = option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda, mps."
    )
    precision: str = option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        default="auto",
        show_default=True,
        help="Arithmetic of the towers; auto takes the fastest that keeps the ranking.",
    )
    threads: int | None = option(
        "--threads", type=click.IntRange(1, 4_096), help="CPU threads [default: all cores]."
    )
    backend: str = option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="auto",
        show_default=True,
        # for the whole process, so that a pair loaded deep inside a command has it too
        callback=lambda _context, _option, name: _preferred(name),
        help="What runs the image tower; auto takes ONNX Runtime on a CPU, for the pairs "
        "that have a file for it (the starter and what is trained from it).",
    )

    def load(self, model: str) -> Encoder:
        """The encoder pair of this name, on this machine. Raises as `load_encoder`."""
        from models.encoders.registry import load_encoder

        return load_encoder(
            model, device=self.device, precision=self.precision, threads=self.threads
        )


_PAIR = (
    "Encoder pair: starter, NAME/TAG, hf-hub:ORG/NAME, local-dir:PATH or a .safetensors "
    "checkpoint. "
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """One encoder pair, which an index may know better."""

    model: str | None = option(
        "--model",
        help=f"{_PAIR}[default: the one the index was built with; without an index "
        "$DIPTYCH_MODEL, or starter]",
    )
    machine: MachineOptions = group(MachineOptions)

    @property
    def name(self) -> str:
        """What was asked for, or what is taken where nothing else decides."""
        return self.model or default_model()

    def load(self, model: str | None = None) -> Encoder:
        """The pair, or another on the same machine. Raises as `load_encoder`."""
        return self.machine.load(model or self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsOptions:
    """Several encoder pairs to compare."""

    models: tuple[str, ...] = option(
        "--model",
        multiple=True,
        help=f"{_PAIR}Repeat to compare several. [default: $DIPTYCH_MODEL, or starter]",
    )
    machine: MachineOptions = group(MachineOptions)

    @property
    def names(self) -> list[str]:
        """What was asked for, each once."""
        return list(dict.fromkeys(self.models)) or [default_model()]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepingOptions:
    """Which versions of an index a command that commits leaves."""

    keep: int | None = option(
        "--keep",
        metavar="N",
        type=click.IntRange(min=1),
        help="Leave at most N versions for `index rollback`, the current one among them. "
        "[default: 16]",
    )
    keep_days: float | None = option(
        "--keep-days",
        metavar="D",
        type=click.FloatRange(min=0),
        help="Also remove versions older than D days; never the current one.",
    )
    keep_size: int | None = option(
        "--keep-size",
        metavar="SIZE",
        type=ByteSize(),
        help="Also remove versions, the oldest first, while the files that the current one does "
        "not need take more than SIZE, e.g. 2GB.",
    )

    @property
    def asked(self) -> bool:
        return any(one is not None for one in (self.keep, self.keep_days, self.keep_size))

    def value(self) -> Keeping:
        """For the writer."""
        from indexer.store.sweep import KEEP_VERSIONS, KEEPING, Keeping

        if not self.asked:
            return KEEPING
        versions = KEEP_VERSIONS if self.keep is None else self.keep
        return Keeping(versions, self.keep_days, self.keep_size)

    def tell(self, collected: int) -> None:
        """Say what went, to those who asked for it."""
        if self.asked and collected:
            click.echo(f"older versions removed: {collected:,}")
