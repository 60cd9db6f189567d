"""Pictures as requests carry them: a multipart field, a raw body, or base64 in JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from service.http.middleware.problems import ProblemError, refuse
from service.http.resources import bodies, schemas

_SPLIT = re.compile(r"[,\n，、]")


@dataclass(frozen=True, slots=True)
class PictureSearch:
    image: bytes
    options: schemas.ImageSearchOptions
    filter: Any = None


@dataclass(frozen=True, slots=True)
class PictureClasses:
    images: list[bytes]
    options: schemas.ClassifyOptions
    examples: Mapping[str, Sequence[bytes]] = field(default_factory=dict)


async def picture_search(request: Request) -> PictureSearch:
    """A FastAPI dependency: one picture and the options beside it."""
    parameters: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name == "index":  # which index answers is the route's affair, for every route
            continue
        if name in parameters:
            raise refuse("invalid-request", "A query parameter is given twice.")
        parameters[name] = value
    kind = bodies.media_type(request)
    if kind == "multipart/form-data":
        form = await bodies.read_form(request)
        fields = form.single_fields()
        if parameters.keys() & fields.keys():
            raise refuse("invalid-request", "An option is both a parameter and a form field.")
        parameters |= fields
        pictures = _pictures(form)
        if len(pictures) != 1:
            raise refuse("invalid-request", f"Send one picture, got {len(pictures)}.")
        picture = pictures[0]
    elif kind.startswith("image/") or kind == "application/octet-stream":
        picture = await request.body()
    else:
        raise refuse("unsupported-media-type", "Send multipart/form-data or an image/* body.")
    options = bodies.validated(schemas.ImageSearchOptions, parameters, place="query")
    return PictureSearch(picture, options, _filter(options.filter))


def _filter(text: str | None) -> Any:
    """A filter that came as text; None without one."""
    if text is None:
        return None
    try:
        return bodies.parse_json(text.encode())
    except ProblemError as error:
        error_list = [{"parameter": "filter", "code": "invalid-filter", "detail": error.detail}]
        raise refuse("invalid-filter", f"As JSON: {error.detail}", errors=error_list) from None


async def picture_classes(request: Request) -> PictureClasses:
    """A FastAPI dependency: pictures and labels, from JSON or a form."""
    kind = bodies.media_type(request)
    if kind == "application/json":
        document = bodies.parse_json(await request.body())
        body = bodies.validated(schemas.ClassifyRequest, document)
        # a picture whose base64 is broken fails alone, as an undecodable one does
        images = bodies.decode_pictures(body.images)
        examples = {
            label: bodies.decode_pictures(texts) for label, texts in (body.examples or {}).items()
        }
        return PictureClasses(images, body, examples)
    if kind != "multipart/form-data":
        raise refuse("unsupported-media-type", "Send multipart/form-data or application/json.")
    form = await bodies.read_form(request)
    values = form.single_fields(lists=frozenset({"labels", "templates"}))
    if len(values.get("labels", [])) == 1:
        values["labels"] = [part.strip() for part in _SPLIT.split(values["labels"][0])]
    options = bodies.validated(schemas.ClassifyOptions, values)
    pictures = _pictures(form)
    if not pictures:
        raise refuse("invalid-request", "Send at least one picture in the field `image`.")
    return PictureClasses(pictures, options)


def _pictures(form: bodies.Form) -> list[bytes]:
    if any(name not in ("image", "images") for name, _ in form.files):
        raise refuse("invalid-request", "Pictures go in the field `image`.")
    return [data for _, data in form.files]
