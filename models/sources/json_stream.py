"""A large JSON document, walked element by element in bounded memory.

Only what is asked for is decoded, one element at a time, each at most `MAX_ELEMENT` long. Not a
general parser: the document is an array, or an object whose arrays are visited. Streaming packages
bound neither the length of a string nor the size of a value, hence this one.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, Final

from models.errors import SourceError
from models.sources.files import COUNT_LIMIT, open_text

MAX_ELEMENT: Final = 4 << 20
"""Characters of one element; parsing takes up to about 25 times that in memory."""
_CHUNK: Final = 1 << 18
_SPACE: Final = re.compile(r"[ \t\r\n]*")


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse)


class JsonStream:
    """A cursor over a document; positions are bytes from the start of the file.

    Raises (every method):
        SourceError: `source-damaged`, with the position of the damage.
    """

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self._path = path
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._position = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
        file.seek(self._position)

    def first(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None
            self._advance(space.end())
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def fields(self) -> Iterator[str]:
        """Keys of the object that begins here; the caller consumes each value in between."""
        self._take("{")
        if self.first() == "}":
            self._take("}")
            return
        while True:
            key, _, _ = self.value()
            if not isinstance(key, str):
                raise self._damaged("expected a key")
            self._take(":")
            yield key
            if self._ends("}"):
                return

    def elements(self) -> Iterator[tuple[Any, int, int]]:
        """(element, its position, its length in bytes) of the array that begins here."""
        self._take("[")
        if self.first() == "]":
            self._take("]")
            return
        while True:
            yield self.value()
            if self._ends("]"):
                return

    def value(self) -> tuple[Any, int, int]:
        """The value that begins here, its position, its length in bytes."""
        self.first()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._at > MAX_ELEMENT or not self._more():
                    raise self._damaged("a value that is broken, or too long") from error
                continue
            # a number that ends with the buffer may go on behind it
            if end < len(self._text) or not self._more():
                break
        start = self._position
        self._advance(end)
        return value, start, self._position - start

    def skip(self) -> None:
        """Step over the value that begins here; an array or object of any length."""
        start = self.first()
        if start == "[":
            for _ in self.elements():
                pass
        elif start == "{":
            for _ in self.fields():
                self.value()
        else:
            self.value()

    def end(self) -> None:
        """Nothing but white space may follow the document."""
        if self.first():
            raise self._damaged("text after the end of the document")

    def _take(self, wanted: str) -> None:
        found = self.first()
        if found != wanted:
            raise self._damaged(f"expected {wanted} and found {found or 'the end'}")
        self._advance(self._at + 1)

    def _ends(self, close: str) -> bool:
        if self.first() == close:
            self._take(close)
            return True
        self._take(",")
        return False

    def _advance(self, to: int) -> None:
        part = self._text[self._at : to]
        self._position += len(part) if part.isascii() else len(part.encode())
        self._at = to

    def _more(self) -> bool:
        """Read on; False at the end of the file."""
        data = self._file.read(_CHUNK)
        try:
            text = self._decode.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{self._path} is not UTF-8 after byte {self._position}", code="source-damaged"
            ) from error
        self._text = self._text[self._at :] + text
        self._at = 0
        return bool(data)

    def _damaged(self, why: str) -> SourceError:
        return SourceError(
            f"{self._path}: damaged at byte {self._position}: {why}", code="source-damaged"
        )


def images(stream: JsonStream) -> Iterator[tuple[int, Any]]:
    """(number from 1, element) of the document's `images`."""
    for key in stream.fields():
        if key == "images":
            for number, (image, _, _) in enumerate(stream.elements(), start=1):
                yield number, image
        else:
            stream.skip()
    stream.end()


def count_where(path: str, walk: Callable[[JsonStream], Iterable[Any]]) -> int | None:
    """How many elements a walk over the document finds; None above 256 MiB.

    Raises:
        SourceError: the document is damaged.
    """
    file, size = open_text(path)
    with file:
        return None if size > COUNT_LIMIT else sum(1 for _ in walk(JsonStream(file, path)))
