"""`diptych index`: the group of all that is done with an index, and `info`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from service.cli.index.build import add, build
from service.cli.index.damage import repair, verify
from service.cli.index.duplicates import duplicates
from service.cli.index.edit import delete, history, purge, rollback
from service.cli.index.optimize import optimize
from service.cli.index.transfer import export, import_
from service.cli.options import NEW_FILE, index_option, json_option, option, takes
from service.cli.output import emit_json, size


@click.group()
def index() -> None:
    """Build, change, describe and verify an index of pictures.

    \b
    diptych index build ~/Pictures --out photos.index
    diptych index add more/ --index photos.index
    diptych index delete --index photos.index cats/tom.jpg
    diptych index info --index photos.index
    diptych index verify --index photos.index
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoArguments:
    path: Path = index_option()
    plot: Path | None = option(
        "--plot",
        type=NEW_FILE,
        help="Draw recall against speed, as `optimize` measured them, into a PNG.",
    )
    as_json: bool = json_option()


@index.command(
    epilog="\b\nExamples:\n"
    "  diptych index info --index photos.index --json\n"
    "  diptych index info --index photos.index --plot curve.png"
)
@takes(InfoArguments)
def info(given: InfoArguments) -> None:
    """Describe an index: model, counts, size, sources."""
    from indexer.search.snapshot import open_snapshot

    with open_snapshot(given.path, fingerprint=None) as snapshot:
        about = snapshot.info()
    if given.plot is not None:
        from service.cli.plots import draw_curves

        draw_curves(about.structures, given.plot)
    remedies = _remedies(about.degraded, about.wordless, given.path)
    if given.as_json:
        attention = [{"problem": problem, "remedy": remedy} for problem, remedy in remedies]
        emit_json({"index": str(given.path), **about.to_dict(), "attention": attention})
        return
    lines = {
        "index": f"{given.path} ({about.uuid})",
        "version": f"{about.version}, {about.created}, by {about.writer}",
        "model": f"{about.model}, {about.dim} dimensions (fingerprint {about.fingerprint[:12]})",
        "items": f"{about.images:,} images, {about.texts:,} texts",
        "segments": f"{about.segments}, {about.tombstones:,} rows superseded",
        "search": "; ".join(_structure(one) for one in about.structures) or "exact",
        "size": size(about.bytes),
        "fields": ", ".join(f"{field['name']} ({field['type']})" for field in about.fields),
        "relevance": _relevance(about.relevance),
    }
    for name, value in lines.items():
        click.echo(f"{name:<9} {value}")
    for source in about.sources:
        click.echo(f"{'source':<9} {source['name']} ({source['kind']})")
    for problem, remedy in remedies:
        click.echo(f"{'attention':<9} {problem}: {remedy}")


for command in (
    *(build, add, delete, optimize, rollback, purge, history),
    *(verify, repair, duplicates, export, import_),
):
    index.add_command(command)


def _remedies(degraded: list[str], wordless: int, path: Path) -> list[tuple[str, str]]:
    """What an index lacks, and the command that gives it."""
    found = [
        (f"{damage}; its rows are searched one by one", f"diptych index repair --index {path}")
        for damage in degraded
    ]
    if wordless:
        lack = "segment lacks" if wordless == 1 else "segments lack"
        found.append(
            (f"{wordless} {lack} words for hybrid search", f"diptych index optimize --index {path}")
        )
    return found


def _structure(one: dict[str, Any]) -> str:
    """An ANN structure in a few words."""
    used = one["operating"]
    return (
        f"{one['target']} by {one['recipe']}, recall@10 {used['recall']:.3f}, "
        f"{used['latency_ms']:.2f} ms, {used['bytes_per_vector']:.0f} bytes a vector"
    )


def _relevance(about: dict[str, Any] | None) -> str:
    """What hits are judged against."""
    if about is None:
        return "none kept: hits carry a score only"
    parts = [
        f"{target} by {', '.join(one['kinds']) or 'nothing, too few'}"
        for target, one in about.items()
    ]
    return f"{about['images']['queries']} background queries; {'; '.join(parts)}"
