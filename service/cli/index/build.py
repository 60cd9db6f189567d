"""`diptych index build` and `diptych index add`: sources into an index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from service.cli.exits import OK, PARTIAL
from service.cli.index.build_output import draw_throughput, print_report, progress_line
from service.cli.index.plan import show_plan
from service.cli.output import emit_json, json_option, model_options, note
from service.cli.sources import Reading, reading_options

if TYPE_CHECKING:
    from indexer.search.embedding import DeferredEncoder
    from models.encoder import Encoder

F = TypeVar("F", bound=Callable[..., Any])


def source_options(function: F) -> F:
    """The arguments that building and adding share."""
    options = [
        click.argument("sources", metavar="SOURCE...", nargs=-1, required=True),
        model_options,
        reading_options,
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=32,
            show_default=True,
            help="Pictures per call of the model.",
        ),
        click.option(
            "--rehash",
            is_flag=True,
            help="Read every file again, also those whose size, times and inode are as they were.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=0, max=64),
            help="Processes that decode pictures; 0 decodes in threads, where a picture that "
            "crashes its decoder ends the build. [default: one per core; 0 for 64 records or "
            "fewer]",
        ),
        click.option(
            "--fast-jpeg",
            is_flag=True,
            help="Decode large JPEGs at a fraction of their size: several times faster for "
            "photographs of ten megapixels, and embeddings that differ a little (cosine 0.998 and "
            "above, where it is 1 without).",
        ),
        click.option(
            "--plot",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Draw the throughput over time as PNG. [default: <index>.build.png, after builds "
            "of more than a minute, where matplotlib is installed]",
        ),
        click.option("--no-thumbnails", is_flag=True, help="Store no previews in the index."),
        click.option(
            "--no-captions", is_flag=True, help="Do not index texts as items of their own."
        ),
        click.option(
            "--allow-erased",
            is_flag=True,
            help="Index again what was deleted; otherwise it is left out.",
        ),
        click.option(
            "--rejects",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Where refused items are listed, one JSON object a line; replaced. "
            "[default: <index>.rejects.jsonl]",
        ),
        click.option(
            "--max-errors",
            type=click.IntRange(min=0),
            help="Stop, keeping what is done, once more items than this were refused.",
        ),
        json_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.command(
    epilog="\b\nExamples:\n"
    "  diptych index build ~/Pictures --out photos.index\n"
    "  diptych index build 'shards/{00000..00012}.tar' --out big.index --text-field captions.en\n"
    "  diptych index build items.jsonl more/ --out shop.index --label-field category --json\n"
    "  diptych index build items.jsonl --out shop.index --filterable 'year:int,tags:str[]'\n"
    "  diptych index build shop.csv --out shop.index --image-field file --text-field title\n"
    "  diptych index build ~/Pictures --out photos.index --mirror\n"
    "  diptych index build ~/Pictures --out photos.index --plan\n\n"
    "Run the same command again to resume a killed build or to bring the index up to date: only "
    "new and changed pictures are embedded. What was deleted from the index stays deleted."
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The index directory; made if it does not exist.",
)
@click.option(
    "--filterable",
    multiple=True,
    metavar="NAME[=PATH]:TYPE",
    help="Fields of the records that searches can filter by, separated by commas; TYPE is int, "
    "float, str, bool or str[], PATH a dotted path. They are declared when an index is made and "
    "kept from then on. label and language need no declaration.",
)
@click.option("--no-relevance", is_flag=True, help="Keep no background to judge hits against.")
@click.option(
    "--mirror",
    is_flag=True,
    help="Also remove what is in the index but in no SOURCE any more; refused where more than half "
    "of it seems gone, or where a SOURCE could not be read to its end.",
)
@click.option("--mirror-all", is_flag=True, help="As --mirror, however much is gone.")
@click.option(
    "--plan", is_flag=True, help="Only tell what there is to do: counts, sizes, time and disk."
)
@source_options
def build(
    out: Path,
    filterable: tuple[str, ...],
    reading: Reading,
    no_relevance: bool,
    mirror: bool,
    mirror_all: bool,
    plan: bool,
    **common: Any,
) -> int:
    """Index the pictures and captions of each SOURCE.

    A SOURCE is a folder, .tar shards, a .jsonl, .csv, .tsv, .parquet, .json (COCO, Karpathy) or
    .txt manifest, or - for JSON lines on standard input. Exits with 3 when items were refused;
    everything else is indexed then.
    """
    from indexer.filters.declared import parse_fields
    from indexer.store.writer import require_index_or_empty

    require_index_or_empty(out)  # before a model is loaded for nothing
    fields = parse_fields(filterable) if filterable else None
    if reading.label_field in {field.path for field in fields or ()}:
        raise click.UsageError(f"{reading.label_field} is the label: filter by label, undeclared")
    more = {
        "fields": fields,
        "relevance": not no_relevance,
        "mirror": mirror or mirror_all,
        "mirror_all": mirror_all,
    }
    return _index(out, "build", reading=reading, more=more, plan=plan, **common)


@click.command(
    epilog="\b\nExamples:\n"
    "  diptych index add ~/Pictures/2026 --index photos.index\n"
    "  diptych index add new.jsonl --index shop.index --label-field category --json\n\n"
    "An item whose id is in the index already is replaced if it changed."
)
@click.option(
    "--index", "path", required=True, type=click.Path(path_type=Path), help="The index to add to."
)
@source_options
def add(path: Path, **common: Any) -> int:
    """Add the pictures and captions of each SOURCE to an index.

    A SOURCE is a folder, .tar shards, a .jsonl, .csv, .tsv, .parquet, .json (COCO, Karpathy) or
    .txt manifest, or - for JSON lines on standard input. Exits with 3 when items were refused;
    everything else is indexed then.
    """
    from indexer.format.manifest import read_manifest

    read_manifest(path)
    return _index(path, "add", more={}, **common)


def _index(
    path: Path,
    operation: Literal["build", "add"],
    *,
    sources: tuple[str, ...],
    model: str | None,
    device: str,
    precision: str,
    threads: int | None,
    reading: Reading,
    batch_size: int,
    no_thumbnails: bool,
    no_captions: bool,
    allow_erased: bool,
    rejects: Path | None,
    max_errors: int | None,
    rehash: bool,
    workers: int | None,
    fast_jpeg: bool,
    plot: Path | None,
    as_json: bool,
    more: dict[str, Any],
    plan: bool = False,
) -> int:
    from indexer.ingest.build import BuildOptions, build_index
    from indexer.search.embedding import DeferredEncoder

    # a CSV's cells are text but where a field was declared
    types = {field.path: field.type for field in more.get("fields") or ()}
    opened = reading.open(sources, column_types=types)
    options = BuildOptions(
        batch_size=batch_size,
        thumbnails=not no_thumbnails,
        captions=not no_captions,
        rejects=rejects,
        max_errors=max_errors,
        allow_erased=allow_erased,
        rehash=rehash,
        workers=workers,
        draft=fast_jpeg,
        **more,
    )
    if plot is not None:
        from service.cli.plots.reliability_plot import require_matplotlib

        require_matplotlib()  # now, not after hours
    name, encoder = _encoder(path, model, device, precision, threads)
    if plan:
        load = encoder.encoder if isinstance(encoder, DeferredEncoder) else lambda: encoder
        show_plan(opened, load, options, as_json=as_json)
        return OK
    with progress_line() as on_progress:
        report = build_index(
            opened, path, encoder, options=options, on_progress=on_progress, operation=operation
        )
    drawn = draw_throughput(report, path, plot)
    if as_json:
        document = {"index": str(path), "model": name, **report.to_dict()}
        emit_json({**document, "plot": None if drawn is None else str(drawn)})
    else:
        print_report(report, path)
        if drawn is not None:
            click.echo(f"throughput: {drawn}")
    if report.stopped:
        note(f"Stopped after {report.rejected} rejects, as --max-errors asked.")
    if report.erased:
        note(f"{report.erased} deleted items were left out; --allow-erased indexes them again.")
    return PARTIAL if report.rejected else OK


def _encoder(
    path: Path, model: str | None, device: str, precision: str, threads: int | None
) -> tuple[str, Encoder | DeferredEncoder]:
    """The model's name, and the model: of an existing index only if there is something to embed."""
    from indexer.search.embedding import DeferredEncoder
    from indexer.search.snapshot import read_fingerprint
    from models.environment import default_model
    from models.errors import IndexNotFoundError

    def load(name: str) -> Encoder:
        from models.encoders.registry import load_encoder

        note(f"Loading {name} ...")
        return load_encoder(name, device=device, precision=precision, threads=threads)

    try:
        stored = read_fingerprint(path)
    except IndexNotFoundError:
        name = model or default_model()
        return name, load(name)
    if model is not None and model != stored.model:  # another name may be another model
        return model, load(model)
    return stored.model, DeferredEncoder(stored, lambda: load(stored.model))
