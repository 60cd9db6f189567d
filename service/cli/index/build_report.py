"""What `index build` and `index add` show: a line while they run, a summary and a plot at the end.

    indexing:  41%|###   | 4100/10000 [02:11<03:08, 31.3rec/s, 31 img/s, embed-bound, 3 rejected]

On a terminal the line is redrawn; elsewhere, in a log, one is written every minute. The figures
are the builder's own (`indexer.ingest.progress`); nothing is measured here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from service.cli.output import duration, interactive, note, progress_bar

if TYPE_CHECKING:
    from indexer.ingest.build import BuildProgress, BuildReport

_LOG_EVERY_S: Final = 60.0
_PLOT_FROM_S: Final = 60.0


@contextmanager
def progress_line() -> Iterator[Callable[[BuildProgress], None]]:
    """What to call with every progress of a build."""
    if not interactive():
        yield _Logged()
        return
    with progress_bar("indexing", "rec") as bar:

        def show(progress: BuildProgress) -> None:
            what = "committing" if progress.stage == "committing" else "indexing"
            bar.beside(_figures(progress), what)
            bar.to(progress.done, progress.total)

        yield show


class _Logged:
    """A line a minute, for whoever reads the log of a long build."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = self._last = clock()

    def __call__(self, progress: BuildProgress) -> None:
        now = self._clock()
        if now - self._last < _LOG_EVERY_S:
            return
        self._last = now
        of = "" if progress.total is None else f" of {progress.total:,}"
        left = remaining(progress, now - self._started)
        eta = "" if left is None else f", {duration(left)} left"
        note(f"indexing: {progress.done:,}{of} records, {_figures(progress)}{eta}")


def remaining(progress: BuildProgress, elapsed: float) -> float | None:
    """Seconds left at the pace so far; None where that cannot be told."""
    if progress.total is None or not progress.done:
        return None
    return max(progress.total - progress.done, 0) * elapsed / progress.done


def _figures(progress: BuildProgress) -> str:
    parts = [f"{progress.images_per_s:.1f} img/s", f"{progress.bottleneck}-bound"]
    if progress.rejected:
        parts.append(f"{progress.rejected} rejected")
    return ", ".join(parts)


def print_report(report: BuildReport, out: Path) -> None:
    """The summary for people."""
    click.echo(
        f"{out}: {report.images:,} images and {report.texts:,} texts in version {report.version}"
    )
    counts = [
        f"{report.added:,} added",
        f"{report.updated:,} updated",
        f"{report.unchanged:,} unchanged",
        *([f"{report.moved:,} moved"] if report.moved else []),
        *([f"{report.removed:,} removed"] if report.removed else []),
        f"{report.rejected:,} rejected",
    ]
    done = report.performance
    embedded = done["images_embedded"]
    speed = f", {done['images_per_s']:.1f} img/s" if embedded else ""
    click.echo(f"{', '.join(counts)} in {report.seconds:.1f} s{speed}")
    if embedded:
        shares = ", ".join(f"{name} {one['share']:.0%}" for name, one in done["stages"].items())
        click.echo(f"time went to: {shares} (bottleneck: {done['bottleneck']})")
    if report.rejects_file is not None:
        click.echo(f"rejects: {report.rejects_file}")


def draw_throughput(report: BuildReport, out: Path, plot: Path | None) -> Path | None:
    """Draw it where asked, or beside the index of a long build if that can be done.

    Raises:
        StoreError: the file that was asked for cannot be written.
    """
    from importlib.util import find_spec

    from models.errors import DiptychError

    if plot is None and (
        report.performance["timeline"][-1][0] < _PLOT_FROM_S or find_spec("matplotlib") is None
    ):
        return None
    from service.cli.plots import draw_build

    target = plot or out.absolute().with_name(out.absolute().name + ".build.png")
    try:
        draw_build(report.performance, target)
    except DiptychError as error:
        if plot is not None:
            raise
        note(f"no plot: {error.message}")
        return None
    return target
