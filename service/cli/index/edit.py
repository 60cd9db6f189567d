"""`diptych index delete`, `rollback`, `purge` and `history`: what leaves an index, and its past."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

import click

from service.cli.exits import OK, PARTIAL
from service.cli.options import (
    KeepingOptions,
    argument,
    group,
    index_option,
    json_option,
    option,
    takes,
)
from service.cli.output import emit_json, note, size

if TYPE_CHECKING:
    from indexer.maintain.edit import EditReport

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteArguments:
    ids: tuple[str, ...] = argument(metavar="[ID]...", nargs=-1)
    path: Path = index_option()
    listed: TextIO | None = option(
        "--ids",
        type=click.File("r", encoding="utf-8"),
        help='A file of ids, one a line, or of JSON lines with an "id"; - reads stdin.',
    )
    filter: str | None = option(
        "--filter", metavar="JSON", help="Also what this filter selects now."
    )
    target: Literal["images", "texts"] = option(
        "--target",
        type=click.Choice(["images", "texts"]),
        default="images",
        show_default=True,
        help="What --filter selects from.",
    )
    dry_run: bool = option("--dry-run", is_flag=True, help="Only tell what would go.")
    keeping: KeepingOptions = group(KeepingOptions)
    as_json: bool = json_option()


@click.command(
    epilog="\b\nExamples:\n"
    "  diptych index delete --index photos.index cats/tom.jpg cats/tim.jpg\n"
    "  diptych index delete --index photos.index --ids gone.txt --dry-run\n"
    "  diptych search --index photos.index 'a receipt' --json | jq -c '.results[]' \\\n"
    "      | diptych index delete --index photos.index --ids -\n"
    '  diptych index delete --index shop.index --filter \'{"field": "year", "lt": 2000}\'\n\n'
    "A picture takes its captions with it. What is deleted stays so: no rollback and no later "
    "build brings it back, unless --allow-erased is given to it. Its bytes are in the files until "
    "`diptych index purge`."
)
@takes(DeleteArguments)
def delete(given: DeleteArguments) -> int:
    """Delete items by ID, by a file of ids, or by filter.

    Exits with 3 when some ids are not in the index; the others are deleted then.
    """
    from indexer.filters.language import parse_filter
    from indexer.maintain.edit import delete_items

    if not given.ids and given.listed is None and given.filter is None:
        raise click.UsageError("name an ID, --ids or --filter")
    wanted = None
    if given.filter is not None:
        try:
            wanted = parse_filter(json.loads(given.filter))
        except (json.JSONDecodeError, RecursionError) as error:
            raise click.BadParameter(f"not JSON: {error}", param_hint="--filter") from error
    named = [*given.ids, *(_read_ids(given.listed) if given.listed is not None else [])]
    report = delete_items(
        given.path,
        named,
        filter=wanted,
        target=given.target,
        dry_run=given.dry_run,
        keeping=given.keeping.value(),
    )
    if given.as_json:
        emit_json({"index": str(given.path), **report.to_dict()})
    else:
        _print_edit(report, given.path, "would be deleted" if given.dry_run else "deleted")
        given.keeping.tell(report.collected)
        if report.missing:
            some = ", ".join(repr(one) for one in report.missing[:_MOST_NAMED])
            rest = ", ..." if len(report.missing) > _MOST_NAMED else ""
            click.echo(f"{len(report.missing):,} not in the index: {some}{rest}")
    return PARTIAL if report.missing else OK


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackArguments:
    path: Path = index_option()
    to: int = option(
        "--to", required=True, type=click.IntRange(min=0), help="A version that is kept."
    )
    as_json: bool = json_option()


@click.command(
    epilog="\b\nExamples:\n"
    "  diptych index history --index photos.index\n"
    "  diptych index rollback --index photos.index --to 41"
)
@takes(RollbackArguments)
def rollback(given: RollbackArguments) -> None:
    """Make the content of an earlier version the newest.

    What was deleted since stays deleted. The versions in between are kept, so that a rollback can
    be taken back by another.
    """
    from indexer.maintain.edit import rollback as go_back

    report = go_back(given.path, given.to)
    if given.as_json:
        emit_json({"index": str(given.path), **report.to_dict()})
    else:
        _print_edit(report, given.path, "of it stayed deleted")


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeIndexArguments:
    """Of commands that ask for nothing but an index."""

    path: Path = index_option()
    as_json: bool = json_option()


@click.command(
    epilog="\b\nExample:\n  diptych index purge --index photos.index --json > receipt.json"
)
@takes(WholeIndexArguments)
def purge(given: WholeIndexArguments) -> int:
    """Take every byte of deleted and replaced items out of the index's files.

    Segments are written anew without them, older versions removed, lines naming them taken out of
    <index>.rejects.jsonl, and every file searched for what was removed; the result is the receipt.
    Ids stay on the erasure list, as hashes. Copies, backups, and a server that still has an older
    version open keep what they have; a rejects file elsewhere is yours to remove.

    Exits with 3 when something was found that the index did not put there.
    """
    from indexer.maintain.purge import purge as purge_index

    report = purge_index(given.path)
    if given.as_json:
        emit_json({"index": str(given.path), **report.to_dict()})
    else:
        click.echo(f"{given.path}: version {report.version} is the only one left")
        click.echo(
            f"{report.rows:,} rows and {report.versions:,} versions removed; "
            f"{size(report.bytes_before)} before, {size(report.bytes_after)} now"
        )
        click.echo(
            f"{report.sought:,} strings of removed items sought in {report.files:,} files: "
            + (f"found in {', '.join(report.found)}" if report.found else "none found")
        )
    if report.structures:
        note(
            f"{report.structures} segments lost their search structure and are searched exactly; "
            "`diptych index optimize` makes new ones."
        )
    return PARTIAL if report.found else OK


@click.command(epilog="\b\nExample:\n  diptych index history --index photos.index")
@takes(WholeIndexArguments)
def history(given: WholeIndexArguments) -> None:
    """List the versions an index keeps, newest first."""
    from indexer.store.history import history as versions

    found = versions(given.path)
    if given.as_json:
        emit_json({"index": str(given.path), "versions": [one.to_dict() for one in found]})
        return
    click.echo(
        f"{'version':>8}  {'date':<25}  {'operation':<9}  {'images':>10}  {'texts':>10}  "
        f"{'bytes':>10}"
    )
    for one in found:
        if one.problem is not None:
            click.echo(f"{one.version:>8}  damaged: {one.problem}")
            continue
        click.echo(
            f"{one.version:>8}  {one.created:<25}  {one.operation or '-':<9}  {one.images:>10,}  "
            f"{one.texts:>10,}  {size(one.bytes):>10}{'  current' if one.current else ''}"
        )


def _read_ids(lines: TextIO) -> list[str]:
    """One id a line; a line that is a JSON object gives its `id`."""
    ids = []
    try:
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if text.startswith("{"):
                try:
                    text = json.loads(text)["id"]
                except (ValueError, KeyError, RecursionError) as error:
                    raise click.UsageError(f"--ids, line {number}: no object with an id") from error
            if not isinstance(text, str):
                raise click.UsageError(f"--ids, line {number}: an id is text")
            if text:
                ids.append(text)
    except UnicodeDecodeError as error:
        raise click.UsageError(f"--ids: {error}") from error
    return ids


def _print_edit(report: EditReport, path: Path, what: str) -> None:
    click.echo(f"{report.removed_images:,} images and {report.removed_texts:,} texts {what}")
    click.echo(
        f"{path}: {report.images:,} images and {report.texts:,} texts in version {report.version}"
    )
