"""POST /v1/search, and what its other forms take from it: options, queries, the answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    JsonValue,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from starlette.concurrency import run_in_threadpool

from indexer.filters.language import parse_filter
from indexer.search.options import (
    DEFAULTS,
    HYBRID,
    MAX_K,
    MAX_OFFSET,
    MAX_SORT,
    NEAR_DUPLICATE,
    Include,
    Order,
    SearchOptions,
    SortKey,
    Target,
)
from service.engine.calls import finish_async
from service.engine.engine import Engine
from service.engine.queries import (
    MAX_PARTS,
    MAX_WEIGHT,
    ComposedQuery,
    EmbeddingQuery,
    ImageQuery,
    ItemQuery,
    QueryPart,
    SearchAnswer,
    SearchQuery,
    TextQuery,
    Weighted,
)
from service.engine.retrieval import only_waits
from service.http.middleware.admission import charge
from service.http.middleware.endpoints import Endpoint, json_of
from service.http.middleware.lanes import Price
from service.http.requests import bodies
from service.http.requests.fields import (
    EXAMPLE_ID,
    EXAMPLE_PNG,
    Base64Image,
    SearchText,
    StrictModel,
    examples,
)
from service.http.requests.state import DirectRoute, EngineOf, Fetch, app_state, direct
from service.http.resources.items import (
    EXAMPLE_ITEM,
    item_fields,
    thumbnail_base64,
    told_bytes,
)
from service.operations import timing

router = APIRouter(prefix="/v1/search", tags=["search"], route_class=DirectRoute)
# hits that the event loop turns into JSON itself: a millisecond's work
_SMALL_PAGE = 100


def _not_zero(weight: float) -> float:
    if weight == 0:
        raise PydanticCustomError(
            "invalid-request", "A weight of zero has no effect; leave it out."
        )
    return weight


class Query(StrictModel):
    """Exactly one of text, image, image_url, id and embedding; the weight counts among several."""

    text: SearchText | None = None
    image: Base64Image | None = None
    image_url: Annotated[
        str | None,
        Field(
            max_length=2048,
            description="A picture's address, http or https; only where the service was started "
            "with --allow-urls.",
        ),
    ] = None
    id: Annotated[
        str | None, Field(description="More like this item; it is left out of the hits.")
    ] = None
    embedding: Annotated[
        list[float] | None,
        Field(max_length=16_384, description="A vector of the index's dimension, any length."),
    ] = None
    weight: Annotated[
        float,
        AfterValidator(_not_zero),
        Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, description="Not zero; negative asks for less of it."),
    ] = 1.0

    @model_validator(mode="after")
    def _exactly_one(self) -> Query:
        given = [self.text, self.image, self.image_url, self.id, self.embedding]
        if sum(value is not None for value in given) != 1:
            raise PydanticCustomError(
                "invalid-request", "Give exactly one of text, image, image_url, id and embedding."
            )
        return self


_Parts = Annotated[list[Query], Field(min_length=1, max_length=MAX_PARTS)]
_PARTS: TypeAdapter[list[Query]] = TypeAdapter(_Parts)


def _one_or_several(value: object, _: ValidatorFunctionWrapHandler) -> Query | list[Query]:
    # decided by hand: the complaints of a union name its branches in their pointers
    return _PARTS.validate_python(value) if isinstance(value, list) else Query.model_validate(value)


Queries = Annotated[
    Query | _Parts,
    WrapValidator(_one_or_several),
    Field(description="One part, or several: the sum of weight times unit vector, normalised."),
]
FILTER_WORDS = (
    "Which items may be found: `{field, ...tests}`, or `all`, `any` and `not` around such. The "
    "tests are eq, in, gt, gte, lt, lte, contains and exists, as the field's type takes them; "
    "/v1/index lists the fields. A missing value satisfies no test, and `not` is the complement."
)
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Cosine = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Hybrid = Annotated[
    _Share | bool,
    Field(
        description="Search by words too, in captions and texts: their weight from 0 (none) to 1 "
        f"(words alone), or true for {HYBRID}. The order is then that of `fused`, and cosines do "
        "not fall."
    ),
]
Deduplicate = Annotated[
    _Cosine | bool,
    Field(
        description="Leave out hits whose cosine to a better one reaches this, or true for "
        f"{NEAR_DUPLICATE}; the better one names them in `duplicates`."
    ),
]
Exact = Annotated[bool, Field(description="Compare with every item, whatever was optimized.")]
Effort = Annotated[
    int | None,
    Field(
        ge=1,
        le=100_000,
        description="How hard an optimized index looks (efSearch or nprobe); null for what it "
        "was optimized for.",
    ),
]
K = Annotated[int, Field(ge=1, le=MAX_K, description="How many hits.")]
Offset = Annotated[int, Field(ge=0, le=MAX_OFFSET, description="How many to skip.")]


SORT_WORDS = (
    "Fields to sort by instead of by closeness, the first first; missing values come last. What "
    "`filter` and `min_score` let through is sorted, all of it, not the `k` closest; closeness "
    "decides among equal values."
)


class SortBy(StrictModel):
    field: Annotated[str, Field(max_length=64, description="As /v1/index lists them; no lists.")]
    order: Order = "asc"


class Page(StrictModel):
    k: K = DEFAULTS.k
    offset: Offset = DEFAULTS.offset
    min_score: Annotated[
        float | None, Field(ge=-1, le=1, description="Leave out hits with a lower cosine.")
    ] = None
    filter: Annotated[
        # read by indexer.filters.language, whose complaints are better than a recursive schema's
        Any,
        WithJsonSchema({"type": ["object", "null"], "description": FILTER_WORDS}),
    ] = None
    include: Annotated[
        list[Include],
        Field(max_length=3, description="Optional parts of each hit; `thumbnail` as a data URI."),
    ] = Field(list(DEFAULTS.include))
    hybrid: Hybrid = False
    deduplicate: Deduplicate = False
    exact: Exact = False
    effort: Effort = None
    sort: Annotated[list[SortBy], Field(max_length=MAX_SORT, description=SORT_WORDS)] = Field([])


class SearchRequest(Page):
    model_config = examples(
        {"query": {"text": "a red apple"}, "k": 3},
        {"query": {"text": "一个红苹果"}, "target": "texts", "k": 3},
        {"query": {"text": "a red apple"}, "hybrid": True, "deduplicate": 0.97, "k": 3},
        {"query": {"id": EXAMPLE_ID}, "k": 5},
        {"query": {"image": EXAMPLE_PNG}, "k": 5, "include": ["embedding"]},
        {
            "query": [
                {"text": "a red apple"},
                {"text": "a green leaf", "weight": -0.5},
                {"id": EXAMPLE_ID, "weight": 2.0},
            ]
        },
        {
            "query": {"text": "a red apple"},
            "min_score": 0.2,
            "sort": [{"field": "year", "order": "desc"}, {"field": "label"}],
        },
        {
            "query": {"text": "fruit"},
            "filter": {
                "all": [{"field": "year", "gte": 2020, "lt": 2030}],
                "not": {"field": "label", "in": ["plant", "animal"]},
            },
        },
    )
    query: Queries
    target: Target = DEFAULTS.target


class Hit(BaseModel):
    id: str
    score: Annotated[float, Field(description="Cosine of query and item, -1 to 1.")]
    relevance: Annotated[
        float | None,
        Field(
            description="How far the hit stands above this index's background, 0 to 1; one half "
            "is the gate. Null where the index cannot tell."
        ),
    ] = None
    fused: Annotated[
        float | None,
        Field(description="With `hybrid`: what decides the order, of cosine and words together."),
    ] = None
    duplicates: Annotated[
        list[str] | None,
        Field(description="With `deduplicate`: ids of the near-duplicates it stands for."),
    ] = None
    modality: Literal["image", "text"]
    uri: Annotated[str | None, Field(description="Where the source keeps it.")] = None
    text: Annotated[
        str | None, Field(description="A caption: the text itself, or a picture's first.")
    ] = None
    language: str | None = None
    image_id: Annotated[str | None, Field(description="The picture a text belongs to.")] = None
    label: str | None = None
    attributes: dict[str, Any] | None = None
    thumbnail_url: Annotated[
        str | None, Field(description="The picture, or the picture a text belongs to.")
    ] = None
    thumbnail: Annotated[str | None, Field(description="JPEG as a data URI.")] = None
    embedding: list[float] | None = None


EXAMPLE_ANSWER: dict[str, JsonValue] = {
    "hits": [{**EXAMPLE_ITEM, "score": 0.3127, "relevance": 0.9741}],
    "no_good_match": False,
    "k": 1,
    "offset": 0,
    "target": "images",
    "truncated": False,
    "index_version": 1,
    "model": "starter",
    "took_ms": 12.4,
    "timings": {"prepare": 0.2, "embed": 11.0, "search": 1.1, "total": 12.4},
}


class SearchResponse(BaseModel):
    model_config = examples(EXAMPLE_ANSWER)
    hits: list[Hit]
    no_good_match: Annotated[
        bool | None,
        Field(
            description="Not even the best hit of the query stands out. Null where the index "
            "cannot tell."
        ),
    ]
    k: int
    offset: int
    target: Literal["images", "texts"]
    truncated: Annotated[bool, Field(description="The query text was cut to the context.")]
    index_version: int
    model: str
    took_ms: float
    timings: Annotated[dict[str, float], Field(description="Milliseconds per stage.")]


def search_query(given: Query | list[Query], fetch: Fetch) -> SearchQuery:
    """The engine's query of a request's: base64 decoded, addresses fetched.

    Blocks where `_needs_thread` says so.

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


