"""POST /v1/search and its two headline forms."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from indexer.filters import parse_filter
from service import answers, bodies, presenting, schemas
from service.auth import reads
from service.engine import Engine
from service.openapi import body_json, body_picture
from service.problems import refuse
from service.queries import (
    ComposedQuery,
    EmbeddingQuery,
    ImageQuery,
    ItemQuery,
    Part,
    SearchQuery,
    Target,
    TextQuery,
    Weighted,
)
from service.state import EngineOf
from service.uploads import PictureSearch, picture_search

router = APIRouter(prefix="/v1/search", tags=["search"])


def _query(given: schemas.Query | list[schemas.Query]) -> SearchQuery:
    if not isinstance(given, list):
        part = _part(given, "#/query")
        # alone a weight only tells towards from away
        return part if given.weight > 0 else ComposedQuery((Weighted(part, given.weight),))
    return ComposedQuery(
        tuple(
            Weighted(_part(query, f"#/query/{number}"), query.weight)
            for number, query in enumerate(given)
        )
    )


def _part(query: schemas.Query, pointer: str) -> Part:
    if query.text is not None:
        return TextQuery(query.text)
    if query.id is not None:
        return ItemQuery(query.id)
    if query.embedding is not None:
        return EmbeddingQuery(query.embedding)
    assert query.image is not None, "the schema lets exactly one through"
    data = bodies.decode_base64(query.image)
    if data is None:
        raise refuse(
            "image-undecodable",
            "Not base64, and not a data: URI of base64.",
            errors=[
                {"pointer": f"{pointer}/image", "code": "image-undecodable", "detail": "base64"}
            ],
        )
    return ImageQuery(data)


def _answer(
    engine: Engine, response: Response, query: SearchQuery, target: Target, page: schemas.Page
) -> answers.SearchResponse:
    answer = engine.search(
        query,
        target=target,
        k=page.k,
        offset=page.offset,
        filter=None if page.filter is None else parse_filter(page.filter),
        min_score=page.min_score,
        include_vectors="embedding" in page.include,
    )
    response.headers["Index-Version"] = str(answer.index_version)
    return presenting.search(engine, answer, page.include)


@router.post(
    "",
    summary="Search by text, picture, item or embedding",
    openapi_extra=body_json("SearchRequest"),
    response_model_exclude_unset=True,  # optional parts appear only when asked for
)
@reads
def search(
    body: Annotated[schemas.SearchRequest, Depends(bodies.json_body(schemas.SearchRequest))],
    engine: EngineOf,
    response: Response,
) -> answers.SearchResponse:
    """The `k` pictures or texts closest to the query, best first; `score` is the cosine.

    The query may have several parts, each with a weight: text, picture, item or embedding. Items
    of the query are left out of the hits.
    """
    return _answer(engine, response, _query(body.query), body.target, body)


@router.post(
    "/text-to-image",
    summary="Pictures for a text",
    openapi_extra=body_json("TextToImageRequest"),
    response_model_exclude_unset=True,  # optional parts appear only when asked for
)
@reads
def text_to_image(
    body: Annotated[
        schemas.TextToImageRequest, Depends(bodies.json_body(schemas.TextToImageRequest))
    ],
    engine: EngineOf,
    response: Response,
) -> answers.SearchResponse:
    """The pictures that fit a description best."""
    return _answer(engine, response, TextQuery(body.text), "images", body)


@router.post(
    "/image-to-text",
    summary="Texts (or pictures) for a picture",
    openapi_extra=body_picture(),
    response_model_exclude_unset=True,  # optional parts appear only when asked for
)
@reads
def image_to_text(
    upload: Annotated[PictureSearch, Depends(picture_search)],
    engine: EngineOf,
    response: Response,
) -> answers.SearchResponse:
    """The texts that fit a picture best, or with `target=images` the pictures most like it.

    Send the picture as the field `image` of a multipart form, or as the body itself. Options are
    query parameters, or fields of the form.
    """
    options = upload.options
    page = schemas.Page(
        k=options.k, offset=options.offset, min_score=options.min_score, filter=upload.filter
    )
    return _answer(engine, response, ImageQuery(upload.image), options.target, page)
