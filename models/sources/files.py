"""Opening files for the readers without being led elsewhere, naming them, and reading their lines.

Only regular files, never through a symbolic link, never blocking on a FIFO, never more than a
stated number of bytes. Knows nothing of captions or archives.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote_to_bytes

from models.errors import SourceError
from models.sources.fields import MAX_TEXT_BYTES
from models.sources.records import Record, RefusedError

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
MAX_IMAGE_BYTES = 20 * 1024 * 1024

_CODES = {
    errno.ELOOP: "symlink-skipped",
    errno.EACCES: "permission-denied",
    errno.EPERM: "permission-denied",
    errno.ENOENT: "file-missing",
    errno.ENXIO: "not-a-regular-file",
    errno.ENODEV: "not-a-regular-file",
    errno.EISDIR: "not-a-regular-file",
}

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
}


def refused_by_os(error: OSError) -> RefusedError:
    """What the operating system says of a file of a row."""
    code = _CODES.get(error.errno or 0, "unreadable")
    detail = error.strerror or str(error)
    return RefusedError(code, "a symbolic link" if code == "symlink-skipped" else detail)


def open_plain(path: str) -> tuple[BinaryIO, int]:
    """Open a file the user named -> (file, size in bytes); the caller closes it.

    The name may be a symbolic link: the user chose it, unlike the names found inside a source.

    Raises:
        SourceError: missing, unreadable, not a regular file, or compressed.
    """
    try:
        # O_NONBLOCK: a FIFO under that name must not hang the run
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        file = os.fdopen(descriptor, "rb")
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            file.close()
            raise SourceError(f"{path}: not a regular file")
        magic = file.read(6)
        file.seek(0)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise SourceError(f"cannot read {path}: {why}") from error
    for start, name in _COMPRESSED.items():
        if magic.startswith(start):
            file.close()
            raise SourceError(
                f"{path} is compressed with {name}; only uncompressed files are read",
                code="source-compressed",
                hint="decompress it first; pictures hardly shrink anyway",
            )
    return file, status.st_size


def read_regular(name: bytes, *, limit: int, dir_fd: int | None = None) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises:
        RefusedError: `symlink-skipped`, `not-a-regular-file`, `file-too-large`,
            `empty-file`, `file-changed` (while it was read), `permission-denied`,
            `file-missing` or `unreadable`.
    """
    try:
        mode = os.lstat(name, dir_fd=dir_fd).st_mode
        if stat.S_ISLNK(mode):
            raise RefusedError("symlink-skipped", "a symbolic link")
        # asked before opening, because opening a device can already have an effect
        _require_regular(mode)
        # O_NONBLOCK: should a FIFO take the file's place in between, opening it must not hang
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, dir_fd=dir_fd), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            _require_regular(status.st_mode)
            if status.st_size > limit:
                raise _too_large(status.st_size, limit)
            data = _read_at_most(file.fileno(), limit + 1)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise refused_by_os(error) from error
    if len(data) > limit:
        raise _too_large(len(data), limit)
    if not data:
        raise RefusedError("empty-file", "0 bytes")
    # half of the old picture and half of the new one may well decode
    if len(data) != after.st_size or after.st_mtime_ns != status.st_mtime_ns:
        raise RefusedError("file-changed", "it changed while it was read")
    return data


def open_directory(name: bytes, *, dir_fd: int | None = None) -> int:
    """A descriptor of a directory that is not reached through a symbolic link as its last step."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=dir_fd)


def read_confined(root: bytes, relative: bytes, *, limit: int) -> bytes:
    """Read a file below `root`, following neither `..` nor any symbolic link on the way.

    Every directory is opened relative to the one before, so that swapping one for a link while
    this runs gains nothing.

    Raises:
        RefusedError: as `read_regular`, and `path-outside` for a path that leaves `root`.
    """
    parts = [part for part in relative.split(b"/") if part not in (b"", b".")]
    if relative.startswith(b"/") or b".." in parts or b"\0" in relative or not parts:
        raise RefusedError("path-outside", "the path leaves its root")
    try:
        here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts[:-1]:
                below = _open_step(part, here)
                # one at a time: a path may be deeper than a process may have open files
                os.close(here)
                here = below
            return read_regular(parts[-1], limit=limit, dir_fd=here)
        finally:
            os.close(here)
    except OSError as error:
        raise refused_by_os(error) from error


def display_name(raw: bytes) -> str:
    """A name for people and for keys; bytes that are not UTF-8 become `\\xNN`."""
    return raw.decode("utf-8", "backslashreplace")


def file_uri(path: bytes, fragment: bytes | None = None) -> str:
    """An absolute `file:` URI made of the raw bytes, so it names non-UTF-8 paths without loss."""
    uri = "file://" + quote(path, safe="/")
    return uri if fragment is None else f"{uri}#{quote(fragment, safe='/')}"


def file_of(uri: str) -> Path | None:
    """The file a URI is all of; None for a member of an archive and for other schemes."""
    if not uri.startswith("file://") or "#" in uri:
        return None
    return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))


def is_there(uri: str) -> bool:
    """Whether the file that a URI names, or its archive, is there; True where one cannot tell."""
    if not uri.startswith("file://"):
        return not uri.startswith("stdin:")
    return os.path.lexists(unquote_to_bytes(uri.removeprefix("file://").partition("#")[0]))


def name_of(record: Record) -> str:
    """What a record's file is called, or what its archive calls the member, without folders."""
    file = file_of(record.uri)
    if file is not None:
        return file.name
    member = record.uri.partition("#")[2] or record.key
    return unquote_to_bytes(member).decode("utf-8", "backslashreplace").rpartition("/")[2]


