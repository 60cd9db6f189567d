"""GET /v1/indexes, /v1/index, /v1/items/{id} and its thumbnail."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from service.http.middleware.endpoints import LOOKUP
from service.http.resources import answers, index_shapes, presenting, schemas
from service.http.resources.state import EngineOf, StateOf

router = APIRouter(prefix="/v1", tags=["index"])

_THUMBNAIL = "/thumbnail"
ItemId = Annotated[
    str,
    Path(
        description="The item's id, percent-encoded as one segment.",
        examples=[schemas.EXAMPLE_ID],
    ),
]


@router.get("/index", summary="What is loaded")
@LOOKUP
def index(engine: EngineOf, response: Response) -> index_shapes.IndexResponse:
    """Version, counts and model of the index that answers now."""
    info = presenting.index_info(engine)
    response.headers["Index-Version"] = str(info.version)
    return info


@router.get("/indexes", summary="All that is served")
@LOOKUP
def indexes(state: StateOf) -> index_shapes.IndexesResponse:
    """The indexes this service answers from, the one that needs no naming first."""
    return presenting.indexes(state.engines)


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
        found = presenting.item(engine, id + _THUMBNAIL)
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
def item(id: ItemId, engine: EngineOf, response: Response) -> answers.Item:
    """An indexed picture or text by its id. Percent-encode the id as one path segment."""
    response.headers["Index-Version"] = str(engine.reader.version)
    return presenting.item(engine, id)
