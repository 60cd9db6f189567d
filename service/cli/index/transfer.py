"""`diptych index export` and `diptych index import`: an index, or its vectors, elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from service.cli.exits import OK, PARTIAL
from service.cli.options import (
    PATH,
    ModelOptions,
    argument,
    group,
    index_option,
    json_option,
    option,
    takes,
)
from service.cli.output import emit_json, note, progress_bar, size

if TYPE_CHECKING:
    from models.encoder import Encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportArguments:
    path: Path = index_option()
    out: Path = option("--out", required=True, type=PATH, help="A new directory; made whole.")
    form: Literal["clip-retrieval", "parquet", "copy"] = option(
        "--format",
        required=True,
        type=click.Choice(["clip-retrieval", "parquet", "copy"]),
        help="clip-retrieval: img_emb/, text_emb/ and metadata/. parquet: items with their "
        "vectors. copy: one version as an index of its own, every byte checked.",
    )
    as_json: bool = json_option()


@click.command(
    epilog="\b\nExamples:\n"
    "  diptych index export --index photos.index --out backup.index --format copy\n"
    "  diptych index export --index photos.index --out photos-parquet --format parquet\n"
    "  diptych index export --index photos.index --out emb --format clip-retrieval --json"
)
@takes(ExportArguments)
def export(given: ExportArguments) -> None:
    """Write what an index holds to a new directory.

    It reads one committed version, whatever a build does meanwhile, and takes no lock.
    """
    from indexer.transfer.exports import export_index

    copying = given.form == "copy"
    with progress_bar(
        "copying" if copying else "exporting", "B" if copying else "row", scaled=copying
    ) as bar:
        report = export_index(given.path, given.out, given.form, on_rows=bar.by)
    if given.as_json:
        emit_json({"index": str(given.path), "out": str(given.out), **report.to_dict()})
    else:
        click.echo(
            f"{given.out}: {report.images:,} images and {report.texts:,} texts of version "
            f"{report.version}, {report.files} files, {size(report.bytes)} in "
            f"{report.seconds:.1f} s"
        )
    for what in report.notes:
        note(what)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportArguments:
    source: Path = argument(required=True, type=click.Path(exists=True, path_type=Path))
    out: Path = option("--out", required=True, type=PATH, help="The index to make.")
    pair: ModelOptions = group(ModelOptions)
    filterable: tuple[str, ...] = option(
        "--filterable",
        multiple=True,
        metavar="NAME[=PATH]:TYPE",
        help="Fields to filter by, as `index build` takes them. [default: those the source names]",
    )
    no_relevance: bool = option(
        "--no-relevance", is_flag=True, help="Keep no background to judge hits against."
    )
    allow_erased: bool = option(
        "--allow-erased",
        is_flag=True,
        help="Take in what was deleted, from this index or the one that was exported; otherwise "
        "it is left out.",
    )
    as_json: bool = json_option()


@click.command(
    "import",
    epilog="\b\nExamples:\n"
    "  diptych index import embeddings/ --out photos.index --model ViT-B-32/laion2b_s34b_b79k\n"
    "  diptych index import photos-parquet --out photos.index --model starter --json\n"
    "  diptych index import backup.index --out photos.index",
)
@takes(ImportArguments)
def import_(given: ImportArguments) -> int:
    """Make an index of vectors that are there already.

    SOURCE is a folder of embeddings in clip-retrieval's layout, Parquet files with the columns id
    and vector, or a copy of an index. --model names the pair that made the vectors (a copy knows
    its own): searching with another would be meaningless. Each row is judged alone; exits with 3
    when some were left out. What was deleted stays deleted: exports carry the list of it.
    """
    from indexer.filters.declared import parse_fields
    from indexer.transfer.imports import import_index, is_copy

    copying = is_copy(given.source)
    if given.pair.model is None and not copying:
        raise click.UsageError("--model must name the pair that made the vectors")

    def load() -> Encoder:
        note(f"Loading {given.pair.model} ...")
        return given.pair.load()

    fields = parse_fields(given.filterable) if given.filterable else None
    with progress_bar("importing", "B" if copying else "row", scaled=copying) as bar:
        report = import_index(
            given.source,
            given.out,
            load,
            fields=fields,
            relevance=not given.no_relevance,
            allow_erased=given.allow_erased,
            on_rows=bar.by,
        )
    if given.as_json:
        emit_json({"index": str(given.out), "source": str(given.source), **report.to_dict()})
    else:
        for reason in report.reasons:
            click.echo(f"left out: {reason}", err=True)
        click.echo(
            f"{given.out}: {report.images:,} images and {report.texts:,} texts in version "
            f"{report.version}; {report.scaled:,} vectors scaled to unit length, "
            f"{report.rejected:,} rows left out, {report.seconds:.1f} s"
        )
    for what, count in report.notes.items():
        note(f"{what} ({count:,} times)" if count > 1 else what)
    if report.erased:
        note(f"{report.erased} deleted items were left out; --allow-erased takes them in again.")
    return PARTIAL if report.rejected else OK
