"""POST /v1/explain."""

from __future__ import annotations

import base64
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from service.engine.explanations import Explanation
from service.http.middleware.endpoints import Endpoint, RequestBody
from service.http.resources.explain_shapes import (
    ExplainForm,
    ExplainRequest,
    ExplainResponse,
    HeatMap,
    PictureText,
    picture_text,
)
from service.http.resources.state import EngineOf
from service.operations import timing

router = APIRouter(prefix="/v1/explain", tags=["classify"])
_BODY = RequestBody(
    content={"application/json": ExplainRequest, "multipart/form-data": ExplainForm}
)


@router.post(
    "",
    summary="Which part of a picture answers to a text",
    response_model=ExplainResponse,
    responses={
        200: {
            "description": "The map over the picture; as JSON with its numbers where the request "
            "accepts `application/json` and not `image/png`.",
            "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
@Endpoint(access="read", lane="long", cost="body", idempotency_key=False, body=_BODY)
def explain(
    asked: Annotated[PictureText, Depends(picture_text)], engine: EngineOf, request: Request
) -> Response:
    """A heat map over the picture, at most 512 pixels wide and high.

    Bright places answer most to the text within this picture; the map does not say whether the
    picture answers at all, `score` does.
    """
    image = asked.image
    if image is None:
        assert asked.id is not None, "the schema asks for one of the two"
        image = engine.thumbnail(asked.id)
    found = engine.explanations.explain(image, asked.text)
    accepted = request.headers.get("accept", "")
    timing.report(request.scope, found.timings)
    if "application/json" in accepted and "image/png" not in accepted:
        return Response(_document(found).model_dump_json(), media_type="application/json")
    return Response(found.png, media_type="image/png", headers={"Cache-Control": "no-store"})


def _document(found: Explanation) -> ExplainResponse:
    height, width = found.map_HW.shape
    rows = [[round(float(value), 4) for value in row] for row in found.map_HW]
    return ExplainResponse(
        width=found.width,
        height=found.height,
        map=HeatMap(width=width, height=height, values=rows),
        score=found.score,
        method=found.method,
        image=data_uri(found.png),
        model=found.model,
        took_ms=found.timings["total"],
        timings=dict(found.timings),
    )


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
