"""What every command shares: JSON on stdout, progress on stderr, the options all of them take."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from models.encoders.base.backends import BACKENDS, prefer_backend

F = TypeVar("F", bound=Callable[..., Any])


def emit_json(value: Any) -> None:
    """Print one JSON document to stdout. Results go to stdout, everything else to stderr."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))


def note(line: str) -> None:
    """Print one line for people to stderr."""
    click.echo(line, err=True)


def interactive() -> bool:
    """Whether a person is watching stderr; progress bars are drawn only then."""
    return sys.stderr.isatty()


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(
        function
    )


_MODEL_HELP = (
    "Encoder pair: starter, NAME/TAG, hf-hub:ORG/NAME, local-dir:PATH or a .safetensors "
    "checkpoint. "
)


def model_options(function: F) -> F:
    """`--model`, `--device`, `--precision`, `--threads`: the arguments of `load_encoder`."""
    option = click.option(
        "--model",
        help=f"{_MODEL_HELP}[default: the one the index was built with; without an index "
        "$DIPTYCH_MODEL, or starter]",
    )
    return option(device_options(function))


def models_options(function: F) -> F:
    """The same with a repeatable `--model`, whose values arrive as `models`."""
    option = click.option(
        "--model",
        "models",
        multiple=True,
        help=f"{_MODEL_HELP}Repeat to compare several. [default: $DIPTYCH_MODEL, or starter]",
    )
    return option(device_options(function))


def device_options(function: F) -> F:
    """`--device`, `--precision`, `--threads`.

    `--backend` is not handed on: it is set for the process.
    """
    options = [
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps."),
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
            default="auto",
            show_default=True,
            help="Arithmetic of the towers; auto takes the fastest that keeps the ranking.",
        ),
        click.option(
            "--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores]."
        ),
        click.option(
            "--backend",
            type=click.Choice(BACKENDS),
            default="auto",
            show_default=True,
            expose_value=False,
            callback=lambda _context, _option, name: prefer_backend(name),
            help="What runs the image tower; auto takes ONNX Runtime where it is installed (the "
            "extra onnx) and faster.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function
