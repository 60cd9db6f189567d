"""`diptych index optimize`: merge segments, and make search faster where that pays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.cli.options import (
    OLD_FILE,
    ByteSize,
    KeepingOptions,
    ModelOptions,
    group,
    index_option,
    json_option,
    option,
    takes,
)
from service.cli.output import emit_json, note, progress_bar, size

if TYPE_CHECKING:
    from indexer.maintain.optimize import TargetReport
    from models.vectors import Vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizeArguments:
    path: Path = index_option()
    recall: float = option(
        "--recall",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.95,
        show_default=True,
        help="Recall@10 against exact search that an approximate structure must reach.",
    )
    memory: int | None = option(
        "--memory",
        type=ByteSize(),
        help="Most that a structure may take on disk and in memory, e.g. 4G.",
    )
    structure: str = option(
        "--structure",
        type=click.Choice(["auto", "exact", "hnsw", "ivf"]),
        default="auto",
        show_default=True,
        help="auto takes the fastest; exact takes structures away.",
    )
    queries: Path | None = option(
        "--queries",
        type=OLD_FILE,
        help="Texts to measure with, one a line, at least 64. [default: captions in the index]",
    )
    pair: ModelOptions = group(ModelOptions)
    keeping: KeepingOptions = group(KeepingOptions)
    as_json: bool = json_option()


@click.command(
    epilog="\b\nExamples:\n"
    "  diptych index optimize --index photos.index\n"
    "  diptych index optimize --index photos.index --recall 0.98 --memory 2G\n"
    "  diptych index optimize --index photos.index --queries searches.txt --json\n"
    "  diptych index info --index photos.index --plot curve.png\n\n"
    "What was added later is searched beside it, exactly, until the next run. Nothing is embedded "
    "again."
)
@takes(OptimizeArguments)
def optimize(given: OptimizeArguments) -> None:
    """Merge an index's segments, drop dead rows, and build the search structure that pays.

    Structures are measured with texts asking for pictures (and pictures for texts), because
    that is what they will be asked. Small indexes stay exact, and so does one that no structure
    serves at the wanted recall.
    """
    from indexer.maintain.optimize import OptimizeOptions
    from indexer.maintain.optimize import optimize as run

    options = OptimizeOptions(
        floor=given.recall,
        memory=given.memory,
        structure=given.structure,  # type: ignore[arg-type]  # click checked it
        queries_QD=None if given.queries is None else _embed(given.path, given.queries, given.pair),
        keeping=given.keeping.value(),
    )
    with progress_bar("", "row", scaled=True) as bar:
        report = run(given.path, options, on_progress=bar.stage)
    if given.as_json:
        emit_json({"index": str(given.path), **report.to_dict()})
        return
    for name, target in (("images", report.images), ("texts", report.texts)):
        for line in _lines(name, target):
            click.echo(line)
    click.echo(f"version {report.version}, {report.seconds:.1f} s")
    given.keeping.tell(report.collected)


def _lines(name: str, target: TargetReport) -> Iterator[str]:
    """What became of one modality, for people."""
    if not target.rows:
        return
    done = "unchanged" if not target.changed else f"{target.merged} segments merged"
    gone = f", {target.dropped:,} dead rows dropped" if target.dropped and target.changed else ""
    yield f"{name:<7} {target.rows:,} rows, {done}{gone}"
    if target.structure == "exact":
        yield "        searched exactly"
    else:
        assert target.recall is not None
        assert target.latency_ms is not None
        assert target.bytes_per_vector is not None
        faster = f", exactly {target.exact_ms:.1f} ms" if target.exact_ms else ""
        yield (
            f"        {target.recipe}: recall@10 {target.recall:.3f} for {target.queries}, "
            f"{target.latency_ms:.2f} ms a query{faster}; "
            f"{size(target.bytes_per_vector * target.rows)}"
        )
    for reason in target.notes:
        yield f"        {reason}"


def _embed(path: Path, queries: Path, pair: ModelOptions) -> Vectors:
    """The texts of a file as unit vectors, with the model of the index."""
    import numpy as np

    from indexer.format.manifest import check_encoder
    from indexer.search.snapshot import read_fingerprint
    from models.errors import InputError

    try:
        lines = queries.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {queries}: {error}") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError(f"{queries} holds no text")
    stored = read_fingerprint(path)
    name = pair.model or stored.model
    note(f"Loading {name} ...")
    encoder = pair.load(name)
    check_encoder(stored, encoder.fingerprint)
    prepared = [encoder.prepare_text(text) for text in texts]
    return np.concatenate(
        [encoder.embed_texts(prepared[start : start + 64]) for start in range(0, len(texts), 64)]
    )
