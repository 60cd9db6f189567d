"""`diptych keys`: make, list and revoke the API keys of `diptych serve --keys`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.cli.exits import OK
from service.cli.options import NEW_FILE, argument, json_option, option, takes
from service.cli.output import emit_json, note

if TYPE_CHECKING:
    from datetime import timedelta

    from service.http.middleware.keys import StoredKey

_UNITS = {"h": 1, "d": 24, "w": 24 * 7}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFileArguments:
    file: Path = option(
        "--file",
        metavar="FILE",
        required=True,
        type=NEW_FILE,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKeyArguments(KeyFileArguments):
    name: str = option("--name", default="", help="Whose key it is; shown by list.")
    scopes: tuple[str, ...] = option(
        "--scope",
        type=click.Choice(["read", "write"]),
        multiple=True,
        default=("read",),
        show_default=True,
        help="What it allows: search and look (read), change label sets and items (write). "
        "Repeatable.",
    )
    valid_for: timedelta | None = option(
        "--expires", metavar="12h|90d|52w", callback=_validity, help="[default: never]"
    )
    as_json: bool = json_option()


@keys.command(
    epilog="\b\nExamples:\n  diptych keys new --file keys.json --name laptop\n"
    "  diptych keys new --file keys.json --name importer --scope read --scope write --expires 90d"
)
@takes(NewKeyArguments)
def new(given: NewKeyArguments) -> int:
    """Make a key and print it, once: the file keeps only its digest."""
    from service.http.middleware.keys import SCOPES, KeyFile, mint

    wanted = [scope for scope in SCOPES if scope in given.scopes]
    key, stored = mint(given.name, wanted, valid_for=given.valid_for)
    KeyFile(given.file).add(stored)
    if given.as_json:
        emit_json({"key": key, **_described(stored)})
    else:
        note(f"Key {stored.id}, {' and '.join(stored.scopes)}. It is shown this once:")
        click.echo(key)
    return OK


@dataclass(frozen=True, slots=True, kw_only=True)
class ListKeysArguments(KeyFileArguments):
    as_json: bool = json_option()


@keys.command(name="list", epilog="\b\nExamples:\n  diptych keys list --file keys.json --json")
@takes(ListKeysArguments)
def list_keys(given: ListKeysArguments) -> int:
    """List the keys by id; what they are cannot be told."""
    from datetime import UTC, datetime

    from service.http.middleware.keys import KeyFile

    stored = KeyFile(given.file).read()
    if given.as_json:
        emit_json({"keys": [_described(key) for key in stored]})
        return OK
    now = datetime.now(UTC)
    for key in stored:
        until = "" if key.expires is None else f"  until {key.expires:%Y-%m-%d %H:%M}"
        state = " (expired)" if key.expired(now) else ""
        scopes = ",".join(key.scopes)
        click.echo(f"{key.id}  {scopes:10}  {key.created:%Y-%m-%d}{until}{state}  {key.name}")
    return OK


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeKeyArguments(KeyFileArguments):
    identity: str = argument(metavar="ID", required=True)
    as_json: bool = json_option()


@keys.command(epilog="\b\nExamples:\n  diptych keys revoke --file keys.json s8wLhmAlPG")
@takes(RevokeKeyArguments)
def revoke(given: RevokeKeyArguments) -> int:
    """Revoke the key of an ID. A running service refuses it within a second."""
    from service.http.middleware.keys import KeyFile

    gone = KeyFile(given.file).revoke(given.identity)
    if given.as_json:
        emit_json({"revoked": _described(gone)})
    else:
        click.echo(f"Revoked {gone.id}.")
    return OK


def _described(key: StoredKey) -> dict[str, object]:
    return key.model_dump(mode="json", exclude={"sha256"})
