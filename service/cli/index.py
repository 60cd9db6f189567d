"""`diptych index`: build, describe and verify an index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.exits import OK, PARTIAL
from service.cli.index_check import verify
from service.cli.index_transfer import export, import_
from service.cli.output import emit_json, interactive, json_option, model_options, note

if TYPE_CHECKING:
    from indexer.builder import BuildProgress, BuildReport


@click.group()
def index() -> None:
    """Build, describe and verify an index of pictures.

    \b
    diptych index build ~/Pictures --out photos.index
    diptych index info --index photos.index
    diptych index verify --index photos.index
    """


@index.command(
    epilog="\b\nExamples:\n"
    "  diptych index build ~/Pictures --out photos.index\n"
    "  diptych index build 'shards/{00000..00012}.tar' --out big.index --text-field captions.en\n"
    "  diptych index build items.jsonl more/ --out shop.index --label-field category --json\n"
    "  diptych index build items.jsonl --out shop.index --filterable 'year:int,tags:str[]'\n\n"
    "Run the same command again to resume a killed build or to bring the index up to date: only "
    "new and changed pictures are embedded."
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The index directory; made if it does not exist.",
)
@model_options
@click.option("--text-field", help="Dotted path of the captions, e.g. captions.en.")
@click.option("--label-field", help="Dotted path of the label, e.g. label.")
@click.option(
    "--filterable",
    multiple=True,
    metavar="NAME[=PATH]:TYPE",
    help="Fields of the records that searches can filter by, separated by commas; TYPE is int, "
    "float, str, bool or str[], PATH a dotted path. They are declared when an index is made and "
    "kept from then on. label and language need no declaration.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Pictures per call of the model.",
)
@click.option("--no-thumbnails", is_flag=True, help="Store no previews in the index.")
@click.option("--no-captions", is_flag=True, help="Do not index texts as items of their own.")
@click.option("--no-relevance", is_flag=True, help="Keep no background to judge hits against.")
@click.option(
    "--rejects",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where refused items are listed, one JSON object a line; replaced. "
    "[default: <out>.rejects.jsonl]",
)
@click.option(
    "--max-errors",
    type=click.IntRange(min=0),
    help="Stop, keeping what is done, once more items than this were refused.",
)
@json_option
def build(
    sources: tuple[str, ...],
    out: Path,
    model: str | None,
    device: str,
    precision: str,
    threads: int | None,
    text_field: str | None,
    label_field: str | None,
    filterable: tuple[str, ...],
    batch_size: int,
    no_thumbnails: bool,
    no_captions: bool,
    no_relevance: bool,
    rejects: Path | None,
    max_errors: int | None,
    as_json: bool,
) -> int:
    """Index the pictures and captions of each SOURCE.

    A SOURCE is a folder, .tar shards or a .jsonl manifest. Exits with 3 when items were refused;
    everything else is indexed then.
    """
    from indexer.builder import BuildOptions, build_index
    from indexer.fields import parse_fields
    from indexer.store import require_index_or_empty
    from models.data import open_source
    from models.registry import load_encoder

    require_index_or_empty(out)  # before a model is loaded for nothing
    fields = parse_fields(filterable) if filterable else None
    if label_field is not None and label_field in {field.path for field in fields or ()}:
        raise click.UsageError(f"{label_field} is the label: filter by label, undeclared")
    opened = [
        open_source(source, text_field=text_field, label_field=label_field) for source in sources
    ]
    options = BuildOptions(
        batch_size=batch_size,
        thumbnails=not no_thumbnails,
        captions=not no_captions,
        fields=fields,
        rejects=rejects,
        max_errors=max_errors,
        relevance=not no_relevance,
    )
    name = model or _model_of(out)
    note(f"Loading {name} ...")
    encoder = load_encoder(name, device=device, precision=precision, threads=threads)
    with _progress_bar() as on_progress:
        report = build_index(opened, out, encoder, options=options, on_progress=on_progress)
    if as_json:
        emit_json({"index": str(out), "model": name, **report.to_dict()})
    else:
        _print_report(report, out)
    if report.stopped:
        note(f"Stopped after {report.rejected} rejects, as --max-errors asked.")
    return PARTIAL if report.rejected else OK


@index.command(epilog="\b\nExample:\n  diptych index info --index photos.index --json")
@click.option("--index", "path", required=True, type=click.Path(path_type=Path), help="The index.")
@json_option
def info(path: Path, as_json: bool) -> None:
    """Describe an index: model, counts, size, sources."""
    from indexer.snapshot import open_snapshot

    with open_snapshot(path, fingerprint=None) as snapshot:
        about = snapshot.info()
    if as_json:
        emit_json({"index": str(path), **about.to_dict()})
        return
    lines = {
        "index": f"{path} ({about.uuid})",
        "version": f"{about.version}, {about.created}, by {about.writer}",
        "model": f"{about.model}, {about.dim} dimensions (fingerprint {about.fingerprint[:12]})",
        "items": f"{about.images:,} images, {about.texts:,} texts",
        "segments": f"{about.segments}, {about.tombstones:,} rows superseded",
        "size": _bytes(about.bytes),
        "fields": ", ".join(f"{field['name']} ({field['type']})" for field in about.fields),
        "relevance": _relevance(about.relevance),
    }
    for name, value in lines.items():
        click.echo(f"{name:<9} {value}")
    for source in about.sources:
        click.echo(f"{'source':<9} {source['name']} ({source['kind']})")


index.add_command(verify)
index.add_command(export)
index.add_command(import_)


def _relevance(about: dict[str, Any] | None) -> str:
    """What hits are judged against."""
    if about is None:
        return "none kept: hits carry a score only"
    parts = [
        f"{target} by {', '.join(one['kinds']) or 'nothing, too few'}"
        for target, one in about.items()
    ]
    return f"{about['images']['queries']} background queries; {'; '.join(parts)}"


def _model_of(out: Path) -> str:
    """The model an existing index was built with; otherwise the default."""
    from indexer.snapshot import read_fingerprint
    from models.environment import default_model
    from models.errors import IndexNotFoundError

    try:
        return read_fingerprint(out).model
    except IndexNotFoundError:
        return default_model()


@contextmanager
def _progress_bar() -> Iterator[Callable[[BuildProgress], None] | None]:
    if not interactive():
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit="img", desc="indexing", smoothing=0.1, dynamic_ncols=True) as bar:

        def show(progress: BuildProgress) -> None:
            bar.total = progress.total
            bar.set_description_str(
                "committing" if progress.stage == "committing" else "indexing", refresh=False
            )
            if progress.rejected:
                bar.set_postfix_str(f"{progress.rejected} rejected", refresh=False)
            bar.update(progress.done - bar.n)

        yield show


def _print_report(report: BuildReport, out: Path) -> None:
    click.echo(
        f"{out}: {report.images:,} images and {report.texts:,} texts in version {report.version}"
    )
    handled = report.added + report.updated
    speed = f", {handled / report.seconds:.1f}/s" if handled and report.seconds else ""
    click.echo(
        f"{report.added:,} added, {report.updated:,} updated, {report.unchanged:,} unchanged, "
        f"{report.rejected:,} rejected in {report.seconds:.1f} s{speed}"
    )
    if report.rejects_file is not None:
        click.echo(f"rejects: {report.rejects_file}")


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
