"""GET /v1/items/{id} and its thumbnail; what is told of an item wherever one is found."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field, JsonValue

from indexer.search import reader
from indexer.search.options import Include, Target
from models.errors import NotFoundError
from service.engine.engine import DEFAULT_NAME, Engine
from service.http.middleware.endpoints import LOOKUP
from service.http.middleware.lanes import LARGE_ANSWER_BYTES
from service.http.middleware.prefix import outside
from service.http.requests.fields import EXAMPLE_ID, examples
from service.http.requests.state import EngineOf

router = APIRouter(prefix="/v1", tags=["index"])
_THUMBNAIL = "/thumbnail"
# of JSON, as they usually are: an item's own fields, and what may come with it
_ITEM_BYTES = 400
_INCLUDED_BYTES = {"attributes": 100, "thumbnail": 6 << 10}
_NUMBER_BYTES = 21
ItemId = Annotated[
    str, Path(description="The item's id, percent-encoded as one segment.", examples=[EXAMPLE_ID])
]
EXAMPLE_ITEM: dict[str, JsonValue] = {
    "id": EXAMPLE_ID,
    "modality": "image",
    "uri": "file:///pictures/fruit/red%20apple.png",
    "text": "a red apple",
    "language": "en",
    "image_id": None,
    "label": None,
    "attributes": {"year": 2024},
    "thumbnail_url": "/v1/items/fruit%2Fred%20apple.png/thumbnail",
}


class Caption(BaseModel):
    id: str
    text: str
    language: str | None = None


class Item(BaseModel):
    model_config = examples(
        {
            **EXAMPLE_ITEM,
            "content_hash": "5f" * 32,
            "captions": [{"id": EXAMPLE_ID + "#en.0", "text": "a red apple", "language": "en"}],
        }
    )
    id: str
    modality: Literal["image", "text"]
    uri: str | None = None
    text: str | None = None
    language: str | None = None
    image_id: str | None = None
    label: str | None = None
    attributes: dict[str, Any]
    content_hash: str
    thumbnail_url: str | None = None
    captions: Annotated[
        list[Caption],
        Field(
            description="The texts of this picture, of the text's picture, or of a record of texts."
        ),
    ]


# before the plain item: its path would swallow this one
@router.get(
    "/items/{id:path}/thumbnail",
    summary="An item's thumbnail",
    response_class=Response,
    responses={
        200: {
            "description": "JPEG",
            "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
        },
        304: {"description": "The copy named by If-None-Match is current."},
    },
)
@LOOKUP
def thumbnail(id: ItemId, request: Request, engine: EngineOf) -> Response:
    """A small JPEG without metadata, re-encoded when the picture was indexed."""
    if not request.scope.get("raw_path", b"/thumbnail").endswith(_THUMBNAIL.encode()):
        # `a%2Fthumbnail` is one segment, an item's id, that decoding made look like this route
        found = _item(engine, id + _THUMBNAIL)
        return Response(found.model_dump_json(), media_type="application/json")
    jpeg = engine.thumbnail(id)
    etag = f'"{hashlib.sha256(jpeg).hexdigest()[:32]}"'
    # the picture behind an id may change with the next version of the index: revalidate
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(jpeg, media_type="image/jpeg", headers=headers)


@router.get("/items/{id:path}", summary="One item")
@LOOKUP
def item(id: ItemId, engine: EngineOf, response: Response) -> Item:
    """An indexed picture or text, or what was put with texts only, by its id.

    Percent-encode the id as one path segment.
    """
    response.headers["Index-Version"] = str(engine.reader.version)
    return _item(engine, id)


def _item(engine: Engine, item_id: str) -> Item:
    found = engine.item(item_id)
    # a record of texts only is no item of its own, but has an id that it was put under
    texts = engine.captions(found) if found.id == item_id else engine.reader.captions(item_id)
    captions = [Caption(id=text.id, text=text.text or "", language=text.language) for text in texts]
    return Item(
        **item_fields(engine, found) | {"id": item_id},
        attributes=dict(found.attributes),
        content_hash=found.content_hash,
        captions=captions,
    )


def item_fields(engine: Engine, item: reader.Item) -> dict[str, Any]:
    """What is told of an item here and of every hit."""
    image_id = picture_id(item)
    return {
        "id": item.id,
        "modality": item.modality,
        "uri": engine.file_paths.told(item.uri),
        "text": item.text,
        "language": item.language,
        "image_id": item.image_id,
        "label": item.label,
        "thumbnail_url": None if image_id is None else _thumbnail_url(engine, image_id),
    }


def told_bytes(engine: Engine, items: int, target: Target, include: Collection[Include]) -> int:
    """About how many bytes of JSON it takes to tell of so many items of a target."""
    each = _ITEM_BYTES + sum(_INCLUDED_BYTES.get(part, 0) for part in include)
    if "embedding" in include:
        each += _NUMBER_BYTES * engine.embeddings.dim
    if items * each > LARGE_ANSWER_BYTES:  # worth asking how many there are
        info = engine.index_info()
        items = min(items, info.images if target == "images" else info.texts)
    return items * each


def thumbnail_base64(engine: Engine, item: reader.Item) -> str | None:
    """The JPEG of an item's picture; None where it has none, or the index keeps none."""
    image_id = picture_id(item)
    if image_id is None:
        return None
    try:
        return base64.b64encode(engine.thumbnail(image_id)).decode("ascii")
    except NotFoundError:
        return None


def picture_id(item: reader.Item) -> str | None:
    """The picture an item is, or that a text belongs to."""
    return item.id if item.modality == "image" else item.image_id


def _thumbnail_url(engine: Engine, image_id: str) -> str:
    # an id may hold slashes, '#' and '?': all of it is one path segment
    url = outside(f"/v1/items/{quote(image_id, safe='')}/thumbnail")
    return url if engine.name == DEFAULT_NAME else f"{url}?index={quote(engine.name, safe='')}"
