"""JSONL on standard input (`-`): rows as they arrive, read once, never kept.

A second iteration is refused instead of spooling the first to disk: a pipe may carry more than the
disk holds, and a caller who needs two passes can say `> rows.jsonl` himself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import BinaryIO

from models.data.fields import FieldError
from models.data.files import FileRefusedError
from models.data.jsonl import json_lines
from models.data.manifest_rows import RowReader
from models.data.options import ReadOptions
from models.data.records import Plan, Reject, Row
from models.data.seen import SeenKeys
from models.errors import SourceError


class StdinSource:
    """Paths are relative to the working directory, or to the root of the options."""

    name = "-"
    kind = "stdin"

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

    def count(self) -> None:
        return None

    def plan(self) -> Plan:
        """Nothing is known of what was not read yet."""
        return Plan(None, None, None, None, exact=False)

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
            place = where.replace("=", " ")
            try:
                if isinstance(found, FieldError):
                    raise found
                record = self._reader.record(where, found)
            except (FieldError, FileRefusedError) as error:
                yield Reject(self.name, place, error.code, error.detail)
                continue
            if not seen.add(record.key):
                detail = f"{place}: the key occurs twice"
                yield Reject(self.name, record.key, "duplicate-key", detail)
                continue
            yield record
