"""The rejects file: one JSON object a line, `{source, key, code, detail}`, for every refusal.

It is a report, not part of the index: written as the run goes, flushed at the end, not fsynced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Protocol, TextIO

from indexer.files.fs import storage_error
from indexer.format.erasures import Erasures
from models.sources.records import Reject

_MAX_DETAIL: Final = 500


def rejects_path(root: Path) -> Path:
    """Where builds put the rejects of an index unless told otherwise: beside it."""
    return root.absolute().with_name(root.absolute().name + ".rejects.jsonl")


class Rejects(Protocol):
    """Where a build puts what was refused; `count` is how many there were."""

    count: int

    def add(self, reject: Reject) -> None: ...


class RejectsList:
    """Keeps rejects in memory, for callers that hand over few records."""

    def __init__(self) -> None:
        self.rejects: list[Reject] = []
        self.count = 0

    def add(self, reject: Reject) -> None:
        self.rejects.append(reject)
        self.count += 1


class RejectsFile:
    """Appends rejects to a file that is made on the first one; a file of an earlier run is removed.

    Raises (every method):
        NoSpaceError, StoreError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file: TextIO | None = None
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, "replace", path) from error

    def add(self, reject: Reject) -> None:
        # a hostile source must not be able to fill the disk through its error messages
        entry = {key: value[:_MAX_DETAIL] for key, value in reject.to_dict().items()}
        try:
            if self._file is None:
                self._file = self.path.open("x", encoding="utf-8")
            # ASCII: keys may hold what no encoding can print
            self._file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise storage_error(error, "write", self.path) from error
        self.count += 1

    def close(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
        except OSError as error:
            raise storage_error(error, "write", self.path) from error


def scrub_rejects(path: Path, erasures: Erasures) -> int:
    """Take the lines that name erased items, or texts of theirs, out of a rejects file.

    Returns:
        How many there were. A file that is not there, or not ours, is left alone.

    Raises:
        NoSpaceError, StoreError: the file cannot be read or replaced.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines(keepends=True)
        kept = [line for line in lines if not _names_erased(line, erasures)]
        if len(kept) < len(lines):
            partial = path.with_name(path.name + ".partial")
            partial.write_text("".join(kept), encoding="ascii")
            partial.replace(path)
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError):
        return 0
    except OSError as error:
        raise storage_error(error, "replace", path) from error
    return len(lines) - len(kept)


def _names_erased(line: str, erasures: Erasures) -> bool:
    key = json.loads(line)["key"]
    return key in erasures or key.rpartition("#")[0] in erasures
