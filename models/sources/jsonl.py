"""Rows one a line: JSONL manifests, the same on standard input, and plain lists of paths or URLs.

`{"image": "cats/tom.jpg", "captions": {"en": "A cat."}, "label": "cat", "year": 2020}`. The path
is relative to the manifest's folder and confined to it; `image_base64` holds the picture itself.
Lines are read one at a time with a length limit, so memory stays flat whatever the file.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from models.errors import SourceError
from models.sources.fields import (
    CAPTION_KEYS,
    MAX_TEXT_BYTES,
    ReadOptions,
    caption_lines,
    parse_object,
)
from models.sources.files import (
    MAX_LINE_BYTES,
    count_lines,
    lines,
    open_text,
)
from models.sources.manifest import Format, Found, RowReader, decode_base64
from models.sources.records import RefusedError, Row, SeenKeys, Source

# base64, in which a writer may have escaped the slashes
_LONG_BASE64 = re.compile(rb'"((?:data:[\w/+.;=-]{0,100},)?[A-Za-z0-9+/=\\]{4096,})"')
_STAND_IN = b'"\\u0000embedded picture"'


class JsonlFormat(Format):
    kind = "jsonl"

    def __init__(self, _path: str, _options: ReadOptions) -> None:
        pass

    def count(self, path: str) -> int | None:
        return count_lines(path)

    def rows(self, path: str) -> Iterator[Found]:
        with open_text(path)[0] as file:
            yield from json_lines(file)


class ListFormat(JsonlFormat):
    """A `.txt` file with one path or URL a line; `#` starts a comment line."""

    kind = "list"

    def count(self, path: str) -> int | None:
        return count_lines(path, comment=b"#")

    def rows(self, path: str) -> Iterator[Found]:
        with open_text(path)[0] as file:
            for number, line, complete in lines(file, limit=MAX_TEXT_BYTES):
                where = f"line={number}"
                if not complete:
                    yield where, _too_long()
                    continue
                try:
                    text = caption_lines(line)[0].strip()
                except RefusedError as error:
                    yield where, error
                    continue
                if text and not text.startswith("#"):
                    yield where, {"image": text}


def json_lines(file: BinaryIO) -> Iterator[Found]:
    """The rows of an open JSONL file or of standard input."""
    for number, line, complete in lines(file):
        line = line.strip()
        if complete and not line:
            continue
        where = f"line={number}"
        try:
            yield where, _parse(line) if complete else _too_long()
        except RefusedError as error:
            yield where, error


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) <= MAX_TEXT_BYTES:
        return parse_object(line)
    # A long line is one embedded picture and a little text. Parsing 28 MB of anything else could
    # take gigabytes: `[[],[],...` grows twentyfold.
    rest, found = _LONG_BASE64.subn(lambda _: _STAND_IN, line, count=1)
    if not found or len(rest) > MAX_TEXT_BYTES:
        raise _too_long()
    data = parse_object(rest)
    for name, value in data.items():
        inner = value.get("bytes") if isinstance(value, dict) else None
        if name not in CAPTION_KEYS and "\0embedded picture" in (value, inner):
            match = _LONG_BASE64.search(line)
            assert match is not None
            picture = decode_base64(match[1].replace(b"\\/", b"/"))
            return {**data, name: picture if inner is None else {**value, "bytes": picture}}
    raise _too_long()


def _too_long() -> RefusedError:
    detail = f"longer than {MAX_TEXT_BYTES} bytes without its picture"
    return RefusedError("line-too-long", f"{detail}, or {MAX_LINE_BYTES} with it")


class StdinSource(Source):
    """JSONL on standard input (`-`): rows as they arrive, read once, never kept.

    Paths are relative to the working directory, or to the root of the options. A second iteration
    is refused instead of spooling the first to disk: a pipe may carry more than the disk holds, and
    a caller who needs two passes can say `> rows.jsonl` himself.
    """

    name = "-"
    kind = "stdin"
    rereadable = False

    def __init__(self, options: ReadOptions, file: BinaryIO | None = None) -> None:
        """`file` is read instead of standard input.

        Raises:
            SourceError: standard input is a terminal or closed.
        """
        self._reader = RowReader(None, options)
        if file is None:
            if sys.stdin is None or os.isatty(sys.stdin.fileno()):
                raise SourceError(
                    "standard input is a terminal",
                    code="source-empty",
                    hint="pipe JSON lines into it",
                )
            file = sys.stdin.buffer
        self._file: BinaryIO | None = file

    def __iter__(self) -> Iterator[Row]:
        file, self._file = self._file, None
        if file is None:
            raise SourceError(
                "standard input can be read only once",
                code="source-read-once",
                hint="save it to a .jsonl file and name that",
            )
        return self._rows(file)

    def _rows(self, file: BinaryIO) -> Iterator[Row]:
        seen = SeenKeys()
        for where, found in json_lines(file):
            yield self._reader.row(self.name, where, found, seen)
