"""The one place that turns errors into exit codes and one-line messages.

  0  everything done
  1  a defect of ours: please report it (the traceback follows)
  2  usage: a wrong option, value, path or model
  3  partial: done, but some items were rejected; the rejects file names each
  4  the index is damaged, or belongs to another encoder pair
  5  another writer holds the index
  6  no space left; the previous version of the index is intact
  7  the system refused to read or write: I/O error, read-only, no file locks; as intact as with 6
  8  training diverged: a loss or gradient was not finite; the last good state is kept
130  interrupted (Ctrl-C); 143 terminated
"""

from __future__ import annotations

from models.errors import (
    DiptychError,
    EncoderMismatchError,
    IndexCorruptError,
    IndexLockedError,
    NoSpaceError,
    StorageError,
)

OK = 0
DEFECT = 1
USAGE = 2
PARTIAL = 3
CORRUPT = 4
LOCKED = 5
NO_SPACE = 6
STORAGE = 7
DIVERGED = 8
INTERRUPTED = 130

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