def search_options(page: Page, target: Target) -> SearchOptions:
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
        sort=tuple(SortKey(one.field, one.order) for one in page.sort),
        include=frozenset(page.include),
    )


def _needs_thread(given: Query | list[Query]) -> bool:
    """Whether reading it would hold up an event loop: base64 of a large picture, an address."""
    parts = given if isinstance(given, list) else [given]
    return any(part.image is not None or part.image_url is not None for part in parts)


def _part(query: Query, pointer: str, fetch: Fetch) -> QueryPart:
    if query.text is not None:
        return TextQuery(query.text)
    if query.id is not None:
        return ItemQuery(query.id)
    if query.embedding is not None:
        return EmbeddingQuery(query.embedding)
    if query.image_url is not None:
        return ImageQuery(fetch(query.image_url))
    assert query.image is not None, "the schema lets exactly one through"
    return ImageQuery(bodies.picture(query.image, f"{pointer}/image"))


_search_body = bodies.json_body(SearchRequest)


@router.post(
    "", summary="Search by text, picture, item or embedding", response_model=SearchResponse
)
@Endpoint(
    access="read", lane="search", cost="body", idempotency_key=False, body=json_of(SearchRequest)
)
@direct(_search_body)
async def search(
    body: Annotated[SearchRequest, Depends(_search_body)], engine: EngineOf, request: Request
) -> Response:
    """The `k` pictures or texts closest to the query, best first; `score` is the cosine.

    The query may have several parts, each with a weight: text, picture, item or embedding. Items
    of the query are left out of the hits.
    """
    options = search_options(body, body.target)
    await charge(request.scope, price_of(engine, body.query, options))
    fetch = app_state(request).fetch
    if _needs_thread(body.query):
        query = await run_in_threadpool(search_query, body.query, fetch)
    else:
        query = search_query(body.query, fetch)
    return await answered(request, engine, query, options)


