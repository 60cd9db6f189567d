"""`diptych index duplicates`: groups of pictures that are the same or nearly so."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from indexer.search.options import NEAR_DUPLICATE
from service.cli.options import index_option, json_option, option, takes
from service.cli.output import emit_json, note, progress_bar

if TYPE_CHECKING:
    from indexer.search.duplicates import Group, GroupMember


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicatesArguments:
    path: Path = index_option()
    threshold: float | None = option(
        "--threshold",
        type=click.FloatRange(0.0, 1.0, min_open=True),
        help=f"Cosine from which two pictures count as the same. [default: {NEAR_DUPLICATE}]",
    )
    same_pixels: bool = option(
        "--same-pixels", is_flag=True, help="Only pictures whose every pixel is the same."
    )
    exact: bool = option(
        "--exact",
        is_flag=True,
        help="Compare every pair, also where the index has a search structure: hours for a "
        "million.",
    )
    only_ids: bool = option(
        "--ids",
        is_flag=True,
        help="Print the ids of all but the picture to keep of each group, one a line.",
    )
    as_json: bool = json_option()


@click.command(
    epilog="\b\nExamples:\n"
    "  diptych index duplicates --index photos.index\n"
    "  diptych index duplicates --index photos.index --threshold 0.98 --json\n"
    "  diptych index duplicates --index photos.index --ids | "
    "diptych index delete --index photos.index --ids -\n\n"
    "The embedding sees what a picture shows, not its every detail: look at what is near before "
    "deleting it. What has the same pixels (--same-pixels) is safe."
)
@takes(DuplicatesArguments)
def duplicates(given: DuplicatesArguments) -> None:
    """List groups of near-duplicate pictures, the one to keep first.

    To keep is the largest in pixels, then in bytes, then the one indexed first. Every other
    picture of a group is close to that one. Nothing is deleted.

    A large index that was optimized is asked for the neighbours of each picture: whatever is listed
    is as close as it says, and a few may be missed, as in search.
    """
    from indexer.format.version import open_version
    from indexer.search.duplicates import find_duplicates

    if given.only_ids and given.as_json:
        raise click.UsageError("give either --ids or --json")
    cosine = NEAR_DUPLICATE if given.threshold is None else given.threshold
    version = open_version(given.path)
    found = []
    try:
        with progress_bar("comparing", "img") as bar:
            every = find_duplicates(version, cosine, exact=given.exact, on_progress=bar.to)
            for group in every:
                kept = _same_pixels(group) if given.same_pixels else group
                if not kept.others:
                    continue
                if given.as_json:
                    found.append(kept.to_dict())
                elif given.only_ids:
                    _print_ids(kept)
                else:
                    _print(kept)
    finally:
        version.close()
    if not every.exact:
        note("found through the search structure, which misses a few; --exact compares every pair")
    if given.as_json:
        emit_json(
            {
                "index": str(given.path),
                "version": version.manifest.version,
                "threshold": cosine,
                "exact": every.exact,
                "groups": found,
            }
        )


def _same_pixels(group: Group) -> Group:
    same = tuple(one for one in group.others if one.kind == "same-pixels")
    return replace(group, others=same)


def _print_ids(group: Group) -> None:
    for one in group.others:
        if "\n" in one.id or "\r" in one.id:
            note(f"{one.id!r} holds a line break; delete it by itself")
        else:
            click.echo(one.id)


def _print(group: Group) -> None:
    click.echo(f"keep         {_about(group.keep)}")
    for one in group.others:
        click.echo(f"{one.kind:<11}  {_about(one)}  {one.cosine:.3f}")
    click.echo()


def _about(one: GroupMember) -> str:
    name = "".join(c if c.isprintable() else " " for c in one.id)
    return name if one.width is None else f"{name}  {one.width} x {one.height}, {one.bytes:,} B"
