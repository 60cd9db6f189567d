"""POST /v1/search and its two headline forms."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from indexer.search.options import Target
from service.engine.engine import Engine
from service.engine.queries import ImageQuery, SearchQuery, TextQuery
from service.engine.retrieval import only_waits
from service.engine.steps import finish_async
from service.http.middleware.endpoints import Endpoint, json_of, picture_of
from service.http.resources import answers, bodies, presenting, schemas
from service.http.resources.asking import needs_thread, search_options, search_query
from service.http.resources.direct import DirectRoute, direct
from service.http.resources.fetching import fetch_by
from service.http.resources.state import EngineOf, app_state
from service.http.resources.uploads import PictureSearch, picture_search
from service.operations import timing

router = APIRouter(prefix="/v1/search", tags=["search"], route_class=DirectRoute)

# hits that the event loop turns into JSON itself: a millisecond's work
_SMALL_PAGE = 100
_UPLOAD = picture_of(schemas.ImageSearchOptions)


async def _answer(
    request: Request, engine: Engine, query: SearchQuery, target: Target, page: schemas.Page
) -> Response:
    options = search_options(page, target)
    reads_more = not options.include.isdisjoint(("embedding", "thumbnail"))
    if only_waits(query) and not reads_more and options.k <= _SMALL_PAGE:
        # no thread for what only waits: each would have to be woken twice, and 32 of them at once
        # fight over Python's lock with the thread that embeds
        answer = await finish_async(engine.search_steps(query, options))
        found = presenting.search(engine, answer, options.include)
    else:
        answer = await run_in_threadpool(engine.search, query, options)
        found = await run_in_threadpool(presenting.search, engine, answer, options.include)
    # optional parts appear only when asked for
    body = found.model_dump_json(exclude_unset=True)
    timing.report(request.scope, answer.timings)
    return Response(
        body, headers={"Index-Version": str(answer.index_version)}, media_type="application/json"
    )


async def _search(body: schemas.SearchRequest, engine: Engine, request: Request) -> Response:
    fetch = fetch_by(app_state(request).fetcher)
    if needs_thread(body.query):
        query = await run_in_threadpool(search_query, body.query, fetch)
    else:
        query = search_query(body.query, fetch)
    return await _answer(request, engine, query, body.target, body)


async def _text_to_image(
    body: schemas.TextToImageRequest, engine: Engine, request: Request
) -> Response:
    return await _answer(request, engine, TextQuery(body.text), "images", body)


_search_body = bodies.json_body(schemas.SearchRequest)
_text_body = bodies.json_body(schemas.TextToImageRequest)


@router.post(
    "",
    summary="Search by text, picture, item or embedding",
    response_model=answers.SearchResponse,
)
@Endpoint(
    access="read",
    lane="search",
    cost="body",
    idempotency_key=False,
    body=json_of(schemas.SearchRequest),
)
@direct(_search_body, _search)
async def search(
    body: Annotated[schemas.SearchRequest, Depends(_search_body)],
    engine: EngineOf,
    request: Request,
) -> Response:
    """The `k` pictures or texts closest to the query, best first; `score` is the cosine.

    The query may have several parts, each with a weight: text, picture, item or embedding. Items
    of the query are left out of the hits.
    """
    return await _search(body, engine, request)


@router.post(
    "/text-to-image",
    summary="Pictures for a text",
    response_model=answers.SearchResponse,
)
@Endpoint(
    access="read",
    lane="search",
    cost="body",
    idempotency_key=False,
    body=json_of(schemas.TextToImageRequest),
)
@direct(_text_body, _text_to_image)
async def text_to_image(
    body: Annotated[schemas.TextToImageRequest, Depends(_text_body)],
    engine: EngineOf,
    request: Request,
) -> Response:
    """The pictures that fit a description best."""
    return await _text_to_image(body, engine, request)


@router.post(
    "/image-to-text",
    summary="Texts (or pictures) for a picture",
    response_model=answers.SearchResponse,
)
@Endpoint(access="read", lane="pictures", cost="body", idempotency_key=False, body=_UPLOAD)
async def image_to_text(
    upload: Annotated[PictureSearch, Depends(picture_search)],
    engine: EngineOf,
    request: Request,
) -> Response:
    """The texts that fit a picture best, or with `target=images` the pictures most like it.

    Send the picture as the field `image` of a multipart form, or as the body itself. Options are
    query parameters, or fields of the form.
    """
    options = upload.options
    given = options.model_dump(exclude={"target", "filter"})
    page = schemas.Page(**given, filter=upload.filter)
    return await _answer(request, engine, ImageQuery(upload.image), options.target, page)
