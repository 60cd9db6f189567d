"""Manifests of any format: files of rows, read one row at a time, in file and row order.

A `Format` parses files into mappings; `RowReader` makes records of them; this adds what all share:
several files as one source, repeated keys, rejects with the row's place. It parses nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, TypeAlias

from models.errors import SourceError
from models.sources.fields import FieldError
from models.sources.files import FileRefusedError, absolute
from models.sources.manifest_rows import RowReader
from models.sources.options import ReadOptions
from models.sources.records import Plan, Record, Reject, Row, SeenKeys, Source

Found: TypeAlias = tuple[str, Mapping[str, Any] | FieldError]
"""(place, e.g. `line=7`; the row, or why it cannot be read). Places are unique within a file."""
_SAMPLE = 100


class Format(Protocol):
    """One way to write a manifest."""

    @property
    def kind(self) -> str: ...

    def check(self, path: str) -> int:
        """Open a file for a first look -> its size in bytes.

        Raises:
            SourceError: it cannot be a manifest of this format.
        """
        ...

    def count(self, path: str) -> int | None:
        """Rows to expect, if cheap to know."""
        ...

    def rows(self, path: str) -> Iterator[Found]:
        """Raises SourceError for damage that ends the file, after the rows before it."""
        ...


class ManifestSource(Source):
    """Rows of one or several manifests of one format."""

    def __init__(
        self, form: Format, paths: Sequence[str], *, name: str, options: ReadOptions
    ) -> None:
        """Raises SourceError for a manifest that is missing, special or of another format."""
        self.name = name
        self.kind = form.kind
        self._form = form
        self._options = options
        self._paths = list(paths)
        self._readers = [RowReader(absolute(path), options) for path in self._paths]
        self._bytes = sum(form.check(path) for path in self._paths)

    def count(self) -> int | None:
        """Rows to expect; None where that would mean reading a lot."""
        total = 0
        for path in self._paths:
            try:
                rows = self._form.count(path)
            except SourceError:  # iterating tells
                return None
            if rows is None:
                return None
            total += rows
        return total

    def plan(self) -> Plan:
        """Sizes of pictures are those of the first rows, scaled up to all of them."""
        rows = self.count()
        sampled = pictures = size = 0
        for row in islice(self, _SAMPLE):
            sampled += 1
            if isinstance(row, Record) and row.image is not None:
                pictures += 1
                size += len(row.image)
        if sampled < _SAMPLE:
            return Plan(sampled, pictures, size, self._bytes, exact=True)
        if rows is None:
            return Plan(None, None, None, self._bytes, exact=False)
        return Plan(
            rows=rows,
            pictures=rows * pictures // sampled,
            picture_bytes=rows * size // sampled,
            source_bytes=self._bytes,
            exact=False,
        )

    def parts(self) -> list[Source]:
        """Each file as a source of its own, to be read in any order."""
        return [
            ManifestSource(self._form, [path], name=path, options=self._options)
            for path in self._paths
        ]

    def __iter__(self) -> Iterator[Row]:
        seen = SeenKeys()
        for path, reader in zip(self._paths, self._readers, strict=True):
            try:
                for where, found in self._form.rows(path):
                    yield self._row(path, reader, seen, where, found)
            except SourceError as error:
                if len(self._paths) == 1 and error.code != "source-damaged":
                    raise  # removed or replaced since it was named
                yield Reject(path, "", error.code, error.message)

    def _row(
        self,
        path: str,
        reader: RowReader,
        seen: SeenKeys,
        where: str,
        found: Mapping[str, Any] | FieldError,
    ) -> Row:
        source = self.name if len(self._paths) == 1 else path
        place = where.replace("=", " ")
        if isinstance(found, FieldError):
            return Reject(source, place, found.code, found.detail)
        try:
            record = reader.record(where, found)
        except (FieldError, FileRefusedError) as error:
            return Reject(source, place, error.code, error.detail)
        if not seen.add(record.key):
            return Reject(source, record.key, "duplicate-key", f"{place}: the key occurs twice")
        return record
