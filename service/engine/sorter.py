"""Pictures into one folder per label, by copy, link or move, so that all of it can be undone.

Before anything on disk changes, one line that says what is about to happen is in the undo file and
fsynced. A kill at any instant therefore leaves at most one action half done, and
`service.engine.undo` can tell from the files themselves how far it came. Nothing is ever
overwritten, and a moved picture exists under one of its two names at every instant. Knows nothing
of models or of the command line; `Placer` alone knows what a picture was found to be.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

from indexer.files.fs import Fs, storage_error
from models.errors import ImageError
from models.sources.files import file_of, name_of
from models.sources.records import Record
from service.engine.label_sets import LabelSet
from service.engine.queries import ImageResult

By: TypeAlias = Literal["copy", "link", "move"]

NONE = "_none"
"""The folder of pictures that are none of the labels."""
FORMAT = 1
_NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS})
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_MAX_NAME_BYTES = 120


def folder_names(paths: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """A folder for each label: safe on every file system, and no two labels share one.

    Characters that some file system refuses become `_`; names that differ only in case or in
    Unicode composition, or not at all once they are safe, get a number.
    """
    taken: dict[tuple[str, ...], set[str]] = {(): {NONE}}
    chosen: dict[tuple[str, ...], tuple[str, ...]] = {(): ()}
    for path in paths:
        for depth in range(1, len(path) + 1):
            node, parent = path[:depth], chosen[path[: depth - 1]]
            if node in chosen:
                continue
            used = taken.setdefault(parent, set())
            safe = safe_name(node[-1])
            name, number = safe, 2
            while _folded(name) in used:
                name, number = f"{safe}-{number}", number + 1
            used.add(_folded(name))
            chosen[node] = (*parent, name)
    return chosen


def safe_name(text: str) -> str:
    """The text as one name that no file system refuses and no shell hides."""
    name = _UNSAFE.sub("_", unicodedata.normalize("NFC", text)).strip(" .")
    name = name.encode("utf-8", "replace")[:_MAX_NAME_BYTES].decode("utf-8", "ignore").rstrip(" .")
    return "_" + name if not name or _RESERVED.fullmatch(name) else name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


class Sorter:
    """Places pictures and writes the undo file; use as a context manager.

    Args:
        root: the folder of the label folders; made if missing.
        undo: the undo file, which must not exist; by default a new one in `root`.

    Raises:
        NoSpaceError, StoreError: from the constructor and from `place`, when the disk is full or a
            folder or the undo file cannot be written.
    """

    def __init__(self, root: Path, by: By, undo: Path | None = None) -> None:
        self._root = Path(os.path.abspath(root))  # noqa: PTH100  # without following links
        self._by = by
        self._fs = Fs()
        self.placed = 0
        made = [folder for folder in (self._root, *self._root.parents) if not folder.exists()]
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self.undo_file, self._fd = _open_undo(self._root, undo)
        except OSError as error:
            raise storage_error(error, "write in", root) from error
        self._log({"diptych": "sort", "format": FORMAT, "by": by, "root": str(self._root)})
        for folder in reversed(made):
            self._log({"do": "mkdir", "target": str(folder)})
        self._fs.sync_dir(self.undo_file.parent)

    def __enter__(self) -> Sorter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def place(self, source: Path | None, data: bytes, name: str, folder: Sequence[str]) -> Path:
        """Put one picture into `root`/`folder` under `name`, or a numbered one if that is taken.

        Args:
            source: the picture's file; None for a member of an archive, which can only be copied.
            data: its content, as classified.

        Returns:
            Where it is now.

        Raises:
            OSError: this picture could not be placed; it is where it was.
        """
        directory = self._root
        for part in folder:
            directory = directory / part
            if not directory.is_dir():
                self._log({"do": "mkdir", "target": str(directory)})
                directory.mkdir()
        number = 1
        while True:
            target = directory / numbered(name, number)
            number += 1
            if os.path.lexists(target):
                continue
            try:
                self._one(source, data, target)
            except FileExistsError:
                # somebody else was quicker; undoing must not take their file for ours
                self._log({"do": "nothing", "target": str(target)})
                continue
            self.placed += 1
            return target

    def _one(self, source: Path | None, data: bytes, target: Path) -> None:
        partial = target.with_name(f".diptych-{secrets.token_hex(8)}.partial")
        entry = {"do": self._by, "source": None if source is None else str(source)}
        entry["target"] = str(target)
        if self._by == "link":
            assert source is not None, "members of archives cannot be linked to"
            self._log(entry)
            target.symlink_to(source)
            return
        self._log(entry | {"partial": str(partial), "sha256": hashlib.sha256(data).hexdigest()})
        if self._by == "copy":
            place_copy(data, partial, target, like=source)
            return
        assert source is not None, "members of archives cannot be moved"
        move(source, target, partial)

    def _log(self, entry: dict[str, Any]) -> None:
        # ASCII escapes keep names that are not UTF-8, as lone surrogates
        line = json.dumps(entry, ensure_ascii=True).encode("ascii") + b"\n"
        try:
            os.write(self._fd, line)
            os.fsync(self._fd)
        except OSError as error:
            raise storage_error(error, "write", self.undo_file) from error


class Placer:
    """Where each judged picture goes: the folder of its most likely label, or of none of these.

    Args:
        root: as the sorter's.
        level: of labels that are paths, the depth at which they were answered.
        sorter: puts the pictures there; without one it is only told where they would go.
    """

    def __init__(
        self, root: Path, label_set: LabelSet, level: int | None, sorter: Sorter | None = None
    ) -> None:
        self._root = Path(os.path.abspath(root))  # noqa: PTH100  # without following links
        self._folders = folder_names(label_set.paths(level))
        self._planned: set[Path] = set()
        self._sorter = sorter

    def holds(self, record: Record) -> bool:
        """Whether a picture is inside already: sorting a folder into itself must come to an end."""
        file = file_of(record.uri)
        return file is not None and file.is_relative_to(self._root)

    def place(self, record: Record, result: ImageResult) -> Path:
        """Where the picture is now, or would be.

        Raises:
            ImageError: code `not-sorted`; it is where it was.
            NoSpaceError: the disk is full.
        """
        assert record.image is not None, "only pictures are classified"
        best = result.predictions[0]
        path = (best.label,) if best.path is None else best.path
        folder = (NONE,) if result.abstained else self._folders[path]
        file = file_of(record.uri)
        name = safe_name(name_of(record)) if file is None else file.name
        if self._sorter is None:
            return self._plan(folder, name)
        try:
            if file is not None and file.is_symlink():
                raise OSError(errno.ELOOP, "a symbolic link is not sorted")
            return self._sorter.place(file, record.image, name, folder)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise storage_error(error, "sort into", self._root) from error
            raise ImageError(f"not sorted: {error.strerror}", code="not-sorted") from error

    def _plan(self, folder: Sequence[str], name: str) -> Path:
        number = 1
        while True:
            target = self._root.joinpath(*folder, numbered(name, number))
            number += 1
            if target not in self._planned and not os.path.lexists(target):
                self._planned.add(target)
                return target


def numbered(name: str, number: int) -> str:
    """`a.jpg`, `a-2.jpg`, `a-3.jpg`, ..."""
    if number == 1:
        return name
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}-{number}.{suffix}" if dot and stem else f"{name}-{number}"


def place_copy(data: bytes, partial: Path, target: Path, *, like: Path | None = None) -> None:
    """Write `data` under `target`, which must not exist; whole or not at all.

    Raises:
        FileExistsError: `target` exists.
    """
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        if like is not None:
            with suppress(OSError):
                status = like.stat()
                os.utime(partial, ns=(status.st_atime_ns, status.st_mtime_ns))
        publish(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def move(source: Path, target: Path, partial: Path) -> None:
    """Move a file to `target`, which must not exist, across file systems too.

    At every instant the whole file exists under one of the two names: the new one is durable
    before the old one goes.

    Raises:
        FileExistsError: `target` exists.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        place_copy(source.read_bytes(), partial, target, like=source)
    sync_directory(target.parent)
    try:
        source.unlink()
    except OSError:
        # a folder that may not be written: rather where it was than in two places
        target.unlink()
        raise


def publish(partial: Path, target: Path) -> None:
    """Give a finished file its name without replacing another.

    Raises:
        FileExistsError: `target` exists.
    """
    try:
        os.link(partial, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # no hard links here (FAT): reserve the name, then replace the empty file by the whole one
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        partial.replace(target)
    sync_directory(target.parent)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open_undo(root: Path, undo: Path | None) -> tuple[Path, int]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    if undo is not None:
        return undo, os.open(undo, flags, 0o644)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        path = root / numbered(f"undo-{stamp}.jsonl", number)
        with suppress(FileExistsError):
            return path, os.open(path, flags, 0o644)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(root))
