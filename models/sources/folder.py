"""A folder of pictures, read recursively, with captions beside them.

`cat.jpg` may have `cat.txt` (one caption a line) or `cat.json` (captions, label, attributes)
next to it. Hidden files and the thumbnail folders of cameras and network drives are passed over
in silence; everything else that is not a plain picture is a `Reject`. Symbolic links are never
followed, so a loop cannot trap a run and a link cannot lead out of the folder.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

from models.errors import SourceError
from models.sources.fields import (
    MAX_TEXT_BYTES,
    Fields,
    ReadOptions,
    caption_lines,
    interpret,
    parse_object,
)
from models.sources.files import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    absolute,
    display_name,
    file_uri,
    open_directory,
    origin_of,
    read_regular,
    refused_by_os,
    suffix_of,
)
from models.sources.records import (
    Kept,
    Plan,
    Record,
    RefusedError,
    Reject,
    Row,
    SeenKeys,
    Skip,
    Source,
    Stamp,
)

_Listing: TypeAlias = dict[bytes, os.stat_result]
_Sidecars: TypeAlias = dict[tuple[bytes, str], bytes]
_READING = b"1"
"""Changes whenever the same files would give another record."""
_SKIPPED_NAMES = frozenset({b"@eaDir", b"__MACOSX", b"$RECYCLE.BIN", b"lost+found"})


class FolderSource(Source):
    """Rows in a stable order: a directory's files in byte order, then its subdirectories."""

    kind = "folder"
    keys_are_paths = True

    def __init__(self, path: str | Path, options: ReadOptions) -> None:
        """Raises SourceError for a pattern that is none."""
        self.name = str(path)
        self._root = absolute(path)
        self._options = options
        self._globs = Globs(options.include, options.exclude)
        chosen = (
            tuple(options.text_field), options.label_field,
            None if options.attribute_fields is None else tuple(options.attribute_fields),
        )  # fmt: skip
        self._origin = origin_of(path)
        self._salt = _READING + repr(chosen).encode()

    def count(self) -> int:
        """Pictures by name, from directory listings alone: nothing is asked of the files."""
        total, stack = 0, [b""]
        while stack:
            directory = stack.pop()
            try:
                with os.scandir(os.path.join(self._root, directory)) as entries:  # noqa: PTH118
                    for entry in entries:
                        if _passed_over(entry.name):
                            continue
                        path = _join(directory, entry.name)
                        if entry.is_dir(follow_symlinks=False):
                            if not self._globs.pruned(path):
                                stack.append(path)
                        elif suffix_of(entry.name) in IMAGE_SUFFIXES:
                            is_file = entry.is_file(follow_symlinks=False)
                            total += is_file and self._globs.wanted(path)
            except OSError:  # iterating tells
                continue
        return total

    def plan(self) -> Plan:
        """From directory listings; sidecars are not counted."""
        sizes = list(self._sizes())
        total = sum(sizes)
        return Plan(len(sizes), len(sizes), total, total, exact=True)

    def _sizes(self) -> Iterator[int]:
        for directory, listing in self._directories():
            if isinstance(listing, RefusedError):
                continue
            for name, status in listing.items():
                is_picture = suffix_of(name) in IMAGE_SUFFIXES and stat.S_ISREG(status.st_mode)
                if is_picture and self._globs.wanted(_join(directory, name)):
                    yield status.st_size

    def __iter__(self) -> Iterator[Row]:
        for row in self.rows_unless(lambda *_: False):
            assert not isinstance(row, Kept)
            yield row

    def rows_unless(self, skip: Skip) -> Iterator[Row | Kept]:
        seen = SeenKeys()
        for directory, listing in self._directories():
            if isinstance(listing, RefusedError):
                yield self._reject(directory + b"/", listing)
                continue
            sidecars = {
                (name.rpartition(b".")[0], suffix_of(name)): name
                for name in listing
                if suffix_of(name) in ("txt", "json")
            }
            for name in listing:
                if not self._globs.wanted(_join(directory, name)):
                    continue
                for row in self._rows(directory, name, listing, sidecars, skip):
                    # two names are shown alike only where bytes had to be escaped
                    escaped = not isinstance(row, Reject) and "\\" in row.key
                    if escaped and not seen.add(row.key):
                        yield Reject(self.name, row.key, "duplicate-key", "the key occurs twice")
                    else:
                        yield row

    def _directories(self) -> Iterator[tuple[bytes, _Listing | RefusedError]]:
        """(relative directory, its files in byte order or why it cannot be read).

        Depth first with a stack of our own: Python's would overflow at a depth of 1,000.
        """
        stack = [b""]
        while stack:
            directory = stack.pop()
            try:
                listing = self._list(directory)
            except OSError as error:
                yield directory, refused_by_os(error)
                continue
            files: _Listing = {}
            below = []
            for name, status in listing:
                if stat.S_ISDIR(status.st_mode):
                    below.append(_join(directory, name))
                else:
                    files[name] = status
            yield directory, files
            stack += [path for path in reversed(below) if not self._globs.pruned(path)]

    def _list(self, directory: bytes) -> list[tuple[bytes, os.stat_result]]:
        found = []
        with os.scandir(os.path.join(self._root, directory)) as entries:  # noqa: PTH118 (bytes)
            for entry in entries:
                if _passed_over(entry.name):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # deleted since the directory was opened
                    continue
                found.append((entry.name, status))
        return sorted(found, key=itemgetter(0))

    def _rows(
        self, directory: bytes, name: bytes, listing: _Listing, sidecars: _Sidecars, skip: Skip
    ) -> Iterator[Row | Kept]:
        relative, mode = _join(directory, name), listing[name].st_mode
        is_picture = suffix_of(name) in IMAGE_SUFFIXES
        if stat.S_ISLNK(mode):
            if is_picture or not self._leads_to_a_file(relative):
                yield self._reject(relative, RefusedError("symlink-skipped", "a symbolic link"))
            return
        if stat.S_ISREG(mode) and not is_picture:
            return
        key, uri, stamp = display_name(relative), file_uri(_join(self._root, relative)), None
        if is_picture and stat.S_ISREG(mode):
            stamp = self._stamp(relative, name, listing, sidecars)
            if skip(key, uri, stamp):
                yield Kept(key)
                return
        try:
            # picture and sidecars are read relative to one descriptor, so they stay neighbours
            # even if the directory is renamed or replaced by a link meanwhile
            here = open_directory(os.path.join(self._root, directory))  # noqa: PTH118 (bytes)
        except OSError as error:
            yield self._reject(relative, refused_by_os(error))
            return
        try:
            image = read_regular(name, limit=MAX_IMAGE_BYTES, dir_fd=here)
            fields, problems = self._captions(name, here, sidecars)
        except RefusedError as error:
            yield self._reject(relative, error)
            return
        finally:
            os.close(here)
        for sidecar, problem in problems:
            yield self._reject(_join(directory, sidecar), problem)
        yield Record(
            key=key,
            uri=uri,
            image=image,
            texts=fields.texts,
            label=fields.label,
            attributes=fields.attributes,
            origin=self._origin,
            stamp=None if problems else stamp,
        )

    def _stamp(self, relative: bytes, name: bytes, listing: _Listing, sidecars: _Sidecars) -> Stamp:
        """Of the picture and what stands beside it, as they were listed.

        Listed before they are read: a change in between shows in the next listing. ctime is in it
        because mtime can be set back.
        """
        stem = name.rpartition(b".")[0]
        newest, parts = 0, [self._salt, relative]
        for one in (name, sidecars.get((stem, "txt")), sidecars.get((stem, "json"))):
            if one is None:
                parts.append(b"")
                continue
            of = listing[one]
            newest = max(newest, of.st_mtime_ns, of.st_ctime_ns)
            fields = of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns, of.st_mode
            parts += [one, b"%d %d %d %d %d %d" % fields]
        return Stamp(hashlib.blake2b(b"\0".join(parts), digest_size=16).digest(), newest)

    def _captions(
        self, name: bytes, here: int, sidecars: _Sidecars
    ) -> tuple[Fields, list[tuple[bytes, RefusedError]]]:
        """What stands beside a picture; a broken sidecar costs the caption, not the picture."""
        stem = name.rpartition(b".")[0]
        problems: list[tuple[bytes, RefusedError]] = []
        data: dict[str, Any] = {}
        sidecar = name
        for suffix in ("txt", "json"):
            if (stem, suffix) not in sidecars:
                continue
            sidecar = sidecars[stem, suffix]
            try:
                content = read_regular(sidecar, limit=MAX_TEXT_BYTES, dir_fd=here)
                data |= (
                    {"txt": caption_lines(content)} if suffix == "txt" else parse_object(content)
                )
            except RefusedError as error:
                if error.code != "empty-file":  # a picture whose captions were left blank
                    problems.append((sidecar, error))
        fields = Fields({}, None, {})
        try:
            fields = interpret(data, self._options)
        except RefusedError as error:
            problems.append((sidecar, error))
        return fields, problems

    def _leads_to_a_file(self, relative: bytes) -> bool:
        try:
            return stat.S_ISREG(os.stat(_join(self._root, relative)).st_mode)  # noqa: PTH116
        except OSError:  # dangling, or a loop
            return False

    def _reject(self, relative: bytes, error: RefusedError) -> Reject:
        return error.reject(self.name, display_name(relative))


