"""From a request that writes items to the index's records: JSON, a form, or a picture itself."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from indexer.ingest.prepare import check_record
from models.sources.records import UNDETERMINED, Record
from service.http.middleware.problems import ProblemError, refuse
from service.http.resources import bodies
from service.http.resources.fetching import Fetch
from service.http.resources.item_shapes import ItemOptions, ItemRequest

_LISTS = frozenset({"text"})


async def item_body(request: Request) -> ItemRequest | tuple[ItemOptions, bytes | None]:
    """A FastAPI dependency: what was sent, as its media type says, decoded no further."""
    kind = bodies.media_type(request)
    values: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in _LISTS:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise refuse("invalid-request", "A query parameter is given twice.")
        elif name != "index":  # which index is written is the route's affair
            values[name] = value
    if kind == "application/json":
        if values:  # silently ignored, an option would be believed to have been taken
            raise refuse("invalid-request", "With JSON the options stand in the body.")
        return bodies.validated(ItemRequest, bodies.parse_json(await request.body()))
    if kind == "multipart/form-data":
        form = await bodies.read_form(request)
        fields = form.single_fields(lists=_LISTS)
        if values.keys() & fields.keys():
            raise refuse("invalid-request", "An option is both a parameter and a form field.")
        if len(form.files) > 1 or any(name != "image" for name, _ in form.files):
            raise refuse("invalid-request", "Send one picture, in the field `image`.")
        picture = form.files[0][1] if form.files else None
        return bodies.validated(ItemOptions, values | fields), picture
    if kind.startswith("image/") or kind == "application/octet-stream":
        return bodies.validated(ItemOptions, values, place="query"), await request.body()
    raise refuse(
        "unsupported-media-type", "Send application/json, multipart/form-data or an image/* body."
    )


def record_of(
    item_id: str, sent: ItemRequest | tuple[ItemOptions, bytes | None], fetch: Fetch, at: str = "#"
) -> Record:
    """A record to store; blocks where an address is fetched.

    Raises:
        ProblemError: an id or attributes that no item can have, base64 that is none.
        UrlError: as `fetch`.
    """
    if isinstance(sent, ItemRequest):
        texts = {UNDETERMINED: [sent.text]} if sent.text is not None else sent.texts
        attributes: Any = sent.attributes
        image = _picture(sent, fetch, at)
    else:
        options, image = sent
        sent = ItemRequest.model_construct(label=options.label, uri=options.uri)
        texts = {options.language: options.text} if options.text else {}
        attributes = _attributes(options.attributes)
    record = Record(
        key=item_id,
        uri=sent.uri or "",
        image=image,
        texts={language: tuple(ones) for language, ones in texts.items() if ones},
        label=sent.label,
        attributes=attributes,
    )
    why = check_record(record)
    if why is not None:
        raise refuse("invalid-request", f"It cannot be stored: {why}.")
    return record


def _picture(sent: ItemRequest, fetch: Fetch, at: str) -> bytes | None:
    if sent.image_url is not None:
        return fetch(sent.image_url)
    if sent.image is None:
        return None
    data = bodies.decode_base64(sent.image)
    if data is None:
        error = {"pointer": f"{at}/image", "code": "image-undecodable", "detail": "base64"}
        raise refuse(
            "image-undecodable", "Not base64, and not a data: URI of base64.", errors=[error]
        )
    return data


def _attributes(text: str) -> dict[str, Any]:
    """Attributes that came as text."""
    try:
        found = bodies.parse_json(text.encode("utf-8", "surrogatepass"))
    except ProblemError as error:
        raise refuse("invalid-request", f"attributes, as JSON: {error.detail}") from None
    if not isinstance(found, dict):
        raise refuse("invalid-request", "attributes is a JSON object.")
    return found
