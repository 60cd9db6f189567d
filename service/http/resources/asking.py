"""From the request's shape of a query to the engine's: base64 decoded, addresses fetched."""

from __future__ import annotations

from indexer.filters.language import parse_filter
from indexer.search.options import SearchOptions, Target
from service.engine.queries import (
    ComposedQuery,
    EmbeddingQuery,
    ImageQuery,
    ItemQuery,
    Part,
    SearchQuery,
    TextQuery,
    Weighted,
)
from service.http.middleware.problems import refuse
from service.http.resources import bodies, schemas
from service.http.resources.fetching import Fetch


def search_query(given: schemas.Query | list[schemas.Query], fetch: Fetch) -> SearchQuery:
    """Blocks where `needs_thread` says so.

    Raises:
        ProblemError: base64 that is none, or an address where nothing is fetched.
        UrlError: an address that is refused, or gave no picture.
    """
    if not isinstance(given, list):
        part = _part(given, "#/query", fetch)
        # alone a weight only tells towards from away
        return part if given.weight > 0 else ComposedQuery((Weighted(part, given.weight),))
    return ComposedQuery(
        tuple(
            Weighted(_part(query, f"#/query/{number}", fetch), query.weight)
            for number, query in enumerate(given)
        )
    )


def search_options(page: schemas.Page, target: Target) -> SearchOptions:
    """How a request wants its search done.

    Raises:
        InvalidFilterError: the filter is none.
    """
    return SearchOptions(
        k=page.k,
        offset=page.offset,
        target=target,
        filter=None if page.filter is None else parse_filter(page.filter),
        min_score=page.min_score,
        hybrid=page.hybrid,
        deduplicate=page.deduplicate,
        exact=page.exact,
        effort=page.effort,
        include=frozenset(page.include),
    )


def needs_thread(given: schemas.Query | list[schemas.Query]) -> bool:
    """Whether reading it would hold up an event loop: base64 of a large picture, an address."""
    parts = given if isinstance(given, list) else [given]
    return any(part.image is not None or part.image_url is not None for part in parts)


def _part(query: schemas.Query, pointer: str, fetch: Fetch) -> Part:
    if query.text is not None:
        return TextQuery(query.text)
    if query.id is not None:
        return ItemQuery(query.id)
    if query.embedding is not None:
        return EmbeddingQuery(query.embedding)
    if query.image_url is not None:
        return ImageQuery(fetch(query.image_url))
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
