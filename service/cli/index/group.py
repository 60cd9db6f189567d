"""`diptych index`: the group of all that is done with an index, and `info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from service.cli.index.build import add, build
from service.cli.index.check import repair, verify
from service.cli.index.duplicates import duplicates
from service.cli.index.edit import delete, history, purge, rollback
from service.cli.index.optimize import optimize
from service.cli.index.transfer import export, import_
from service.cli.output import emit_json, json_option


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


@index.command(
    epilog="\b\nExamples:\n"
    "  diptych index info --index photos.index --json\n"
    "  diptych index info --index photos.index --plot curve.png"
)
@click.option("--index", "path", required=True, type=click.Path(path_type=Path), help="The index.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw recall against speed, as `optimize` measured them, into a PNG.",
)
@json_option
def info(path: Path, plot: Path | None, as_json: bool) -> None:
    """Describe an index: model, counts, size, sources."""
    from indexer.search.snapshot import open_snapshot

    with open_snapshot(path, fingerprint=None) as snapshot:
        about = snapshot.info()
    if plot is not None:
        from service.cli.plots.curve_plot import draw_curves

        draw_curves(about.structures, plot)
    if as_json:
        remedies = [
            {"problem": problem, "remedy": remedy}
            for problem, remedy in _remedies(about.degraded, about.wordless, path)
        ]
        emit_json({"index": str(path), **about.to_dict(), "attention": remedies})
        return
    lines = {
        "index": f"{path} ({about.uuid})",
        "version": f"{about.version}, {about.created}, by {about.writer}",
        "model": f"{about.model}, {about.dim} dimensions (fingerprint {about.fingerprint[:12]})",
        "items": f"{about.images:,} images, {about.texts:,} texts",
        "segments": f"{about.segments}, {about.tombstones:,} rows superseded",
        "search": "; ".join(_structure(one) for one in about.structures) or "exact",
        "size": _bytes(about.bytes),
        "fields": ", ".join(f"{field['name']} ({field['type']})" for field in about.fields),
        "relevance": _relevance(about.relevance),
    }
    for name, value in lines.items():
        click.echo(f"{name:<9} {value}")
    for source in about.sources:
        click.echo(f"{'source':<9} {source['name']} ({source['kind']})")
    for problem, remedy in _remedies(about.degraded, about.wordless, path):
        click.echo(f"{'attention':<9} {problem}: {remedy}")


for command in (build, add, delete, optimize, rollback, purge, history):
    index.add_command(command)
index.add_command(verify)
index.add_command(repair)
index.add_command(duplicates)
index.add_command(export)
index.add_command(import_)


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


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
