"""clip-retrieval's three endpoints in its own shapes, so that its clients work unchanged.

Lenient where they are: its safety, violence, aesthetic and multilingual switches stand for models
of its own, are read and have no effect. Bodies are JSON whatever their type is said to be, because
its client says nothing and its page says text/plain.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote, urlsplit

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field, RootModel, model_validator
from pydantic_core import PydanticCustomError

from indexer.search.options import MAX_K, Include, SearchOptions, Target
from indexer.search.reader import Item
from service.engine.engine import Engine
from service.engine.queries import EmbeddingQuery, ImageQuery, SearchQuery, TextQuery
from service.http.middleware.admission import charge
from service.http.middleware.endpoints import LOOKUP, Endpoint, json_of
from service.http.middleware.lanes import Price
from service.http.requests import bodies
from service.http.requests.fields import EXAMPLE_PNG, examples
from service.http.requests.state import Fetch, StateOf, app_state
from service.http.resources.items import thumbnail_base64, told_bytes

router = APIRouter(tags=["clip-retrieval"])
MAX_ASKED = 1_000_000
MAX_IDS = 1000
_INCLUDED: Final[tuple[Include, ...]] = ("thumbnail",)


class KnnRequest(BaseModel):
    model_config = examples(
        {"text": "a red apple", "modality": "image", "num_images": 3},
        {
            "text": None,
            "image": EXAMPLE_PNG,
            "image_url": None,
            "embedding_input": None,
            "deduplicate": True,
            "use_safety_model": True,
            "use_violence_detector": True,
            "use_mclip": False,
            "aesthetic_score": 9,
            "aesthetic_weight": 0.5,
            "modality": "text",
            "num_images": 2,
            "num_result_ids": 4,
        },
        extra="ignore",
        strict=True,
    )
    text: str | None = None
    image: Annotated[str | None, Field(description="A picture in base64.")] = None
    image_url: str | None = None
    embedding_input: Annotated[
        list[float] | None, Field(max_length=16_384, description="A vector, in place of a query.")
    ] = None
    modality: Annotated[Literal["image", "text"], Field(description="What to look for.")]
    num_images: Annotated[
        int,
        Field(ge=1, le=MAX_ASKED, description=f"Hits with their metadata; at most {MAX_K} come."),
    ]
    num_result_ids: Annotated[
        int | None, Field(ge=1, le=MAX_ASKED, description="Hits in all. [default: num_images]")
    ] = None
    deduplicate: Annotated[
        bool, Field(description="Leave out near-duplicates of a better hit.")
    ] = False
    indice_name: Annotated[
        str | None, Field(description="As /indices-list names it; without it the first.")
    ] = None

    @model_validator(mode="after")
    def _something_is_asked(self) -> KnnRequest:
        # an empty text means none to clip-retrieval, and its page sends one beside a picture
        if not self.text and not (self.image or self.image_url) and self.embedding_input is None:
            raise PydanticCustomError(
                "invalid-request", "Give one of text, image, image_url and embedding_input."
            )
        return self

    @property
    def k(self) -> int:
        return min(MAX_K, max(self.num_images, self.num_result_ids or 0))


class KnnMetadata(BaseModel):
    """What is known of an item, in clip-retrieval's words."""

    caption: str | None = None
    url: Annotated[str | None, Field(description="Where the source keeps it, if on the web.")] = (
        None
    )
    image_path: Annotated[str | None, Field(description="The same, if it is a file.")] = None
    image: Annotated[str | None, Field(description="The thumbnail, JPEG in base64.")] = None
    item_id: Annotated[str, Field(description="The item's id everywhere else in this service.")]


class KnnHit(KnnMetadata):
    item_id: str | None = None  # type: ignore[assignment]  # none beyond num_images
    id: Annotated[int, Field(description="Means the same until the index is next optimised.")]
    similarity: float


class KnnResponse(RootModel[list[KnnHit]]):
    model_config = examples(
        [
            {
                "caption": "a red apple",
                "image_path": "/p/apple.png",
                "item_id": "apple.png",
                "id": 0,
                "similarity": 0.3127,
            }
        ]
    )


class MetadataRequest(BaseModel):
    model_config = examples({"ids": [0, 1]}, extra="ignore", strict=True)
    ids: Annotated[list[int], Field(max_length=MAX_IDS)]
    indice_name: str | None = None


class MetadataOf(BaseModel):
    id: int
    metadata: KnnMetadata


class MetadataResponse(RootModel[list[MetadataOf]]):
    model_config = examples(
        [{"id": 0, "metadata": {"caption": "a red apple", "item_id": "apple.png"}}]
    )


class IndicesResponse(RootModel[list[str]]):
    model_config = examples(["photos"])


async def _knn(request: Request) -> KnnRequest:
    body = bodies.validated(KnnRequest, bodies.parse_json(await request.body()))
    target: Target = "images" if body.modality == "image" else "texts"
    with app_state(request).engine(body.indice_name).pin() as engine:
        told = told_bytes(engine, min(body.k, body.num_images), target, _INCLUDED)
    pictures = 0 if body.text or body.embedding_input is not None else 1
    price = Price(texts=1 - pictures, pictures=pictures, answer_bytes=told)
    await charge(request.scope, price)
    return body


async def _metadata(request: Request) -> MetadataRequest:
    body = bodies.validated(MetadataRequest, bodies.parse_json(await request.body()))
    with app_state(request).engine(body.indice_name).pin() as engine:
        # a number may be given many times: as many are told as are asked for
        each = told_bytes(engine, 1, "images", _INCLUDED)
    await charge(request.scope, Price(answer_bytes=each * len(body.ids)))
    return body


@router.post(
    "/knn-service", summary="Search, as clip-retrieval's clients ask", response_model=KnnResponse
)
@Endpoint(
    access="read", lane="search", cost="body", idempotency_key=False, body=json_of(KnnRequest)
)
def knn_service(body: Annotated[KnnRequest, Depends(_knn)], state: StateOf) -> Response:
    """The nearest pictures or texts. Hits beyond `num_images` carry only `id` and `similarity`."""
    query = _query(body, state.fetch)
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
        return ImageQuery(bodies.picture(body.image))
    if body.image_url:
        return ImageQuery(fetch(body.image_url))
    assert body.embedding_input is not None, "the shape lets nothing else through"
    return EmbeddingQuery(body.embedding_input)


def _known(engine: Engine, item: Item) -> KnnMetadata:
    told = engine.file_paths.told(item.uri)
    return KnnMetadata(
        caption=item.text,
        url=told if urlsplit(told or "").scheme in ("http", "https") else None,
        image_path=_path(told, escaped=urlsplit(item.uri).scheme == "file"),
        image=thumbnail_base64(engine, item),
        item_id=item.id,
    )


def _path(told: str | None, *, escaped: bool = False) -> str | None:
    """Of a picture in a file; what was imported from clip-retrieval has bare paths."""
    parts = urlsplit(told or "")
    if parts.scheme == "file" or (escaped and told):
        return unquote(parts.path)
    return None if parts.scheme else told or None
