"""`diptych index build` and `diptych index add`: sources into an index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from service.cli.exits import OK, PARTIAL
from service.cli.index.build_report import draw_throughput, print_report, progress_line
from service.cli.index.plan import show_plan
from service.cli.options import (
    NEW_FILE,
    PATH,
    KeepingOptions,
    ModelOptions,
    argument,
    group,
    index_option,
    json_option,
    option,
    takes,
)
from service.cli.output import emit_json, note
from service.cli.sources import Reading

if TYPE_CHECKING:
    from indexer.ingest.options import BuildOptions
    from models.encoder import Encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestArguments:
    """What building and adding share."""

    sources: tuple[str, ...] = argument(metavar="SOURCE...", nargs=-1, required=True)
    pair: ModelOptions = group(ModelOptions)
    reading: Reading = group(Reading)
    batch_size: int = option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=32,
        show_default=True,
        help="Pictures per call of the model.",
    )
    rehash: bool = option(
        "--rehash",
        is_flag=True,
        help="Read every file again, also those whose size, times and inode are as they were.",
    )
    workers: int | None = option(
        "--workers",
        type=click.IntRange(min=0, max=64),
        help="Processes that decode pictures; 0 decodes in threads, where a picture that "
        "crashes its decoder ends the build. [default: one per core; 0 for 64 records or "
        "fewer]",
    )
    fast_jpeg: bool = option(
        "--fast-jpeg",
        is_flag=True,
        help="Decode large JPEGs at a fraction of their size: several times faster for "
        "photographs of ten megapixels, and embeddings that differ a little (cosine 0.998 and "
        "above, where it is 1 without).",
    )
    plot: Path | None = option(
        "--plot",
        type=NEW_FILE,
        help="Draw the throughput over time as PNG. [default: <index>.build.png, after builds "
        "of more than a minute, where matplotlib is installed]",
    )
    no_thumbnails: bool = option(
        "--no-thumbnails", is_flag=True, help="Store no previews in the index."
    )
    no_captions: bool = option(
        "--no-captions", is_flag=True, help="Do not index texts as items of their own."
    )
    allow_erased: bool = option(
        "--allow-erased",
        is_flag=True,
        help="Index again what was deleted; otherwise it is left out.",
    )
    prefix: str | None = option(
        "--prefix",
        metavar="NAME",
        help="Put NAME/ before every id, so that it meets no other source's; {source} in it stands "
        "for the name of the folder, shard or manifest a record is in.",
    )
    replace: bool = option(
        "--replace",
        is_flag=True,
        help="Let a record take the place of what another source gave the index under the same "
        "id; otherwise it is refused.",
    )
    rejects: Path | None = option(
        "--rejects",
        type=NEW_FILE,
        help="Where refused items are listed, one JSON object a line; replaced. "
        "[default: <index>.rejects.jsonl]",
    )
    max_errors: int | None = option(
        "--max-errors",
        type=click.IntRange(min=0),
        help="Stop, keeping what is done, once more items than this were refused.",
    )
    keeping: KeepingOptions = group(KeepingOptions)
    as_json: bool = json_option()

    def options(self, **more: Any) -> BuildOptions:
        """For the builder, with what only one of the commands can say."""
        from indexer.ingest.options import BuildOptions

        return BuildOptions(
            batch_size=self.batch_size,
            thumbnails=not self.no_thumbnails,
            captions=not self.no_captions,
            rejects=self.rejects,
            max_errors=self.max_errors,
            allow_erased=self.allow_erased,
            replace=self.replace,
            rehash=self.rehash,
            workers=self.workers,
            draft=self.fast_jpeg,
            keeping=self.keeping.value(),
            **more,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildArguments:
    out: Path = option(
        "--out", required=True, type=PATH, help="The index directory; made if it does not exist."
    )
    filterable: tuple[str, ...] = option(
        "--filterable",
        multiple=True,
        metavar="NAME[=PATH]:TYPE",
        help="Fields of the records that searches can filter by, separated by commas; TYPE is int, "
        "float, str, bool, str[] or date, PATH a dotted path. They are declared when an index is "
        "made and kept from then on. label and language need no declaration.",
    )
    no_relevance: bool = option(
        "--no-relevance", is_flag=True, help="Keep no background to judge hits against."
    )
    mirror: bool = option(
        "--mirror",
        is_flag=True,
        help="Also remove what is in the index but in no SOURCE any more; refused where more than "
        "half of it seems gone, or all that a SOURCE or a folder had (a disk that is not mounted), "
        "or where a SOURCE could not be read to its end.",
    )
    mirror_all: bool = option(
        "--mirror-all", is_flag=True, help="As --mirror, however much is gone."
    )
    plan: bool = option(
        "--plan",
        is_flag=True,
        help="Only tell what there is to do: counts, sizes, time and disk.",
    )
    ingest: IngestArguments = group(IngestArguments)


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
@takes(BuildArguments)
def build(given: BuildArguments) -> int:
    """Index the pictures and captions of each SOURCE.

    A SOURCE is a folder, .tar shards, a .jsonl, .csv, .tsv, .parquet, .json (COCO, Karpathy) or
    .txt manifest, or - for JSON lines on standard input. Exits with 3 when items were refused,
    or a SOURCE had none; everything else is indexed then.
    """
    from indexer.filters.declared import parse_fields
    from indexer.store.writer import require_index_or_empty

    require_index_or_empty(given.out)  # before a model is loaded for nothing
    fields = parse_fields(given.filterable) if given.filterable else None
    label = given.ingest.reading.label_field
    if label in {field.path for field in fields or ()}:
        raise click.UsageError(f"{label} is the label: filter by label, undeclared")
    options = given.ingest.options(
        fields=fields,
        relevance=not given.no_relevance,
        mirror=given.mirror or given.mirror_all,
        mirror_all=given.mirror_all,
    )
    return _index(given.out, "build", given.ingest, options, plan=given.plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddArguments:
    path: Path = index_option("The index to add to.")
    ingest: IngestArguments = group(IngestArguments)


@click.command(
    epilog="\b\nExamples:\n"
    "  diptych index add ~/Pictures/2026 --index photos.index\n"
    "  diptych index add new.jsonl --index shop.index --label-field category --json\n"
    "  diptych index add 2019 2020 --index photos.index --prefix '{source}'\n\n"
    "An item that the same SOURCE gave before is replaced if it changed. One whose id the index "
    "has from another is refused: --prefix gives it an id of its own, --replace takes it for that."
)
@takes(AddArguments)
def add(given: AddArguments) -> int:
    """Add the pictures and captions of each SOURCE to an index.

    A SOURCE is a folder, .tar shards, a .jsonl, .csv, .tsv, .parquet, .json (COCO, Karpathy) or
    .txt manifest, or - for JSON lines on standard input. Exits with 3 when items were refused,
    or a SOURCE had none; everything else is indexed then.
    """
    from indexer.format.manifest import read_manifest

    read_manifest(given.path)
    return _index(given.path, "add", given.ingest, given.ingest.options())


def _index(
    path: Path,
    operation: Literal["build", "add"],
    given: IngestArguments,
    options: BuildOptions,
    *,
    plan: bool = False,
) -> int:
    from indexer.ingest.build import build_index
    from indexer.ingest.options import DeferredEncoder
    from service.engine.library import encoder_for

    # a CSV's cells are text but where a field was declared
    types = {field.path: field.type for field in options.fields or ()}
    sources = given.reading.open(given.sources, column_types=types, prefix=given.prefix)
    if given.plot is not None:
        from service.cli.plots import require_matplotlib

        require_matplotlib()  # now, not after hours

    def load(name: str) -> Encoder:
        note(f"Loading {name} ...")
        return given.pair.load(name)

    name, encoder = encoder_for(path, given.pair.model, load)
    if plan:
        pair = encoder.encoder if isinstance(encoder, DeferredEncoder) else lambda: encoder
        show_plan(sources, pair, options, as_json=given.as_json)
        return OK
    with progress_line() as on_progress:
        report = build_index(
            sources, path, encoder, options=options, on_progress=on_progress, operation=operation
        )
    drawn = draw_throughput(report, path, given.plot)
    if given.as_json:
        document = {"index": str(path), "model": name, **report.to_dict()}
        emit_json({**document, "plot": None if drawn is None else str(drawn)})
    else:
        print_report(report, path)
        given.keeping.tell(report.collected)
        if drawn is not None:
            click.echo(f"throughput: {drawn}")
    if report.stopped:
        note(f"Stopped after {report.rejected} rejects, as --max-errors asked.")
    if report.empty:
        names = ", ".join(report.empty[:5]) + (", ..." if len(report.empty) > 5 else "")
        note(
            f"Nothing was found in {names}: see that the disk is mounted, that --include fits, and "
            "what the files are called."
        )
    if report.conflicts:
        note(
            f"{report.conflicts} records have an id that another one has, and were refused: "
            "--prefix '{source}' or --id-field gives them ids of their own; --replace takes them "
            "for what another source gave the index."
        )
    if report.overtaken:
        note(
            f"{report.overtaken} records were written or deleted by others meanwhile, and are as "
            "those left them; run again to have them as the source has them."
        )
    if report.erased:
        note(f"{report.erased} deleted items were left out; --allow-erased indexes them again.")
    return PARTIAL if report.rejected or report.empty else OK
