"""clip-retrieval's three endpoints, so that its clients work unchanged.

Its safety, violence, aesthetic and multilingual switches stand for models of its own; they are
read and have no effect here. Bodies are JSON whatever their type is said to be, because its client
says nothing and its page says text/plain.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from fastapi import APIRouter, Depends, Request, Response

from indexer.search.options import SearchOptions
from models.errors import NotFoundError
from service.engine.engine import Engine
from service.engine.queries import (
    EmbeddingQuery,
    ImageQuery,
    SearchQuery,
    TextQuery,
)
from service.http.middleware.endpoints import LOOKUP, Endpoint, json_of
from service.http.middleware.problems import refuse
from service.http.resources import bodies
from service.http.resources.fetching import Fetch, FetchOf
from service.http.resources.knn_shapes import (
    IndicesResponse,
    KnnHit,
    KnnMetadata,
    KnnRequest,
    KnnResponse,
    MetadataOf,
    MetadataRequest,
    MetadataResponse,
)
from service.http.resources.state import StateOf

router = APIRouter(tags=["clip-retrieval"])


async def _knn(request: Request) -> KnnRequest:
    return bodies.validated(KnnRequest, bodies.parse_json(await request.body()))


async def _metadata(request: Request) -> MetadataRequest:
    return bodies.validated(MetadataRequest, bodies.parse_json(await request.body()))


@router.post(
    "/knn-service",
    summary="Search, as clip-retrieval's clients ask",
    response_model=KnnResponse,
)
@Endpoint(
    access="read", lane="search", cost="body", idempotency_key=False, body=json_of(KnnRequest)
)
def knn_service(
    body: Annotated[KnnRequest, Depends(_knn)], state: StateOf, fetch: FetchOf
) -> Response:
    """The nearest pictures or texts. Hits beyond `num_images` carry only `id` and `similarity`."""
    query = _query(body, fetch)
    with state.engine(body.indice_name).pin() as engine:
        options = SearchOptions(
            k=body.k,
            target="images" if body.modality == "image" else "texts",
            deduplicate=body.deduplicate,
        )
        answer = engine.search(query, options)
        hits = []
        for rank, hit in enumerate(answer.hits):
            known: dict[str, Any] = {}
            if rank < body.num_images:
                known = _known(engine, hit.item).model_dump()
            hits.append(KnnHit(**known, id=engine.reader.number(hit.item), similarity=hit.score))
    headers = {"Index-Version": str(answer.index_version)}
    document = KnnResponse(hits).model_dump_json(exclude_none=True)
    return Response(document, headers=headers, media_type="application/json")


@router.get("/indices-list", summary="The indexes, as clip-retrieval's clients ask")
@LOOKUP
async def indices_list(state: StateOf) -> IndicesResponse:
    return IndicesResponse(list(state.engines))


@router.post(
    "/metadata",
    summary="Items by number, as clip-retrieval's clients ask",
    response_model=MetadataResponse,
)
@Endpoint(
    access="read", lane="search", cost="body", idempotency_key=False, body=json_of(MetadataRequest)
)
def metadata(body: Annotated[MetadataRequest, Depends(_metadata)], state: StateOf) -> Response:
    """What is known of the items that /knn-service named by these numbers."""
    with state.engine(body.indice_name).pin() as engine:
        found = [
            MetadataOf(id=number, metadata=_known(engine, engine.reader.numbered(number)))
            for number in body.ids
        ]
        headers = {"Index-Version": str(engine.reader.version)}
    document = MetadataResponse(found).model_dump_json(exclude_none=True)
    return Response(document, headers=headers, media_type="application/json")


def _query(body: KnnRequest, fetch: Fetch) -> SearchQuery:
    """In clip-retrieval's order where several are given."""
    if body.text:
        return TextQuery(body.text)
    if body.image:
        data = bodies.decode_base64(body.image)
        if data is None:
            raise refuse("image-undecodable", "Not base64, and not a data: URI of base64.")
        return ImageQuery(data)
    if body.image_url:
        return ImageQuery(fetch(body.image_url))
    assert body.embedding_input is not None, "the shape lets nothing else through"
    return EmbeddingQuery(body.embedding_input)


def _known(engine: Engine, item: Any) -> KnnMetadata:
    parts = urlsplit(item.uri or "")
    image_id = item.id if item.modality == "image" else item.image_id
    image = None
    if image_id is not None:
        try:
            image = base64.b64encode(engine.thumbnail(image_id)).decode("ascii")
        except NotFoundError:  # an index may keep no thumbnails
            image = None
    return KnnMetadata(
        caption=item.text,
        url=item.uri if parts.scheme in ("http", "https") else None,
        image_path=_path(item.uri),
        image=image,
        item_id=item.id,
    )


def _path(uri: str | None) -> str | None:
    """Of a picture in a file; what was imported from clip-retrieval has bare paths."""
    parts = urlsplit(uri or "")
    if parts.scheme == "file":
        return unquote(parts.path)
    return None if parts.scheme else uri or None
