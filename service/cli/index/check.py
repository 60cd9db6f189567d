"""`diptych index verify` and `diptych index repair`: what is damaged, and what can be done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from service.cli.exits import CORRUPT, OK
from service.cli.output import emit_json, interactive, json_option

_PATH = click.option(
    "--index", "path", required=True, type=click.Path(path_type=Path), help="The index."
)


@click.command(
    epilog="\b\nExamples:\n"
    "  diptych index verify --index photos.index\n"
    "  diptych index verify --index photos.index --deep --json"
)
@_PATH
@click.option(
    "--deep",
    is_flag=True,
    help="Every kept version, every file, and the answers of the search structures.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 64),
    help="How many files to read at once. [default: 4; with --deep 1, to spare a running service]",
)
@json_option
def verify(path: Path, deep: bool, threads: int | None, as_json: bool) -> int:
    """Check every byte of an index and list all damage.

    It takes no lock and may run beside a service and a writer. Exits with 4 when anything is
    wrong.
    """
    from indexer.maintain.verify import verify_index

    with _bytes_bar() as on_bytes:
        report = verify_index(
            path, deep=deep, threads=threads or (1 if deep else 4), on_bytes=on_bytes
        )
    if as_json:
        emit_json({"index": str(path), **report.to_dict()})
        return OK if report.ok else CORRUPT
    for problem in report.problems:
        click.echo(f"{problem.file}: {problem.why}")
    for orphan in report.orphans:
        click.echo(f"{orphan}: belongs to no version; the next writer sweeps what it knows")
    state = "sound" if report.ok else f"{len(report.problems)} problems"
    versions = f"{len(report.versions)} versions, " if deep else ""
    speed = report.bytes / 1e6 / report.seconds if report.seconds else 0.0
    click.echo(
        f"{path}: {state}; {versions}{report.files} files, {human_bytes(report.bytes)} checked "
        f"in {report.seconds:.1f} s ({speed:,.0f} MB/s)"
    )
    if not report.ok:
        click.echo("`diptych index repair` says what can be done", err=True)
    return OK if report.ok else CORRUPT


@click.command(
    epilog="\b\nExamples:\n"
    "  diptych index repair --index photos.index\n"
    "  diptych index repair --index photos.index --yes --drop-damaged --json"
)
@_PATH
@click.option("--yes", is_flag=True, help="Also do what loses rows or older versions.")
@click.option(
    "--drop-damaged",
    is_flag=True,
    help="With --yes: drop segments whose vectors or items are damaged, and list what to index "
    "again.",
)
@json_option
def repair(path: Path, yes: bool, drop_damaged: bool, as_json: bool) -> int:
    """Say what is damaged and do what can be done about it without guessing.

    Search structures are built again from their vectors. A damaged CURRENT or newest manifest is
    replaced by the newest kept version that is sound; what was deleted does not come back. Whatever
    loses something is only told, and done with --yes. Exits with 4 while damage is left.
    """
    from indexer.maintain.repair import repair as repair_index

    report = repair_index(path, yes=yes, drop_damaged=drop_damaged)
    if as_json:
        emit_json({"index": str(path), **report.to_dict()})
        return OK if report.ok else CORRUPT
    for line in report.found:
        click.echo(f"damaged: {line}")
    for line in report.done:
        click.echo(f"done: {line}")
    for record in report.lost:
        click.echo(f"index again: {record}")
    if report.unknown:
        click.echo(f"{report.unknown:,} rows have ids that cannot be read")
    for line in report.needs:
        click.echo(f"not done: {line}")
    if not report.found:
        click.echo(f"{path}: nothing is damaged")
    return OK if report.ok else CORRUPT


def human_bytes(count: int) -> str:
    """A size for people."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


@contextmanager
def _bytes_bar() -> Iterator[Callable[[int, int], None] | None]:
    if not interactive():
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, desc="verifying", dynamic_ncols=True) as bar:

        def show(some: int, all_: int) -> None:
            bar.total = all_
            bar.update(some)

        yield show
