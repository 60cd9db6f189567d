"""Parquet manifests, read in small batches, one row group after the other.

The picture is a path, a column of bytes, or Hugging Face's `struct<bytes, path>`, whose class
labels get their names back. pyarrow (the extra `parquet`) is imported when one is opened.

Nothing that the footer declares is trusted further than to choose the size of a batch. Extension
types are read as what they store, so that no file can name code. A row group that cannot be read
is one reject; the next is tried. What is left to Arrow is the allocation of single pages, whose
size (at most 2 GiB) their own headers state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from models.errors import SourceError
from models.sources.fields import (
    CAPTION_KEYS,
    LABEL_KEYS,
    MAX_TEXT_BYTES,
    ReadOptions,
    tagged_path,
)
from models.sources.files import open_plain
from models.sources.manifest import (
    BYTES_KEYS,
    ID_KEYS,
    PATH_KEYS,
    PICTURE_KEYS,
    Format,
    Found,
    check_columns,
)
from models.sources.records import RefusedError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH_ROWS: Final = 64
_BATCH_BYTES: Final = 32 << 20
_DICTIONARY_BYTES: Final = 512 << 20
"""A dictionary may repeat its largest value in every row of a batch: the most that may cost."""
_LEAST_ROWS: Final = 8
"""Large row groups hold pictures, not dictionaries; smaller batches would only be slow."""
_MAX_RATIO: Final = 200
_UNSUSPICIOUS_BYTES: Final = 64 << 20
_MAX_FOOTER: Final = 64 << 20
_MAX_ROWS_PER_BYTE: Final = 1000
_MAX_COLUMNS: Final = 4096
_MAX_DEPTH: Final = 8
_KNOWN: Final = frozenset((*CAPTION_KEYS, *LABEL_KEYS, *ID_KEYS, *PICTURE_KEYS))


class ParquetFormat(Format):
    kind = "parquet"

    def __init__(self, _path: str, options: ReadOptions) -> None:
        self._options = options

    def check(self, path: str) -> int:
        file, size = _open(path)
        with file:
            table = _Table(path, file, size, self._options)
            check_columns(path, table.names, self._options)
        return size

    def count(self, path: str) -> int | None:
        file, size = _open(path)
        with file:
            return _Table(path, file, size, self._options).plausible_rows()

    def rows(self, path: str) -> Iterator[Found]:
        file, size = _open(path)
        with file:
            yield from _Table(path, file, size, self._options).rows()


class _Table:
    """An opened file.

    Raises:
        SourceError: `source-damaged` for no Parquet, a damaged footer, or an encrypted file.
    """

    def __init__(self, path: str, file: BinaryIO, size: int, options: ReadOptions) -> None:
        self._path = path
        self._size = size
        arrow, parquet = _pyarrow()
        self._errors = (arrow.ArrowException, OSError, ValueError, OverflowError, MemoryError)
        try:
            self._file: pq.ParquetFile = parquet.ParquetFile(
                file,
                pre_buffer=False,  # the buffer would be the whole row group
                buffer_size=1 << 20,
                thrift_string_size_limit=_MAX_FOOTER,
                thrift_container_size_limit=1 << 20,
            )
            schema = self._file.schema_arrow
        except self._errors as error:
            raise SourceError(
                f"{path} is not a Parquet file that can be read: {_line(error)}",
                code="source-damaged",
            ) from error
        if len(schema) > _MAX_COLUMNS:
            raise SourceError(f"{path} has {len(schema)} columns", code="source-damaged")
        self._classes = _class_names(schema.metadata or {})
        self._columns = [field.name for field in schema if self._is_read(field, options)]
        self.names = list(schema.names)

    def plausible_rows(self) -> int | None:
        declared = self._file.metadata.num_rows
        return declared if 0 <= declared <= _MAX_ROWS_PER_BYTE * self._size else None

    def rows(self) -> Iterator[Found]:
        number = 0
        for group in range(self._file.num_row_groups):
            metadata = self._file.metadata.row_group(group)
            declared, size = metadata.num_rows, max(metadata.total_byte_size, 1)
            done = 0
            try:
                if not 0 <= declared <= _MAX_ROWS_PER_BYTE * self._size:
                    raise ValueError(f"it declares {declared} rows")
                if size > _UNSUSPICIOUS_BYTES and size > _MAX_RATIO * self._size:
                    raise ValueError(f"it expands to {size} bytes")
                batches = self._file.iter_batches(
                    batch_size=self._batch_rows(declared, size),
                    row_groups=[group],
                    columns=self._columns,
                    use_threads=False,  # they would read ahead
                )
                for batch in batches:
                    for data in self._mappings(batch):
                        done += 1
                        yield f"row={number + done}", data
                if done != declared:
                    raise ValueError(f"it declares {declared} rows and holds {done}")
            except self._errors as error:
                detail = f"row group {group}: {_line(error)}"
                yield f"row={number + done + 1}", RefusedError("row-group-damaged", detail)
            number += max(declared, done)

    def _is_read(self, field: pa.Field, options: ReadOptions) -> bool:
        """Bytes are only read where they are the picture, attributes only if they are wanted."""
        name = field.name
        image = (options.image_field or "").removeprefix("base64=").partition(".")[0]
        if name == image or (not image and name in (*PATH_KEYS, *BYTES_KEYS)):
            return True
        if not _is_plain(field.type, 0):
            return False
        if options.attribute_fields is None or name in _KNOWN:
            return True
        texts = [tagged_path(text)[1] for text in options.text_field]
        named = [*texts, options.label_field, options.id_field, *options.attribute_fields]
        return any(path is not None and name in (path, path.partition(".")[0]) for path in named)

    def _batch_rows(self, rows: int, size: int) -> int:
        """How many rows at once, from what a row group declares.

        Only the group's own figures: asking for a column's aborts the process in Arrow when the
        column's statistics are damaged (found with mutated files, pyarrow 26).
        """
        by_mean = _BATCH_BYTES * rows // size
        return max(min(_BATCH_ROWS, by_mean, max(_DICTIONARY_BYTES // size, _LEAST_ROWS)), 1)

    def _mappings(self, batch: pa.RecordBatch) -> Iterator[Mapping[str, Any] | RefusedError]:
        columns = {
            name: getattr(column, "storage", column)  # what an extension type stores
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        for at in range(batch.num_rows):
            try:
                row = {name: _value(column[at].as_py()) for name, column in columns.items()}
            except UnicodeDecodeError as error:
                yield RefusedError("not-utf8", f"not UTF-8 at byte {error.start}")
            except self._errors as error:
                yield RefusedError("bad-row", _line(error))
            else:
                yield self._named(row)

    def _named(self, row: dict[str, Any]) -> dict[str, Any]:
        for name, classes in self._classes.items():
            value = row.get(name)
            if isinstance(value, int) and 0 <= value < len(classes):
                row[name] = classes[value]
        return {name: value for name, value in row.items() if value is not None}


def _open(path: str) -> tuple[BinaryIO, int]:
    file, size = open_plain(path)
    if size > 12:
        file.seek(-8, 2)
        footer = int.from_bytes(file.read(4), "little")
        if footer > min(size, _MAX_FOOTER) and file.read(4) == b"PAR1":
            file.close()
            raise SourceError(f"{path} claims a footer of {footer} bytes", code="source-damaged")
        file.seek(0)
    return file, size


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SourceError(
            "reading Parquet needs pyarrow",
            code="extra-missing",
            hint="pip install 'diptych[parquet]'",
        ) from error
    return pyarrow, pyarrow.parquet


def _is_plain(kind: pa.DataType, depth: int) -> bool:
    """Whether values of a column are JSON or nearly so; bytes, maps and deep nests are not."""
    import pyarrow.types as types

    kind = getattr(kind, "storage_type", kind)
    if depth > _MAX_DEPTH:
        return False
    if types.is_dictionary(kind):
        return _is_plain(kind.value_type, depth + 1)
    if types.is_struct(kind):
        return all(_is_plain(kind.field(at).type, depth + 1) for at in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_plain(kind.value_type, depth + 1)
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
        or types.is_date(kind)
        or types.is_timestamp(kind)
        or types.is_decimal(kind)
    )


def _value(value: Any) -> Any:
    """A JSON value: dates as ISO 8601, decimals as numbers, NaN and infinities as missing."""
    if isinstance(value, dict):
        return {key: _value(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_value(one) for one in value]
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Names of class labels by column, as Hugging Face's datasets note them in the schema."""
    text = metadata.get(b"huggingface", b"")
    if len(text) > MAX_TEXT_BYTES:
        return {}
    try:
        features = json.loads(text or b"{}").get("info", {}).get("features", {})
        return {
            name: [str(one) for one in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict)
            and feature.get("_type") == "ClassLabel"
            and isinstance(feature.get("names"), list)
        }
    except (ValueError, AttributeError, RecursionError):
        return {}


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:200]
