"""The headline forms of /v1/search: POST /v1/search/text-to-image and /v1/search/image-to-text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from indexer.search.options import DEFAULTS, Target, parse_sort
from service.engine.queries import ImageQuery, TextQuery
from service.http.middleware.admission import charge
from service.http.middleware.endpoints import Endpoint, json_of, picture_of
from service.http.middleware.lanes import Price
from service.http.middleware.problems import ProblemError, refuse
from service.http.requests import bodies
from service.http.requests.fields import SearchText, examples
from service.http.requests.state import DirectRoute, EngineOf, direct
from service.http.resources.items import told_bytes
from service.http.resources.search import (
    FILTER_WORDS,
    SORT_WORDS,
    Deduplicate,
    Effort,
    Exact,
    K,
    Offset,
    Page,
    SearchResponse,
    answered,
    search_options,
)

router = APIRouter(prefix="/v1/search", tags=["search"], route_class=DirectRoute)


class TextToImageRequest(Page):
    model_config = examples(
        {"text": "a red apple", "k": 3},
        {"text": "a red apple", "hybrid": 0.6, "deduplicate": True, "exact": True},
        {"text": "红苹果", "filter": {"field": "year", "eq": 2024}},
    )
    text: SearchText


class ImageSearchOptions(BaseModel):
    """Options beside an uploaded picture, as query parameters or form fields: text, so coerced.

    Without `hybrid`: a picture alone has no words.
    """

    model_config = ConfigDict(extra="forbid")
    k: K = DEFAULTS.k
    offset: Offset = DEFAULTS.offset
    min_score: Annotated[
        float | None,
        Field(ge=-1, le=1, allow_inf_nan=False, description="Leave out lower cosines."),
    ] = None
    target: Annotated[Target, Field(description="What to look for.")] = "texts"
    filter: Annotated[
        str | None, Field(max_length=1 << 20, description="A filter, as JSON. " + FILTER_WORDS)
    ] = None
    deduplicate: Deduplicate = False
    exact: Exact = False
    effort: Effort = None
    sort: Annotated[
        str | None,
        Field(max_length=1000, description=f"`FIELD:asc` or `FIELD:desc`, commas. {SORT_WORDS}"),
    ] = None


@dataclass(frozen=True, slots=True)
class PictureSearch:
    image: bytes
    options: ImageSearchOptions
    filter: Any = None


async def picture_search(request: Request) -> PictureSearch:
    """A FastAPI dependency: one picture and the options beside it."""
    upload = await bodies.read_upload(request, bodies.query_options(request))
    if upload is None:
        raise refuse("unsupported-media-type", "Send multipart/form-data or an image/* body.")
    pictures = bodies.picture_fields(upload.pictures)
    if len(pictures) != 1:
        raise refuse("invalid-request", f"Send one picture, got {len(pictures)}.")
    options = bodies.validated(ImageSearchOptions, upload.options, place="query")
    return PictureSearch(pictures[0], options, _filter(options.filter))


def _filter(text: str | None) -> Any:
    """A filter that came as text; None without one."""
    if text is None:
        return None
    try:
        return bodies.parse_json(text.encode())
    except ProblemError as error:
        error_list = [{"parameter": "filter", "code": "invalid-filter", "detail": error.detail}]
        raise refuse("invalid-filter", f"As JSON: {error.detail}", errors=error_list) from None


_UPLOAD = picture_of(ImageSearchOptions)
_text_body = bodies.json_body(TextToImageRequest)


@router.post("/text-to-image", summary="Pictures for a text", response_model=SearchResponse)
@Endpoint(
    access="read",
    lane="search",
    cost="body",
    idempotency_key=False,
    body=json_of(TextToImageRequest),
)
@direct(_text_body)
async def text_to_image(
    body: Annotated[TextToImageRequest, Depends(_text_body)], engine: EngineOf, request: Request
) -> Response:
    """The pictures that fit a description best."""
    options = search_options(body, "images")
    told = told_bytes(engine, options.k, options.target, options.include)
    await charge(request.scope, Price(texts=1, answer_bytes=told))
    return await answered(request, engine, TextQuery(body.text), options)


@router.post(
    "/image-to-text", summary="Texts (or pictures) for a picture", response_model=SearchResponse
)
@Endpoint(access="read", lane="pictures", cost="body", idempotency_key=False, body=_UPLOAD)
async def image_to_text(
    upload: Annotated[PictureSearch, Depends(picture_search)], engine: EngineOf, request: Request
) -> Response:
    """The texts that fit a picture best, or with `target=images` the pictures most like it.

    Send the picture as the field `image` of a multipart form, or as the body itself. Options are
    query parameters, or fields of the form.
    """
    options = upload.options
    given = options.model_dump(exclude={"target", "filter", "sort"})
    asked = search_options(Page(**given, filter=upload.filter), options.target)
    if options.sort is not None:
        asked = replace(asked, sort=parse_sort(options.sort))
    told = told_bytes(engine, asked.k, asked.target, asked.include)
    await charge(request.scope, Price(pictures=1, answer_bytes=told))
    return await answered(request, engine, ImageQuery(upload.image), asked)
