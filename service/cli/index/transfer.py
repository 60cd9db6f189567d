"""`diptych index export` and `diptych index import`: an index, or its vectors, elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.exits import OK, PARTIAL
from service.cli.index.check import human_bytes
from service.cli.output import emit_json, interactive, json_option, model_options, note

if TYPE_CHECKING:
    from models.encoder import Encoder


@click.command(
    epilog="\b\nExamples:\n"
    "  diptych index export --index photos.index --out backup.index --format copy\n"
    "  diptych index export --index photos.index --out photos-parquet --format parquet\n"
    "  diptych index export --index photos.index --out emb --format clip-retrieval --json"
)
@click.option("--index", "path", required=True, type=click.Path(path_type=Path), help="The index.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="A new directory; made whole."
)
@click.option(
    "--format",
    "form",
    required=True,
    type=click.Choice(["clip-retrieval", "parquet", "copy"]),
    help="clip-retrieval: img_emb/, text_emb/ and metadata/. parquet: items with their vectors. "
    "copy: one version as an index of its own, every byte checked.",
)
@json_option
def export(path: Path, out: Path, form: str, as_json: bool) -> None:
    """Write what an index holds to a new directory.

    It reads one committed version, whatever a build does meanwhile, and takes no lock.
    """
    from indexer.transfer.exports import export_index

    with _bar("copying" if form == "copy" else "exporting", bytes_=form == "copy") as on_rows:
        report = export_index(path, out, form, on_rows=on_rows)  # type: ignore[arg-type]
    if as_json:
        emit_json({"index": str(path), "out": str(out), **report.to_dict()})
        return
    click.echo(
        f"{out}: {report.images:,} images and {report.texts:,} texts of version {report.version}, "
        f"{report.files} files, {human_bytes(report.bytes)} in {report.seconds:.1f} s"
    )


@click.command(
    "import",
    epilog="\b\nExamples:\n"
    "  diptych index import embeddings/ --out photos.index --model ViT-B-32/laion2b_s34b_b79k\n"
    "  diptych index import photos-parquet --out photos.index --model starter --json\n"
    "  diptych index import backup.index --out photos.index",
)
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The index to make.")
@model_options
@click.option(
    "--filterable",
    multiple=True,
    metavar="NAME[=PATH]:TYPE",
    help="Fields to filter by, as `index build` takes them. [default: those the source names]",
)
@click.option("--no-relevance", is_flag=True, help="Keep no background to judge hits against.")
@json_option
def import_(
    source: Path,
    out: Path,
    model: str | None,
    device: str,
    precision: str,
    threads: int | None,
    filterable: tuple[str, ...],
    no_relevance: bool,
    as_json: bool,
) -> int:
    """Make an index of vectors that are there already.

    SOURCE is a folder of embeddings in clip-retrieval's layout, Parquet files with the columns id
    and vector, or a copy of an index. --model names the pair that made the vectors (a copy knows
    its own): searching with another would be meaningless. Exits with 3 when rows were left out.
    """
    from indexer.filters.declared import parse_fields
    from indexer.transfer.imports import import_index, is_copy

    if model is None and not is_copy(source):
        raise click.UsageError("--model must name the pair that made the vectors")

    def load() -> Encoder:
        from models.encoders.registry import load_encoder

        assert model is not None
        note(f"Loading {model} ...")
        return load_encoder(model, device=device, precision=precision, threads=threads)

    fields = parse_fields(filterable) if filterable else None
    with _bar("importing", bytes_=is_copy(source)) as on_rows:
        report = import_index(
            source, out, load, fields=fields, relevance=not no_relevance, on_rows=on_rows
        )
    if as_json:
        emit_json({"index": str(out), "source": str(source), **report.to_dict()})
    else:
        for reason in report.reasons:
            click.echo(f"left out: {reason}", err=True)
        click.echo(
            f"{out}: {report.images:,} images and {report.texts:,} texts in version "
            f"{report.version}; {report.scaled:,} vectors scaled to unit length, "
            f"{report.rejected:,} rows left out, {report.seconds:.1f} s"
        )
    return PARTIAL if report.rejected else OK


@contextmanager
def _bar(what: str, *, bytes_: bool) -> Iterator[Callable[[int, int | None], None] | None]:
    if not interactive():
        yield None
        return
    from tqdm import tqdm

    unit: dict[str, Any] = {"unit": "B", "unit_scale": True} if bytes_ else {"unit": "row"}
    with tqdm(desc=what, dynamic_ncols=True, **unit) as bar:

        def show(count: int, total: int | None) -> None:
            bar.total = total
            bar.update(count)

        yield show
