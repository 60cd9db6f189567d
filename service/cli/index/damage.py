"""`diptych index verify` and `diptych index repair`: what is damaged, and what can be done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from service.cli.exits import CORRUPT, OK
from service.cli.options import index_option, json_option, option, takes
from service.cli.output import emit_json, progress_bar, size


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyArguments:
    path: Path = index_option()
    deep: bool = option(
        "--deep",
        is_flag=True,
        help="Every kept version, every file, and the answers of the search structures.",
    )
    threads: int | None = option(
        "--threads",
        type=click.IntRange(1, 64),
        help="How many files to read at once. [default: 4; with --deep 1, to spare a running "
        "service]",
    )
    as_json: bool = json_option()


@click.command(
    epilog="\b\nExamples:\n"
    "  diptych index verify --index photos.index\n"
    "  diptych index verify --index photos.index --deep --json"
)
@takes(VerifyArguments)
def verify(given: VerifyArguments) -> int:
    """Check every byte of an index and list all damage.

    It takes no lock and may run beside a service and a writer. Exits with 4 when anything is
    wrong.
    """
    from indexer.maintain.verify import verify_index

    threads = given.threads or (1 if given.deep else 4)
    with progress_bar("verifying", "B", scaled=True) as bar:
        report = verify_index(given.path, deep=given.deep, threads=threads, on_bytes=bar.by)
    if given.as_json:
        emit_json({"index": str(given.path), **report.to_dict()})
        return OK if report.ok else CORRUPT
    for problem in report.problems:
        click.echo(f"{problem.file}: {problem.why}")
    for orphan in report.orphans:
        click.echo(f"{orphan}: belongs to no version; the next writer sweeps what it knows")
    state = "sound" if report.ok else f"{len(report.problems)} problems"
    versions = f"{len(report.versions)} versions, " if given.deep else ""
    speed = size(report.bytes / report.seconds if report.seconds else 0.0)
    click.echo(
        f"{given.path}: {state}; {versions}{report.files} files, {size(report.bytes)} checked "
        f"in {report.seconds:.1f} s ({speed}/s)"
    )
    if not report.ok:
        click.echo("`diptych index repair` says what can be done", err=True)
    return OK if report.ok else CORRUPT


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairArguments:
    path: Path = index_option()
    yes: bool = option("--yes", is_flag=True, help="Also do what loses rows or older versions.")
    drop_damaged: bool = option(
        "--drop-damaged",
        is_flag=True,
        help="With --yes: drop segments whose vectors or items are damaged, and list what to index "
        "again.",
    )
    without_lists: bool = option(
        "--without-lists",
        is_flag=True,
        help="With --yes: go on with what is known of damaged lists of deletions; some of what was "
        "deleted may come back.",
    )
    as_json: bool = json_option()


@click.command(
    epilog="\b\nExamples:\n"
    "  diptych index repair --index photos.index\n"
    "  diptych index repair --index photos.index --yes --drop-damaged --json"
)
@takes(RepairArguments)
def repair(given: RepairArguments) -> int:
    """Say what is damaged and do what can be done about it without guessing.

    Search structures are built again from their vectors, and damaged lists of deletions from what
    is left of them and the rows, where a sum proves the result. A damaged CURRENT or newest
    manifest is replaced by the newest kept version that is sound; what was deleted does not come
    back. Whatever loses something is only told, and done with --yes. Exits with 4 while damage is
    left.
    """
    from indexer.maintain.repair import repair as repair_index

    report = repair_index(
        given.path,
        yes=given.yes,
        drop_damaged=given.drop_damaged,
        without_lists=given.without_lists,
    )
    if given.as_json:
        emit_json({"index": str(given.path), **report.to_dict()})
        return OK if report.ok else CORRUPT
    for line in report.found:
        click.echo(f"damaged: {line}")
    for line in report.done:
        click.echo(f"done: {line}")
    for record in report.lost:
        click.echo(f"index again: {record}")
    if report.unknown:
        click.echo(f"{report.unknown:,} rows have ids that cannot be read")
    for line in report.forgotten:
        click.echo(f"forgotten: {line}")
    for line in report.needs:
        click.echo(f"not done: {line}")
    if not report.found:
        click.echo(f"{given.path}: nothing is damaged")
    return OK if report.ok else CORRUPT
