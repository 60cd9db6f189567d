"""What every command says the same way: JSON on stdout, notes and bars on stderr, sizes and times.

The commands call it; it knows none of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from models.sources import Source


def emit_json(value: Any) -> None:
    """Print one JSON document to stdout. Results go to stdout, everything else to stderr."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))


def note(line: str) -> None:
    """Print one line for people to stderr."""
    click.echo(line, err=True)


def interactive() -> bool:
    """Whether a person is watching stderr; progress bars are drawn only then."""
    return sys.stderr.isatty()


@contextmanager
def progress_bar(
    what: str, unit: str, total: int | None = None, *, scaled: bool = False, shown: bool = True
) -> Iterator[Bar]:
    """A bar on stderr, drawn only for people who watch; `scaled` writes 1.2M of the unit.

    Of several processes, one alone is `shown`.
    """
    from tqdm import tqdm

    with tqdm(
        desc=what or None, unit=unit, total=total, unit_scale=scaled, dynamic_ncols=True,
        disable=not (shown and interactive()),
        smoothing=0.1,  # builds speed up and slow down; hours do not
    ) as bar:  # fmt: skip
        yield Bar(bar)


class Bar:
    """Moves a bar, by steps or to a place."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def by(self, count: int = 1, total: int | None = None) -> None:
        """So many more are done."""
        if total is not None:
            self._bar.total = total
        self._bar.update(count)  # nothing where the bar is not drawn

    def to(self, done: int, total: int | None = None) -> None:
        """So many are done in all."""
        self.by(done - self._bar.n, total)

    def beside(self, figures: str, what: str | None = None) -> None:
        """Figures beside the bar, shown when it moves next; and another name for it."""
        if what is not None:
            self._bar.set_description_str(what, refresh=False)
        self._bar.set_postfix_str(figures, refresh=False)

    def stage(self, what: str, done: int, total: int) -> None:
        """As `to`, of a work in stages: a new one begins the bar anew under its own name."""
        if not self._bar.disable and self._bar.desc != f"{what}: ":
            self._bar.reset(total)
            self._bar.set_description(what, refresh=False)
        self.to(done, total)


def count_all(sources: Sequence[Source]) -> int | None:
    """How many records the sources hold together; None where one cannot tell."""
    from models.sources.records import total_count

    return total_count(sources)


def size(count: float) -> str:
    """A number of bytes for people: `3.4 MiB`."""
    from humanize import naturalsize

    return naturalsize(count, binary=True)


def duration(seconds: float) -> str:
    """A time for people: `2 minutes and 5 seconds`; seconds are not told beside hours."""
    from humanize import precisedelta

    finest = "seconds" if seconds < 3600 else "minutes"
    return precisedelta(seconds, minimum_unit=finest, format="%0.0f")
