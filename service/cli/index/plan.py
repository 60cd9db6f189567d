"""What `diptych index build --plan` prints: what there is, and what indexing it will take.

Time and disk are those of really indexing the first pictures into a temporary folder, scaled up:
the machine, the model and the pictures are the ones the build would have.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from service.cli.output import duration, emit_json, note, size

if TYPE_CHECKING:
    from indexer.ingest.options import BuildOptions
    from models.encoder import Encoder
    from models.sources import Source

_SAMPLE: Final = 64
"""Pictures of one source: a second or two of work, two batches."""


def show_plan(
    sources: Sequence[Source],
    load: Callable[[], Encoder],
    options: BuildOptions,
    *,
    as_json: bool,
) -> None:
    """Print counts, sizes, and the estimated time and disk; nothing is left behind.

    Raises:
        SourceError, ModelError: as a build would.
    """
    plans = [source.plan() for source in sources]
    pictures = _sum(plan.pictures for plan in plans)
    seconds, bytes_ = _measure(sources, load, options)
    document: dict[str, Any] = {
        "sources": [
            {"source": source.name, "kind": source.kind, **asdict(plan)}
            for source, plan in zip(sources, plans, strict=True)
        ],
        "pictures": pictures,
        "exact": all(plan.exact for plan in plans),
        "estimated_seconds": _times(seconds, pictures),
        "estimated_bytes": _times(bytes_, pictures),
    }
    if as_json:
        emit_json(document)
        return
    for source, plan in zip(sources, plans, strict=True):
        about = "" if plan.exact else "about "
        click.echo(
            f"{source.name} ({source.kind}): {about}{_count(plan.pictures)} pictures, "
            f"{_count(plan.rows)} rows, {_told(size, plan.source_bytes, 'size')}"
        )
    click.echo(
        f"Estimated: {_told(duration, document['estimated_seconds'], 'time')} and "
        f"{_told(size, document['estimated_bytes'], 'size')} of disk; items that are in the index "
        "already take neither."
    )


def _measure(
    sources: Sequence[Source], load: Callable[[], Encoder], options: BuildOptions
) -> tuple[float | None, float | None]:
    """Seconds and bytes a picture, from indexing the first ones; None where none can be had."""
    from dataclasses import replace

    from indexer.ingest.build import build_index
    from models.sources.records import FirstRows

    # standard input can be read only once, and that is the build's
    usable = [FirstRows(source, _SAMPLE) for source in sources if source.rereadable]
    if not usable:
        return None, None
    encoder = load()
    note(f"Indexing the first {_SAMPLE} pictures of each source to measure ...")
    with tempfile.TemporaryDirectory(prefix="diptych-plan-") as folder:
        out = Path(folder) / "plan.index"
        # a first batch pays for what is set up once; the background is embedded once too
        # in threads, for so few pictures take less time than processes to start
        sample = replace(
            options,
            rejects=None,
            relevance=False,
            mirror=False,
            mirror_all=False,
            max_errors=None,
            workers=0,
        )
        build_index(
            [FirstRows(usable[0].source, 4)], Path(folder) / "warm", encoder, options=sample
        )
        report = build_index(usable, out, encoder, options=sample)
        taken = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if not report.images:
        return None, None
    return report.seconds / report.images, taken / report.images


def _sum(values: Iterator[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _times(each: float | None, count: int | None) -> int | None:
    return None if each is None or count is None else round(each * count)


def _count(value: int | None) -> str:
    return "an unknown number of" if value is None else f"{value:,}"


def _told(words: Callable[[float], str], value: int | None, what: str) -> str:
    return f"an unknown {what}" if value is None else words(value)
