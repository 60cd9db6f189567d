"""CSV and TSV manifests: a header line, then one row a record.

The delimiter is what the header uses (comma, tab or semicolon), so that open_clip's tab-separated
`filepath`/`title` files are read under the name `.csv` too. Cells are text; `column_types` says
which attributes are not. A row that is wrong (a quote that never ends, another number of cells,
NUL, not UTF-8) costs itself: reading goes on at the line after the one it began on.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Final

from models.errors import SourceError
from models.sources.fields import MAX_TEXT_BYTES, ReadOptions
from models.sources.files import BOM, MAX_LINE_BYTES, count_lines, open_text
from models.sources.manifest import Format, Found, check_columns
from models.sources.records import RefusedError

_DELIMITERS: Final = ",\t;"
_MAX_ROW_LINES: Final = 1000
"""Physical lines of one row; a quote that never ends must not cost the rest of the file."""
_MAX_CELLS: Final = 4096
_INT_DIGITS: Final = 18


class CsvFormat(Format):
    kind = "csv"

    def __init__(self, _path: str, options: ReadOptions) -> None:
        self._options = options

    def check(self, path: str) -> int:
        file, size = open_text(path)
        with file:
            names, _ = _header(path, file)
        check_columns(path, names, self._options)
        return size

    def count(self, path: str) -> int | None:
        found = count_lines(path)
        return None if found is None else max(found - 1, 0)

    def rows(self, path: str) -> Iterator[Found]:
        with open_text(path)[0] as file:
            names, delimiter = _header(path, file)
            for number, cells in _Rows(file, delimiter):
                where = f"line={number}"
                if isinstance(cells, RefusedError):
                    yield where, cells
                elif len(cells) != len(names):
                    detail = f"{len(cells)} cells; the header has {len(names)}"
                    yield where, RefusedError("bad-row", detail)
                else:
                    yield where, self._typed(dict(zip(names, cells, strict=True)))

    def _typed(self, row: dict[str, str]) -> Mapping[str, Any]:
        """Empty cells are missing values; declared attributes get their types."""
        data: dict[str, Any] = {name: cell for name, cell in row.items() if cell}
        for name, kind in self._options.column_types.items():
            if name in data:
                data[name] = convert(data[name], kind)
        return data


def convert(cell: str, kind: str) -> Any:
    """A cell as `int`, `float`, `bool` or `str[]`; unchanged where it is not spelled like one.

    Example:
        >>> [convert("7", "int"), convert("x", "int"), convert("a|b", "str[]")]
        [7, 'x', ['a', 'b']]
    """
    try:
        if kind == "int" and len(cell) <= _INT_DIGITS:
            return int(cell)
        if kind == "float":
            number = float(cell)
            return number if abs(number) < float("inf") else cell
        if kind == "bool" and cell.lower() in ("true", "false", "1", "0"):
            return cell.lower() in ("true", "1")
        if kind == "str[]":
            if cell.startswith("["):
                entries = json.loads(cell)
                return entries if all(isinstance(one, str) for one in entries) else cell
            return [part.strip() for part in cell.split("|")]
    except (ValueError, RecursionError):
        pass
    return cell


def _header(path: str, file: BinaryIO) -> tuple[list[str], str]:
    """(column names, delimiter); leaves the file at the first row."""
    line = file.readline(MAX_TEXT_BYTES + 1)
    try:
        text = line.removeprefix(BOM).decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path}: the header is not UTF-8 (byte {error.start})", code="source-encoding"
        ) from error
    if not text.strip() or "\0" in text or len(line) > MAX_TEXT_BYTES:
        raise SourceError(f"{path} does not begin with a header line", code="source-empty")
    delimiter = max(_DELIMITERS, key=text.count)
    try:
        names = next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise SourceError(f"{path}: bad header line: {error}", code="source-damaged") from error
    names = [name.strip() for name in names]
    if len(set(names)) < len(names):
        raise SourceError(f"{path}: two columns have one name", code="source-damaged")
    return names, delimiter


class _Rows:
    """(line the row begins on, cells or why not) of an open file, from where it stands."""

    def __init__(self, file: BinaryIO, delimiter: str) -> None:
        self._file = file
        self._delimiter = delimiter
        self._start = (2, file.tell())
        self._next = self._start
        self._begun: list[tuple[int, int]] = []
        """(number, offset) of the line after each line that the current row has taken."""
        self._size = 0
        self._problem: RefusedError | None = None

    def __iter__(self) -> Iterator[tuple[int, list[str] | RefusedError]]:
        # a module-wide setting, and the only way past 128 KiB, less than one picture in base64
        csv.field_size_limit(MAX_LINE_BYTES)
        reader = csv.reader(self._lines(), delimiter=self._delimiter, strict=True)
        while True:
            number = self._next[0]
            self._begun, self._size, self._problem = [], 0, None
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                why = self._known_problem() or RefusedError("bad-row", str(error))
                # go on behind the row's first line: only that one is known to be bad
                self._next = self._begun[0]
                self._file.seek(self._next[1])
                reader = csv.reader(self._lines(), delimiter=self._delimiter, strict=True)
                yield number, why
                continue
            if problem := self._known_problem():
                yield number, problem
            elif cells:
                yield number, cells

    def _known_problem(self) -> RefusedError | None:
        """What `_lines` found wrong with the current row."""
        return self._problem

    def _lines(self) -> Iterator[str]:
        while line := self._file.readline(MAX_LINE_BYTES + 1):
            number, offset = self._next
            if not line.endswith(b"\n") and len(line) > MAX_LINE_BYTES:
                while rest := self._file.readline(MAX_TEXT_BYTES):
                    if rest.endswith(b"\n"):
                        break
                line = b"\n"
                self._problem = RefusedError("line-too-long", f"longer than {MAX_LINE_BYTES} bytes")
                self._next = (number + 1, self._file.tell())
            else:
                self._next = (number + 1, offset + len(line))
            self._begun.append(self._next)
            self._size += len(line)
            if len(self._begun) > _MAX_ROW_LINES or self._size > MAX_LINE_BYTES:
                self._problem = RefusedError("bad-row", "a quote that does not end")
                raise csv.Error
            if line.count(self._delimiter.encode()) >= _MAX_CELLS:
                self._problem = RefusedError("bad-row", f"more than {_MAX_CELLS} cells")
                line = b"\n"
            if b"\0" in line:
                self._problem = RefusedError("bad-row", "holds NUL")
                line = line.replace(b"\0", b"")
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                self._problem = RefusedError("not-utf8", f"not UTF-8 at byte {error.start}")
                text = line.decode("ascii", "replace")
            yield text
