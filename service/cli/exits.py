"""The one place that turns errors into exit codes and one-line messages; `MEANINGS` has them all.

`main` calls it, and so do the other entry points (`service.demo`, `service.recipes`).
"""

from __future__ import annotations

import sys
from typing import Final, NoReturn

import click

from models.errors import (
    DiptychError,
    EncoderMismatchError,
    IndexCorruptError,
    IndexLockedError,
    NoSpaceError,
    StorageError,
)

OK: Final = 0
DEFECT: Final = 1
USAGE: Final = 2
PARTIAL: Final = 3
CORRUPT: Final = 4
LOCKED: Final = 5
NO_SPACE: Final = 6
STORAGE: Final = 7
DIVERGED: Final = 8
INTERRUPTED: Final = 130
TERMINATED: Final = 143

MEANINGS: Final = {
    OK: "done",
    DEFECT: "a defect of ours (please report the traceback)",
    USAGE: "wrong option, value, path or model",
    PARTIAL: "done, but some items were rejected (the rejects file names each)",
    CORRUPT: "the index is damaged or belongs to another model",
    LOCKED: "another writer holds the index",
    NO_SPACE: "no space left (the previous version of the index is intact)",
    STORAGE: "the system refused to read or write: I/O error, read-only, no file locks",
    DIVERGED: "training diverged (the last good state is kept)",
    INTERRUPTED: "interrupted by Ctrl-C",
    TERMINATED: "terminated",
}
"""Every code a command ends with, as `diptych --help` lists them."""

_CODES: tuple[tuple[type[DiptychError], int], ...] = (
    (IndexCorruptError, CORRUPT),
    (EncoderMismatchError, CORRUPT),
    (IndexLockedError, LOCKED),
    (NoSpaceError, NO_SPACE),
    (StorageError, STORAGE),
)


def exit_code(error: DiptychError) -> int:
    """The documented exit code of a domain error; anything not listed is a usage error."""
    if error.code == "loss-not-finite":
        return DIVERGED
    return next((code for kind, code in _CODES if isinstance(error, kind)), USAGE)


def one_line(error: DiptychError) -> str:
    """`diptych: message (what to do)` on a single line, whatever the message held."""
    text = f"{error.message} ({error.hint})" if error.hint else error.message
    return "diptych: " + " ".join(text.split())


def run_and_exit(command: click.Command) -> NoReturn:
    """Run a command on the process's arguments and exit with a documented code.

    A command answers its code, or None where all went well.
    """
    try:
        code = command.main(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("diptych: interrupted", err=True)
        sys.exit(INTERRUPTED)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except DiptychError as error:
        click.echo(one_line(error), err=True)
        sys.exit(exit_code(error))
    sys.exit(code if isinstance(code, int) else OK)
