"""Take back what a sorting run did, from its undo file; see `service.engine.sorter`.

Actions are taken back last first. How far a killed run came is read off the files themselves, so
taking back can itself be killed and run again, and running it twice changes nothing. A picture is
only ever removed where the same picture stands under its old name.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.errors import InputError
from service.engine.sorter import FORMAT, move

_KEYS = {
    "mkdir": {"target"},
    "nothing": {"target"},
    "link": {"source", "target"},
    "copy": {"source", "target", "partial", "sha256"},
    "move": {"source", "target", "partial", "sha256"},
}


@dataclass(slots=True)
class UndoReport:
    """`restored` actions were taken back now; `kept` could not be: (path, why)."""

    restored: int = 0
    kept: list[tuple[str, str]] = field(default_factory=list)


def read_undo_file(path: Path) -> list[dict[str, Any]]:
    """The actions of an undo file, in the order they were begun.

    A last line without its end was never acted on: the action waits for the line to be durable.

    Raises:
        InputError: unreadable, or not an undo file.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    whole = lines[:-1]
    try:
        header, *entries = [json.loads(line) for line in whole]
        if header.get("diptych") != "sort" or header.get("format") != FORMAT:
            raise ValueError("no header")
        for entry in entries:
            if set(entry) - {"do"} != _KEYS[entry["do"]] or not isinstance(entry["target"], str):
                raise ValueError("an unknown action")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not an undo file",
            hint="diptych classify --sort-into names the one it wrote",
        ) from error
    actions: list[dict[str, Any]] = []
    for entry in entries:
        if entry["do"] != "nothing":
            actions.append(entry)
        elif actions and actions[-1]["target"] == entry["target"]:
            # given up because someone else took the name meanwhile: what stands there is theirs
            actions.pop()
    return actions


def undo(path: Path) -> UndoReport:
    """Take back everything the undo file names that is not taken back yet.

    Raises:
        InputError: see `read_undo_file`.
    """
    report = UndoReport()
    take_back = {"mkdir": _folder, "link": _link, "copy": _copy, "move": _move}
    for entry in reversed(read_undo_file(path)):
        try:
            report.restored += take_back[entry["do"]](entry)
        except _KeptError as kept:
            report.kept.append((entry["target"], str(kept)))
        except OSError as error:
            report.kept.append((entry["target"], error.strerror or str(error)))
    return report


class _KeptError(Exception):
    """Why something was left as it is."""


def _folder(entry: dict[str, Any]) -> bool:
    # a folder that holds something else now stays, and that is no fault
    with suppress(OSError):
        Path(entry["target"]).rmdir()
    return False


def _link(entry: dict[str, Any]) -> bool:
    target = Path(entry["target"])
    if not os.path.lexists(target):
        return False
    if not target.is_symlink() or os.readlink(target) != entry["source"]:  # noqa: PTH115
        raise _KeptError("is not the link that was made")
    target.unlink()
    return True


def _copy(entry: dict[str, Any]) -> bool:
    target = Path(entry["target"])
    Path(entry["partial"]).unlink(missing_ok=True)
    if not os.path.lexists(target):
        return False
    if not target.is_file() or target.is_symlink():
        raise _KeptError("is not the copy that was made")
    size = target.stat().st_size
    if size and _sha256(target) != entry["sha256"]:
        raise _KeptError("was changed since it was copied")
    target.unlink()
    return True


def _move(entry: dict[str, Any]) -> bool:
    source, target = Path(entry["source"]), Path(entry["target"])
    Path(entry["partial"]).unlink(missing_ok=True)
    here, there = os.path.lexists(source), os.path.lexists(target)
    if not there:
        if not here:
            raise _KeptError("is gone, and so is the original")
        return False
    if not here:
        source.parent.mkdir(parents=True, exist_ok=True)
        move(target, source, source.with_name(f".diptych-{secrets.token_hex(8)}.partial"))
        return True
    # killed between the new name and the end of the old one, or something new under the old name
    reserved = target.stat().st_size == 0
    if not (reserved or source.samefile(target) or _sha256(source) == _sha256(target)):
        raise _KeptError(f"would replace another file at {source}")
    target.unlink()
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
