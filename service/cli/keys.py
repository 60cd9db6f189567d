"""`diptych keys`: make, list and revoke the API keys of `diptych serve --keys`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.cli.exits import OK
from service.cli.output import emit_json, json_option, note

if TYPE_CHECKING:
    from datetime import timedelta

    from service.http.middleware.keys import StoredKey

_UNITS = {"h": 1, "d": 24, "w": 24 * 7}

file_option = click.option(
    "--file",
    "file",
    metavar="FILE",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The key file. It holds digests only.",
)


def _validity(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> timedelta | None:
    from datetime import timedelta

    if value is None:
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", value)
    if match is None:
        raise click.BadParameter("write it as 12h, 90d or 52w", context, parameter)
    return timedelta(hours=int(match[1]) * _UNITS[match[2]])


@click.group(
    epilog="\b\nExamples:\n  diptych keys new --file keys.json --name laptop\n"
    "  diptych serve --index photos.index --host 0.0.0.0 --keys keys.json\n"
    "  diptych keys revoke --file keys.json s8wLhmAlPG"
)
def keys() -> None:
    """Make, list and revoke API keys.

    A running service sees every change within a second. To replace a key without a gap: make the
    new one, hand it out, then revoke the old one.
    """


@keys.command(
    epilog="\b\nExamples:\n  diptych keys new --file keys.json --name laptop\n"
    "  diptych keys new --file keys.json --name importer --scope read --scope write --expires 90d"
)
@file_option
@click.option("--name", default="", help="Whose key it is; shown by list.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(["read", "write"]),
    multiple=True,
    default=("read",),
    show_default=True,
    help="What it allows: search and look (read), change label sets and items (write). Repeatable.",
)
@click.option(
    "--expires", "valid_for", metavar="12h|90d|52w", callback=_validity, help="[default: never]"
)
@json_option
def new(
    file: Path, name: str, scopes: tuple[str, ...], valid_for: timedelta | None, as_json: bool
) -> int:
    """Make a key and print it, once: the file keeps only its digest."""
    from service.http.middleware.keys import SCOPES, KeyFile, mint

    wanted = [scope for scope in SCOPES if scope in scopes]
    key, stored = mint(name, wanted, valid_for=valid_for)
    KeyFile(file).add(stored)
    if as_json:
        emit_json({"key": key, **_described(stored)})
    else:
        note(f"Key {stored.id}, {' and '.join(stored.scopes)}. It is shown this once:")
        click.echo(key)
    return OK


@keys.command(name="list", epilog="\b\nExamples:\n  diptych keys list --file keys.json --json")
@file_option
@json_option
def list_keys(file: Path, as_json: bool) -> int:
    """List the keys by id; what they are cannot be told."""
    from datetime import UTC, datetime

    from service.http.middleware.keys import KeyFile

    stored = KeyFile(file).read()
    if as_json:
        emit_json({"keys": [_described(key) for key in stored]})
        return OK
    now = datetime.now(UTC)
    for key in stored:
        until = "" if key.expires is None else f"  until {key.expires:%Y-%m-%d %H:%M}"
        state = " (expired)" if key.expired(now) else ""
        scopes = ",".join(key.scopes)
        click.echo(f"{key.id}  {scopes:10}  {key.created:%Y-%m-%d}{until}{state}  {key.name}")
    return OK


@keys.command(epilog="\b\nExamples:\n  diptych keys revoke --file keys.json s8wLhmAlPG")
@file_option
@click.argument("identity", metavar="ID")
@json_option
def revoke(file: Path, identity: str, as_json: bool) -> int:
    """Revoke the key of an ID. A running service refuses it within a second."""
    from service.http.middleware.keys import KeyFile

    gone = KeyFile(file).revoke(identity)
    if as_json:
        emit_json({"revoked": _described(gone)})
    else:
        click.echo(f"Revoked {gone.id}.")
    return OK


def _described(key: StoredKey) -> dict[str, object]:
    return key.model_dump(mode="json", exclude={"sha256"})
