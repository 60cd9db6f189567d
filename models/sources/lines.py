"""Lines of a file, one at a time, with a limit on each: the base of JSONL, lists and CSV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from models.errors import SourceError
from models.sources.files import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, open_plain

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
