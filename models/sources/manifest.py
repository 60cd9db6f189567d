"""Manifests of any format: files of rows, read one row at a time, in file and row order.

A `Format` parses files into mappings and `RowReader` makes records of them; `ManifestSource` adds
what all share: several files as one source, repeated keys, rejects with the row's place. Nothing is
parsed here. A row's picture is a path below the root, bytes in the row, or a URL, which is only
ever fetched by the function the caller supplied.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeAlias

from models.errors import SourceError
from models.sources.fields import (
    CAPTION_KEYS,
    MAX_TEXT_BYTES,
    ReadOptions,
    interpret,
    select,
    tagged_path,
)
from models.sources.files import (
    MAX_IMAGE_BYTES,
    absolute,
    display_name,
    file_uri,
    open_text,
    origin_of,
    read_confined,
)
from models.sources.records import Plan, Record, RefusedError, Reject, Row, SeenKeys, Source

ID_KEYS: Final = ("id", "key")
PATH_KEYS: Final = ("image", "path", "filepath", "file_name", "filename", "image_path")
BASE64_KEYS: Final = ("image_base64", "image_b64")
BYTES_KEYS: Final = ("image_bytes", "bytes", "jpg", "png", "webp")
URL_KEYS: Final = ("url", "image_url", "URL")
NO_IMAGE: Final = "-"
"""As `image_field`: rows have no picture, whatever their columns are called."""
PICTURE_KEYS: Final = (*PATH_KEYS, *BASE64_KEYS, *BYTES_KEYS, *URL_KEYS)
MAX_ID_BYTES: Final = 2048
_MAX_PATH_BYTES: Final = 4096

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|pipe:", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_Picture = tuple[bytes | None, bytes | None, str | None]
"""(content, path below the root if it is a file, its name as the row has it)"""
Found: TypeAlias = tuple[str, Mapping[str, Any] | RefusedError]
"""(place, e.g. `line=7`; the row, or why it cannot be read). Places are unique within a file."""
_SAMPLE = 100


class Format(ABC):
    """One way to write a manifest."""

    kind: str

    def check(self, path: str) -> int:
        """Open a file for a first look -> its size in bytes.

        Raises:
            SourceError: it cannot be a manifest of this format.
        """
        file, size = open_text(path)
        file.close()
        return size

    @abstractmethod
    def count(self, path: str) -> int | None:
        """Rows to expect, if cheap to know."""

    @abstractmethod
    def rows(self, path: str) -> Iterator[Found]:
        """Raises SourceError for damage that ends the file, after the rows before it."""


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
        self._readers = [
            RowReader(absolute(path), options, origin=origin_of(path)) for path in self._paths
        ]
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
            source = self.name if len(self._paths) == 1 else path
            try:
                for where, found in self._form.rows(path):
                    yield reader.row(source, where, found, seen)
            except SourceError as error:
                if len(self._paths) == 1 and error.code != "source-damaged":
                    raise  # removed or replaced since it was named
                yield Reject(path, "", error.code, error.message)


class RowReader:
    """Turns the rows of one manifest into records."""

    def __init__(self, manifest: bytes | None, options: ReadOptions, *, origin: str = "") -> None:
        """`manifest` is its absolute path, or None for standard input.

        Its folder (for standard input the working directory) is the root of the pictures, unless
        the options name one.

        Raises:
            SourceError: the root is not a folder.
        """
        self._options = options
        self._origin = origin
        if manifest is None:
            self._name, self._place = "stdin", "stdin:#"
        else:
            self._name = display_name(os.path.basename(manifest))  # noqa: PTH119 (bytes)
            self._place = f"{file_uri(manifest)}#"
        self._root = root_of(manifest, options)

    def row(
        self, source: str, where: str, found: Mapping[str, Any] | RefusedError, seen: SeenKeys
    ) -> Row:
        """The record of what a format found, or why there is none; `seen` are the keys so far."""
        place = where.replace("=", " ")
        try:
            if isinstance(found, RefusedError):
                raise found
            record = self.record(where, found)
        except RefusedError as error:
            return error.reject(source, place)
        if not seen.add(record.key):
            return Reject(source, record.key, "duplicate-key", f"{place}: the key occurs twice")
        return record

    def record(self, where: str, data: Mapping[str, Any]) -> Record:
        """The record of a row; `where` is its place, such as `line=7`, for rows without a name.

        Raises:
            RefusedError: `bad-path`, `bad-base64`, `bad-id`, `bad-caption`, `bad-label`,
                `text-too-long`, `no-image`.
            RefusedError: as `read_confined`, and `url-not-allowed`.
        """
        options = self._options
        key_name = options.id_field or next((k for k in ID_KEYS if data.get(k) is not None), None)
        key = _key(select(data, key_name)) if key_name else None
        used, (image, relative, name) = self._picture(data)
        consumed = (*used, *BASE64_KEYS, *([key_name] if key_name else ()))
        fields = interpret(data, options, consumed=consumed)
        if image is None and not fields.texts:
            raise RefusedError("no-image", f"none of {', '.join(PATH_KEYS + BASE64_KEYS)}")
        uri = self._place + where
        if relative is not None:
            uri = file_uri(self._root.rstrip(b"/") + b"/" + relative)
        elif image is not None and name is not None and _SCHEME.match(name):
            uri = name
        if key is None:
            # without the manifest's name, the first rows of two manifests would share an id
            key = _key(name) if name else f"{self._name}:{where.replace('=', '-')}"
        # a second embedded picture, or anything else that JSON and an index cannot hold
        attributes = {k: v for k, v in fields.attributes.items() if not isinstance(v, bytes)}
        for attribute, value in attributes.items():
            if isinstance(value, str) and len(value) > MAX_TEXT_BYTES:
                raise RefusedError("text-too-long", f"{attribute} has {len(value)} characters")
        return Record(key, uri, image, fields.texts, fields.label, attributes, self._origin)

    def _picture(self, data: Mapping[str, Any]) -> tuple[tuple[str, ...], _Picture]:
        """(the top-level keys that held it, what it is)."""
        chosen = self._options.image_field
        if chosen == NO_IMAGE:
            return (), (None, None, None)
        if chosen is not None:
            encoded = chosen.startswith("base64=")
            chosen = chosen.removeprefix("base64=")
            value = select(data, chosen)
            if value is None or value == "":
                return (chosen,), (None, None, None)
            return (chosen,), self._read(chosen, value, encoded or chosen in BASE64_KEYS)
        for name in (*PATH_KEYS, *BASE64_KEYS, *BYTES_KEYS, *URL_KEYS):
            value = data.get(name)
            if value is None or (name in BYTES_KEYS and not isinstance(value, bytes)):
                continue
            if name in URL_KEYS and not (isinstance(value, str) and _SCHEME.match(value)):
                continue  # such as the caption column of a table about links
            # `image` and `file_name` with the same value are one statement, not two
            same = {one for one in PATH_KEYS if isinstance(value, str) and data.get(one) == value}
            return (name, *same), self._read(name, value, name in BASE64_KEYS)
        return (), (None, None, None)

    def _read(self, field: str, value: Any, encoded: bool) -> _Picture:
        name: str | None = None
        if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():
            # what Hugging Face's datasets write for a picture
            stated, value = value.get("path"), value.get("bytes")
            encoded = isinstance(value, str)
            name = stated if isinstance(stated, str) and stated else None
            value = name if value is None else value
        if isinstance(value, bytes):
            return _checked(value), None, name
        if not isinstance(value, str):
            raise RefusedError("bad-base64" if encoded else "bad-path", f"{field} must be text")
        if encoded or value[:5] == "data:":
            return decode_base64(value), None, name
        if not value:
            raise RefusedError("bad-path", f"{field} is empty")
        if _SCHEME.match(value):
            return self._fetched(value), None, value
        relative = self._relative(value)
        return read_confined(self._root, relative, limit=MAX_IMAGE_BYTES), relative, value

    def _fetched(self, url: str) -> bytes:
        if self._options.fetch is None or url[:5].lower() == "pipe:":
            raise RefusedError("url-not-allowed", "the picture is a URL; none is fetched")
        return _checked(self._options.fetch(url))

    def _relative(self, path: str) -> bytes:
        """The path below the root; an absolute one is accepted if it lies there."""
        try:
            raw = os.fsencode(path)
        except UnicodeEncodeError as error:
            raise RefusedError("bad-path", "the path is not valid Unicode") from error
        if len(raw) > _MAX_PATH_BYTES:
            raise RefusedError("bad-path", f"a path of {len(raw)} bytes")
        prefix = self._root.rstrip(b"/") + b"/"
        relative = raw.removeprefix(prefix) if raw.startswith(prefix) else raw
        while relative.startswith(b"./"):
            relative = relative[2:]
        return relative


def root_of(manifest: bytes | None, options: ReadOptions) -> bytes:
    """The folder that pictures of a manifest lie in.

    Raises:
        SourceError: the root of the options is not a folder.
    """
    if options.root is None:
        return os.path.dirname(manifest) if manifest else absolute(".")  # noqa: PTH120 (bytes)
    if not Path(options.root).is_dir():
        raise SourceError(f"the root {options.root} is not a folder")
    return absolute(options.root)


def decode_base64(value: str | bytes) -> bytes:
    """The bytes of base64 text, with or without a `data:` prefix.

    Raises:
        RefusedError: `bad-base64`, `empty-file` or `file-too-large`.
    """
    comma = "," if isinstance(value, str) else b","
    if value[:5] in ("data:", b"data:"):
        value = value.partition(comma)[2]  # type: ignore[arg-type]
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError("bad-base64", str(error)) from error
    return _checked(data)


def _checked(data: bytes) -> bytes:
    if not data:
        raise RefusedError("empty-file", "0 bytes")
    if len(data) > MAX_IMAGE_BYTES:
        raise RefusedError("file-too-large", f"{len(data)} bytes; the limit is {MAX_IMAGE_BYTES}")
    return data


def _key(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise RefusedError("bad-id", "an id must be text or a whole number")
    if len(value.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        raise RefusedError("bad-id", f"an id has at most {MAX_ID_BYTES} bytes")
    if _CONTROL.search(value):
        raise RefusedError("bad-id", "an id holds a line break or another control character")
    return value


def check_columns(path: str, names: Sequence[str], options: ReadOptions) -> None:
    """Refuse a table without a column that was named, or with nothing to index.

    Raises:
        SourceError: `column-missing`.
    """
    image = (options.image_field or "").removeprefix("base64=")
    wanted = [tagged_path(text)[1] for text in options.text_field]
    wanted += [name for name in (options.label_field, options.id_field, image) if name]
    for name in wanted:
        if name != NO_IMAGE and name not in names and name.partition(".")[0] not in names:
            raise SourceError(
                f"{path} has no column {name!r}",
                code="column-missing",
                hint=f"its columns are {_listed(names)}",
            )
    readable = {*PICTURE_KEYS, *CAPTION_KEYS, *wanted}
    if readable.isdisjoint(names) and not wanted:
        raise SourceError(
            f"none of the columns of {path} is known to hold pictures or captions",
            code="column-missing",
            hint=f"name one of {_listed(names)} as the picture's or the text's field",
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])[:300]
    return shown if len(names) <= 20 else f"{shown}, ..."
