"""Reading request bodies, for the resources: strict JSON, forms, pictures. Knows no resource.

JSON is stricter than Python's reader: UTF-8 only, no NaN or Infinity, no duplicate keys, no lone
surrogates or NUL, and bounded depth, size and digits, so that no body is slow or surprising.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.engine.queries import storable
from service.http.middleware.problems import ProblemError, refuse

M = TypeVar("M", bound=BaseModel)

_MAX_DEPTH = 32
_MAX_MARKS = 100_000  # commas, colons and brackets: parsing stays in the tens of milliseconds
_MAX_DIGITS = 300  # still a float64
_MAX_FILES = 64
_MAX_FIELDS = 2_500
_MAX_FIELD_BYTES = 1 << 20


def parse_json(body: bytes) -> Any:
    """The document, or a ProblemError `malformed-json` (400) or `invalid-text` (422)."""
    if sum(body.count(mark) for mark in (b",", b":", b"[", b"{")) > _MAX_MARKS:
        raise refuse("malformed-json", "The document has too many parts.")
    try:
        document = _STRICT.decode(body.decode("utf-8"))
    except ProblemError:
        raise
    except UnicodeDecodeError:
        raise refuse("malformed-json", "The body is not UTF-8.") from None
    except json.JSONDecodeError as error:
        raise refuse(
            "malformed-json", f"Not JSON at line {error.lineno}, column {error.colno}."
        ) from None
    except RecursionError:
        raise refuse("malformed-json", "The document is nested too deeply.") from None
    _check(document)
    return document


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        # two readers of a duplicated key may each take another value
        raise refuse("malformed-json", "An object has a key twice.")
    return members


def _no_constant(_: str) -> NoReturn:
    raise refuse("malformed-json", "NaN and Infinity are not JSON.")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise refuse("malformed-json", "A number is too large.")
    return value


def _bounded_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise refuse("malformed-json", "A number has too many digits.")
    return int(digits)


_STRICT = json.JSONDecoder(
    object_pairs_hook=_distinct,
    parse_constant=_no_constant,
    parse_float=_finite,
    parse_int=_bounded_int,
)


def _check(document: Any) -> None:
    """Depth, and text that is valid Unicode, without recursion."""
    level: list[Any] = [document]
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                if not storable(value):
                    raise refuse("invalid-text", "A string holds NUL or a lone surrogate.")
            elif isinstance(value, dict):
                below.extend(value.keys())
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
        if not below:
            return
        level = below
    raise refuse("malformed-json", "The document is nested too deeply.")


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def validated(model: type[M], values: Any, place: str = "body") -> M:
    """The values as the model, its complaints located under `place`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(
            [{**complaint, "loc": (place, *complaint["loc"])} for complaint in error.errors()]
        ) from None


def json_body(model: type[M]) -> Callable[[Request], Awaitable[M]]:
    """A FastAPI dependency: the JSON body as `model`."""

    async def read(request: Request) -> M:
        if media_type(request) != "application/json":
            raise refuse("unsupported-media-type", "Send the body as application/json.")
        return validated(model, parse_json(await request.body()))

    return read


@dataclass(frozen=True, slots=True)
class Form:
    """A multipart form: encoded pictures by field, and text fields, both in order."""

    files: tuple[tuple[str, bytes], ...]
    fields: tuple[tuple[str, str], ...]

    def single_fields(self, *, lists: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Fields by name; those in `lists` gather, any other may come once."""
        values: dict[str, Any] = {}
        for name, value in self.fields:
            if name in lists:
                values.setdefault(name, []).append(value)
            elif name in values:
                raise refuse("invalid-request", "A form field is given twice.")
            else:
                values[name] = value
        return values


class _WholeFormParser(MultiPartParser):
    """Refuses a form that ends without its closing boundary: part of it did not arrive."""

    spool_max_size = 1 << 62  # never spill a caller's picture to disk

    def __init__(self, request: Request) -> None:
        super().__init__(
            Headers(scope=request.scope),
            self._stream(request),
            max_files=_MAX_FILES,
            max_fields=_MAX_FIELDS,
            max_part_size=_MAX_FIELD_BYTES,
        )
        self.whole = False

    def on_end(self) -> None:
        self.whole = True

    async def _stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        async for chunk in request.stream():
            yield chunk
        if not self.whole:
            # raised while the base class reads, which then closes the parts it has begun
            raise MultiPartException("The form ends without its closing boundary.")


async def read_form(request: Request) -> Form:
    """Parse multipart/form-data in memory; the body's size is already bounded.

    File names and declared types are ignored: a picture is what its bytes say.
    """
    try:
        form = await _WholeFormParser(request).parse()
    except MultiPartException:
        raise refuse(
            "malformed-multipart", "The form cannot be read, or has too many parts."
        ) from None
    try:
        return await _gather(form)
    finally:
        await form.close()


async def _gather(form: FormData) -> Form:
    files: list[tuple[str, bytes]] = []
    fields: list[tuple[str, str]] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.append((name, await value.read()))
        elif not storable(value):
            raise refuse("invalid-text", "A form field holds NUL or a lone surrogate.")
        else:
            fields.append((name, value))
    return Form(tuple(files), tuple(fields))


def query_options(request: Request, *, lists: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Options in the URL by name; those in `lists` gather, any other may come once."""
    options: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in lists:
            options.setdefault(name, []).append(value)
        elif name in options:
            raise refuse("invalid-request", "A query parameter is given twice.")
        elif name != "index":  # which index answers is the route's affair, for every route
            options[name] = value
    return options


@dataclass(frozen=True, slots=True)
class Upload:
    """Pictures sent as they are, and the options beside them.

    Attributes:
        pictures: by form field; a picture that is the body itself is an `image`.
        options: of the URL and the form together, as text.
        form: whether it came as one.
    """

    pictures: tuple[tuple[str, bytes], ...]
    options: dict[str, Any]
    form: bool


async def read_upload(
    request: Request, options: dict[str, Any], *, lists: frozenset[str] = frozenset()
) -> Upload | None:
    """A multipart form, or a picture as the body itself, with the `options` of the URL.

    None where the body is of another type.
    """
    kind = media_type(request)
    if kind == "multipart/form-data":
        form = await read_form(request)
        fields = form.single_fields(lists=lists)
        if options.keys() & fields.keys():
            raise refuse("invalid-request", "An option is both a parameter and a form field.")
        return Upload(form.files, options | fields, form=True)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return Upload((("image", await request.body()),), options, form=False)
    return None


def picture_fields(files: Sequence[tuple[str, bytes]]) -> list[bytes]:
    """The pictures of a form that may have several."""
    if any(name not in ("image", "images") for name, _ in files):
        raise refuse("invalid-request", "Pictures go in the field `image`.")
    return [data for _, data in files]


def decode_base64(text: str) -> bytes | None:
    """A picture from base64 or a `data:` URI; None if it is neither."""
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def picture(text: str, pointer: str | None = None) -> bytes:
    """A picture in base64; refused, with the pointer to it, where it is none."""
    data = decode_base64(text)
    if data is None:
        error = {"pointer": pointer or "", "code": "image-undecodable", "detail": "base64"}
        raise refuse(
            "image-undecodable",
            "Not base64, and not a data: URI of base64.",
            errors=[] if pointer is None else [error],
        )
    return data


def decode_pictures(texts: Sequence[str]) -> list[bytes]:
    """Pictures in base64; broken base64 becomes bytes that are no picture, to fail alone."""
    return [decode_base64(text) or b"?" for text in texts]