def _passed_over(name: bytes) -> bool:
    return name.startswith(b".") or name in _SKIPPED_NAMES


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


_MAX_PATTERN = 1000


class Globs:
    """Which paths below a folder are wanted: any include (all, if there are none) and no exclude.

        *.jpg            a name, at any depth (no slash in the pattern)
        2024/*.jpg       a path from the top; * stays within one name
        raw/**           everything below raw;  **/raw/*.png  raw at any depth
        [ab]?.png        one of some characters, any one character

    Case counts. A folder that is excluded (`raw`, `raw/`, `raw/**`) is not entered.

    Names are matched one by one, so that no pattern takes more than patterns x names steps. Not the
    package pathspec: its patterns are git's, in which what matches a folder takes in all that is
    below it, right for leaving out and wrong for choosing (`--include 'd/*.png'` is to choose files
    of `d`); and a pattern of a dozen stars took it more than 8 s on one path. It needed 0.3 s for
    100,000 paths where this needs 0.8; listing and reading them takes a hundred times that.
    """

    def __init__(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        """Raises SourceError for a pattern that is empty or absurdly long."""
        self._include = [_parse(pattern) for pattern in include]
        self._exclude = [_parse(pattern) for pattern in exclude]

    def wanted(self, path: bytes) -> bool:
        """Whether a file is read; its path is relative, with forward slashes."""
        if not self._include and not self._exclude:
            return True
        names = os.fsdecode(path).split("/")
        included = not self._include or any(one.matches(names) for one in self._include)
        return included and not any(
            one.matches(names) for one in self._exclude if not one.only_folders
        )

    def pruned(self, path: bytes) -> bool:
        """Whether a folder is passed over whole."""
        names = os.fsdecode(path).split("/")
        return any(one.matches(names) for one in self._exclude)


@dataclass(frozen=True, slots=True)
class _Pattern:
    names: tuple[re.Pattern[str] | None, ...]
    """One for each name of a path; None for `**`, any number of names."""
    only_folders: bool

    def matches(self, names: list[str]) -> bool:
        """Go through the path once, with all places in the pattern it could be at."""
        places = self._reach({0})
        for name in names:
            following = set()
            for place in places:
                if place == len(self.names):
                    continue
                wanted = self.names[place]
                if wanted is None:
                    following.add(place)
                elif wanted.match(name):
                    following.add(place + 1)
            places = self._reach(following)
        return len(self.names) in places

    def _reach(self, places: set[int]) -> set[int]:
        """With what follows a `**`, which may stand for nothing."""
        for place in sorted(places):
            while place < len(self.names) and self.names[place] is None:
                place += 1
                places.add(place)
        return places


def _parse(pattern: str) -> _Pattern:
    stripped = pattern.strip("/")
    if not stripped or len(pattern) > _MAX_PATTERN:
        raise SourceError(f"{pattern[:40]!r} is not a pattern", code="bad-pattern")
    names = stripped.split("/")
    if len(names) == 1 and not pattern.startswith("/"):
        names = ["**", *names]
    # fnmatch's translation never backtracks from one * into an earlier one
    compiled = (None if name == "**" else re.compile(fnmatch.translate(name)) for name in names)
    return _Pattern(tuple(compiled), pattern.endswith("/"))
