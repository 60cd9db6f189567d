"""POST /v1/explain: which part of a picture answers to a text."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from service.engine.explanations import Explanation
from service.http.middleware.admission import charge
from service.http.middleware.endpoints import Endpoint, RequestBody
from service.http.middleware.lanes import Price
from service.http.middleware.problems import refuse
from service.http.requests import bodies
from service.http.requests.fields import (
    EXAMPLE_ID,
    EXAMPLE_PNG,
    Base64Image,
    SearchText,
    StrictModel,
    examples,
)
from service.http.requests.state import EngineOf
from service.operations import timing

router = APIRouter(prefix="/v1/explain", tags=["classify"])


class ExplainRequest(StrictModel):
    """A text, and either a picture or the id of an indexed one."""

    model_config = examples(
        {"text": "a red apple", "image": EXAMPLE_PNG},
        {"text": "红苹果", "id": EXAMPLE_ID},
        extra="forbid",
        strict=True,
    )
    text: SearchText
    image: Base64Image | None = None
    id: Annotated[
        str | None, Field(description="An indexed picture; its thumbnail is explained.")
    ] = None

    @model_validator(mode="after")
    def _one_picture(self) -> ExplainRequest:
        if (self.image is None) == (self.id is None):
            raise PydanticCustomError("invalid-request", "Give either an image or an id.")
        return self


class ExplainForm(BaseModel):
    """Multipart: the fields `text` and `image`."""

    text: str
    image: Annotated[bytes, Field(json_schema_extra={"format": "binary"})]


class HeatMap(BaseModel):
    width: Annotated[int, Field(description="Cells across the whole picture.")]
    height: int
    values: Annotated[
        list[list[float]],
        Field(description="Rows, top to bottom, of 0 to 1 relative to this picture's best place."),
    ]


class ExplainResponse(BaseModel):
    model_config = examples(
        {
            "width": 8,
            "height": 8,
            "map": {"width": 2, "height": 2, "values": [[0.0, 0.2], [0.1, 1.0]]},
            "score": 0.31,
            "method": "local-head",
            "image": "data:image/png;base64," + EXAMPLE_PNG,
            "model": "starter",
            "took_ms": 61.2,
            "timings": {"embed": 3.0, "prepare": 4.1, "explain": 45.2, "total": 61.2},
        }
    )
    width: Annotated[int, Field(description="Pixels of `image`.")]
    height: int
    map: HeatMap
    score: Annotated[float, Field(description="Cosine of picture and text.")]
    method: Annotated[str, Field(description="`local-head`, `grad-cam` or `legrad`.")]
    image: Annotated[str, Field(description="The map over the picture, PNG as a data URI.")]
    model: str
    took_ms: float
    timings: Annotated[dict[str, float], Field(description="Milliseconds per stage.")]


@dataclass(frozen=True, slots=True)
class PictureText:
    """A text, and an encoded picture or the id of an indexed one."""

    text: str
    image: bytes | None
    id: str | None


async def picture_text(request: Request) -> PictureText:
    """A FastAPI dependency: a text and a picture, from JSON or a form, charged as such."""
    asked = await _read(request)
    # the map is as much work as the picture
    await charge(request.scope, Price(texts=1, pictures=2))
    return asked


async def _read(request: Request) -> PictureText:
    kind = bodies.media_type(request)
    if kind == "application/json":
        body = bodies.validated(ExplainRequest, bodies.parse_json(await request.body()))
        if body.image is None:
            return PictureText(body.text, None, body.id)
        return PictureText(body.text, bodies.picture(body.image), None)
    if kind != "multipart/form-data":
        raise refuse("unsupported-media-type", "Send multipart/form-data or application/json.")
    form = await bodies.read_form(request)
    fields = form.single_fields()
    if [name for name, _ in form.files] != ["image"] or set(fields) != {"text"}:
        raise refuse("invalid-request", "Send one field `text` and one picture as `image`.")
    # the rules of a text are those of the JSON form
    checked = bodies.validated(ExplainRequest, {"text": fields["text"], "id": ""})
    return PictureText(checked.text, form.files[0][1], None)


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