def price_of(engine: Engine, asked: Query | list[Query], options: SearchOptions) -> Price:
    """What a search asks for; known before its pictures are decoded or fetched."""
    parts = asked if isinstance(asked, list) else [asked]
    return Price(
        texts=sum(part.text is not None for part in parts),
        pictures=sum(part.image is not None or part.image_url is not None for part in parts),
        answer_bytes=told_bytes(engine, options.k, options.target, options.include),
    )


async def answered(
    request: Request, engine: Engine, query: SearchQuery, options: SearchOptions
) -> Response:
    """Search, and answer in this resource's shape; in a thread where more than waiting is done."""
    reads_more = not options.include.isdisjoint(("embedding", "thumbnail"))
    if only_waits(query) and not reads_more and options.k <= _SMALL_PAGE:
        # no thread for what only waits: each would have to be woken twice, and 32 of them at once
        # fight over Python's lock with the thread that embeds
        answer = await finish_async(engine.search_steps(query, options))
        body = _document(engine, answer)
    else:
        answer = await run_in_threadpool(engine.search, query, options)
        body = await run_in_threadpool(_document, engine, answer)
    timing.report(request.scope, answer.timings)
    return Response(
        body, headers={"Index-Version": str(answer.index_version)}, media_type="application/json"
    )


def _document(engine: Engine, answer: SearchAnswer) -> str:
    # optional parts appear only when asked for
    return search_response(engine, answer).model_dump_json(exclude_unset=True)


def search_response(engine: Engine, answer: SearchAnswer) -> SearchResponse:
    """The engine's answer in this resource's shape; reads thumbnails where they are included."""
    include = answer.options.include
    hits = []
    for rank, hit in enumerate(answer.hits):
        fields = item_fields(engine, hit.item)
        if "attributes" in include:
            fields["attributes"] = dict(hit.item.attributes)
        if "embedding" in include and answer.vectors_KD is not None:
            fields["embedding"] = answer.vectors_KD[rank].tolist()
        if "thumbnail" in include:
            jpeg = thumbnail_base64(engine, hit.item)
            fields["thumbnail"] = None if jpeg is None else "data:image/jpeg;base64," + jpeg
        if answer.relevance_K is not None:
            fields["relevance"] = round(answer.relevance_K[rank], 4)
        if hit.fused is not None:
            fields["fused"] = hit.fused
        if hit.duplicates:
            fields["duplicates"] = list(hit.duplicates)
        hits.append(Hit(**{"relevance": None} | fields, score=float(hit.score)))
    return SearchResponse(
        hits=hits,
        no_good_match=answer.no_good_match,
        k=answer.options.k,
        offset=answer.options.offset,
        target=answer.options.target,
        truncated=answer.truncated,
        index_version=answer.index_version,
        model=answer.model,
        took_ms=answer.timings["total"],
        timings=dict(answer.timings),
    )