def suffix_of(raw: bytes) -> str:
    """The extension in lower case without its dot; empty when there is none."""
    stem, dot, suffix = raw.rpartition(b".")
    return suffix.decode("ascii", "replace").lower() if dot and stem else ""


def absolute(path: str | Path) -> bytes:
    """The resolved path as the bytes the system uses."""
    return os.fsencode(Path(path).resolve())


def origin_of(path: str | Path) -> str:
    """`Record.origin` of a folder or file, as it was named: a link may lead elsewhere tomorrow."""
    return file_uri(os.fsencode(os.path.abspath(path)))  # noqa: PTH100 (links stay)


def _open_step(part: bytes, here: int) -> int:
    try:
        return open_directory(part, dir_fd=here)
    except NotADirectoryError:
        # Linux answers ENOTDIR, not ELOOP, for a link opened with O_DIRECTORY | O_NOFOLLOW
        if stat.S_ISLNK(os.lstat(part, dir_fd=here).st_mode):
            raise RefusedError("symlink-skipped", "a symbolic link on the way") from None
        raise


def _require_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise RefusedError("not-a-regular-file", f"a {_KINDS.get(stat.S_IFMT(mode), 'special')}")


_KINDS = {
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFDIR: "directory",
}


def _too_large(size: int, limit: int) -> RefusedError:
    return RefusedError("file-too-large", f"{size} bytes; the limit is {limit}")


def _read_at_most(descriptor: int, limit: int) -> bytes:
    chunks = []
    left = limit
    while left > 0 and (chunk := os.read(descriptor, min(left, 1 << 20))):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


MAX_SHARDS = 1_000_000
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand_shards(spec: str) -> list[str]:
    """Shard names of a specification: brace ranges, and several separated by `::`.

    Example:
        >>> expand_shards("a-{08..10}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar']

    Raises:
        SourceError: a range that is empty, or more than a million shards.
    """
    if "{" not in spec and "::" not in spec:
        return [spec]
    if Path(spec).exists():  # a name may contain braces
        return [spec]
    shards: list[str] = []
    for pattern in spec.split("::"):
        pending = [pattern]
        while pending:
            name = pending.pop()
            found = _RANGE.search(name)
            if found is None:
                shards.append(name)
                continue
            first, last = found[1], found[2]
            numbers = range(int(first), int(last) + 1)
            if not numbers:
                raise SourceError(f"the range {found[0]} in {spec!r} is empty")
            if len(numbers) + len(shards) + len(pending) > MAX_SHARDS:
                raise SourceError(f"{spec!r} names more than {MAX_SHARDS} shards")
            pending += [
                f"{name[: found.start()]}{number:0{len(first)}d}{name[found.end() :]}"
                for number in reversed(numbers)
            ]
    return shards


MAX_LINE_BYTES = MAX_IMAGE_BYTES // 3 * 4 + 2 * MAX_TEXT_BYTES
"""The largest picture in base64, and the largest text beside it."""
BOM = b"\xef\xbb\xbf"
COUNT_LIMIT = 256 * 1024**2


def lines(file: BinaryIO, *, limit: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes, bool]]:
    """(line number from 1, content with its line end, whether it is complete).

    A byte order mark is left out. An overlong line is skipped in pieces, never held whole.
    """
    number = 0
    while line := file.readline(limit + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(BOM)
        complete = len(line) <= limit or line.endswith(b"\n")
        yield number, line, complete
        rest = line
        while not complete and rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_TEXT_BYTES)


def open_text(path: str) -> tuple[BinaryIO, int]:
    """As `open_plain`; refuses UTF-16 and UTF-32, in which every row would be garbage.

    Raises:
        SourceError: as `open_plain`, and `source-encoding`.
    """
    file, size = open_plain(path)
    start = file.read(4)
    file.seek(0)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or start == b"\0\0\xfe\xff":
        file.close()
        raise SourceError(
            f"{path} is UTF-16 or UTF-32; manifests are UTF-8",
            code="source-encoding",
            hint=f"iconv -f UTF-16 -t UTF-8 {path} > utf8-manifest",
        )
    return file, size


def count_lines(path: str, *, comment: bytes | None = None) -> int | None:
    """Lines that are neither empty nor comments; None above 256 MiB."""
    file, size = open_plain(path)
    with file:
        if size > COUNT_LIMIT:
            return None
        return sum(
            bool(line.strip()) and not (comment and line.lstrip().startswith(comment))
            for _, line, _ in lines(file)
        )
