"""A click command whose `--help` lists its options under headings. Knows no option."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class GroupedCommand(click.Command):
    """A command that shows its options under the headings they were given."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                headings.setdefault(getattr(parameter, "group", "Other"), []).append(record)
        for heading, records in headings.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def group(heading: str, options: Sequence[Callable[[Any], Any]]) -> Callable[[F], F]:
    """Decorate with options, all under one heading, in the order given."""

    def decorate(function: F) -> F:
        marked = _marks(function)
        known = {id(parameter) for parameter in marked}
        for option in reversed(options):
            function = option(function)
        for parameter in _marks(function):
            if id(parameter) not in known:
                parameter.group = heading  # type: ignore[attr-defined]
        return function

    return decorate


def _marks(function: Any) -> list[click.Parameter]:
    """Parameters click has noted on a function so far."""
    return list(getattr(function, "__click_params__", ()))
