"""A JSONL manifest: one JSON object a line, each naming or holding one picture.

`{"image": "cats/tom.jpg", "captions": {"en": "A cat."}, "label": "cat", "year": 2020}`. The path
is relative to the manifest's folder and confined to it; `image_base64` holds the picture itself.
Lines are read one at a time with a length limit, so memory stays flat whatever the file.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from models.data.fields import FieldError, interpret, parse_object
from models.data.files import (
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    FileRefusedError,
    SeenKeys,
    absolute,
    file_uri,
    open_plain,
    read_confined,
)
from models.data.records import Record, Reject, Row

ID_KEYS = ("id", "key")
PATH_KEYS = ("image", "path", "filepath", "file_name", "image_path")
_BOM = b"\xef\xbb\xbf"
_COUNT_LIMIT = 256 * 1024**2


class JsonlSource:
    """Rows of a manifest in line order."""

    kind = "jsonl"

    def __init__(
        self, path: str | Path, *, text_field: str | None = None, label_field: str | None = None
    ) -> None:
        """Raises SourceError for a manifest that is missing, special or compressed."""
        self.name = str(path)
        self._path = absolute(path)
        self._root = os.path.dirname(self._path)  # noqa: PTH120 (bytes)
        self._text_field = text_field
        self._label_field = label_field
        file, self._bytes = open_plain(self.name)
        file.close()

    def count(self) -> int | None:
        """Non-empty lines; None above 256 MiB."""
        if self._bytes > _COUNT_LIMIT:
            return None
        with self._open() as file:
            return sum(bool(line) for _, line, _ in _lines(file))

    def __iter__(self) -> Iterator[Row]:
        seen = SeenKeys()
        with self._open() as file:
            for number, line, complete in _lines(file):
                if not complete:
                    detail = f"longer than {MAX_TEXT_BYTES} bytes"
                    yield Reject(self.name, f"line {number}", "line-too-long", detail)
                    continue
                if not line:
                    continue
                try:
                    record = self._record(number, line)
                except (FieldError, FileRefusedError) as error:
                    yield Reject(self.name, f"line {number}", error.code, error.detail)
                    continue
                if not seen.add(record.key):
                    detail = f"line {number}: the key occurs twice"
                    yield Reject(self.name, record.key, "duplicate-key", detail)
                    continue
                yield record

    def _open(self) -> BinaryIO:
        return open_plain(self.name)[0]

    def _record(self, number: int, line: bytes) -> Record:
        data = parse_object(line)
        path = _first_text(data, PATH_KEYS)
        uri = file_uri(self._path, f"line={number}".encode())
        image = None
        if path is not None:
            relative = self._relative(path)
            image = read_confined(self._root, relative, limit=MAX_IMAGE_BYTES)
            uri = file_uri(self._root.rstrip(b"/") + b"/" + relative)
        elif "image_base64" in data:
            image = _decode_base64(data["image_base64"])
        key_name = next((key for key in ID_KEYS if data.get(key) is not None), None)
        used = {"image_base64", *(k for k in PATH_KEYS if data.get(k) == path and path is not None)}
        fields = interpret(
            data,
            text_field=self._text_field,
            label_field=self._label_field,
            consumed=[*used, *([key_name] if key_name else [])],
        )
        if image is None and not fields.texts:
            raise FieldError("no-image", f"none of {', '.join(PATH_KEYS)}, image_base64")
        return Record(
            key=_key(data[key_name]) if key_name else path or f"line-{number}",
            uri=uri,
            image=image,
            texts=fields.texts,
            label=fields.label,
            attributes=fields.attributes,
        )

    def _relative(self, path: str) -> bytes:
        """The path below the manifest's folder; an absolute one is accepted if it lies there."""
        raw = os.fsencode(path)
        prefix = self._root.rstrip(b"/") + b"/"
        relative = raw.removeprefix(prefix) if raw.startswith(prefix) else raw
        while relative.startswith(b"./"):
            relative = relative[2:]
        return relative


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes, bool]]:
    """(line number from 1, content without surrounding white space, whether it is complete).

    An overlong line is skipped in pieces of the limit, never held whole.
    """
    number = 0
    while line := file.readline(MAX_TEXT_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(_BOM)
        complete = len(line) <= MAX_TEXT_BYTES or line.endswith(b"\n")
        yield number, line.strip(), complete
        rest = line
        while not complete and rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_TEXT_BYTES)


def _first_text(data: dict[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        value = data.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or not value:
            raise FieldError("bad-path", f"{name} must be a path")
        return value
    return None


def _key(value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise FieldError("bad-id", "an id must be text or a whole number")


def _decode_base64(value: Any) -> bytes:
    if not isinstance(value, str):
        raise FieldError("bad-base64", "image_base64 must be text")
    if value.startswith("data:"):
        value = value.partition(",")[2]
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FieldError("bad-base64", str(error)) from error
    if not data:
        raise FieldError("empty-file", "image_base64 is empty")
    return data
