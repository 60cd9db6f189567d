"""GET /v1/index and /v1/indexes: what is told about an index, and which there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from indexer.search.reader import Facet, FacetValue
from service.engine.engine import Engine
from service.http.middleware.endpoints import LOOKUP
from service.http.requests.fields import examples
from service.http.requests.state import EngineOf, StateOf

router = APIRouter(prefix="/v1", tags=["index"])


class FieldValue(BaseModel):
    value: str | bool
    count: Annotated[int, Field(description="Pictures that have it.")]
    texts: Annotated[int, Field(description="Texts that have it; a caption has its picture's.")]


class FieldSummary(BaseModel):
    """A field that filters can name, and what is asked for by it."""

    name: str
    type: Literal["int", "float", "str", "bool", "str[]", "date"]
    present: Annotated[int, Field(description="Pictures that have any value.")]
    texts: Annotated[int, Field(description="Texts that have any value.")]
    distinct: Annotated[
        int | None, Field(description="How many values, of dates years; null for numbers.")
    ]
    values: Annotated[
        list[FieldValue] | None,
        Field(description="The 50 most frequent, of dates years; null for numbers."),
    ]
    min: Annotated[int | float | str | None, Field(description="Of a number or a date.")]
    max: Annotated[int | float | str | None, Field(description="Of a number or a date.")]


class DateSummary(FieldSummary):
    """A field of dates; its `values` are years, and what is listed can be asked for with `eq`."""

    months: Annotated[list[FieldValue], Field(description="The 50 most frequent.")]


class JudgedBy(BaseModel):
    rows: Annotated[int, Field(description="Items when it was measured.")]
    queries: Annotated[int, Field(description="Background queries.")]
    kinds: Annotated[
        list[Literal["text", "image", "mixed"]],
        Field(description="The kinds of query that can be judged."),
    ]


class SearchStructure(BaseModel):
    """The ANN structure of one segment, and what was measured of it against exact search."""

    modality: Literal["image", "text"]
    rows: int
    structure: Literal["hnsw", "ivf"]
    recipe: str
    effort: Annotated[int, Field(description="efSearch or nprobe, unless a search asks otherwise.")]
    refine: Annotated[int, Field(description="Candidates scored again per result wanted.")]
    recall: Annotated[float, Field(description="recall@10 at this effort.")]
    latency_ms: Annotated[float, Field(description="A query on one thread, when it was measured.")]
    bytes_per_vector: float
    queries: Annotated[int, Field(description="How many it was measured with.")]
    kind: Literal["texts", "background", "images"]


class IndexResponse(BaseModel):
    model_config = examples(
        {
            "name": "photos",
            "version": 3,
            "uuid": "6f1c2a52-7f0e-4a7e-9a55-0b1d3f0f8f5e",
            "created": "2026-01-31T12:00:00Z",
            "model": "starter",
            "fingerprint": "9c" * 32,
            "dim": 512,
            "images": 550,
            "texts": 2200,
            "bytes": 31457280,
            "segments": 2,
            "tombstones": 0,
            "fields": [
                {
                    "name": "category",
                    "type": "str",
                    "present": 550,
                    "texts": 2200,
                    "distinct": 37,
                    "values": [{"value": "birds", "count": 31, "texts": 92}],
                    "min": None,
                    "max": None,
                },
                {
                    "name": "year",
                    "type": "int",
                    "present": 240,
                    "texts": 960,
                    "distinct": None,
                    "values": None,
                    "min": 1998,
                    "max": 2024,
                },
            ],
            "relevance": {
                "images": {"rows": 550, "queries": 313, "kinds": ["text", "image"]},
                "texts": {"rows": 2200, "queries": 313, "kinds": ["text", "image"]},
            },
            "structures": [
                {
                    "modality": "image",
                    "rows": 550,
                    "structure": "hnsw",
                    "recipe": "HNSW32",
                    "effort": 64,
                    "refine": 4,
                    "recall": 0.993,
                    "latency_ms": 0.2,
                    "bytes_per_vector": 1300.0,
                    "queries": 256,
                    "kind": "texts",
                }
            ],
            "degraded": [],
            "writable": False,
            "explains": True,
        }
    )
    name: Annotated[str, Field(description="What `index=` calls it.")]
    version: Annotated[int, Field(description="Grows with every commit; also `Index-Version`.")]
    uuid: str
    created: Annotated[str, Field(description="When this version was committed, ISO 8601.")]
    model: str
    fingerprint: Annotated[str, Field(description="Digest of all that changes an embedding.")]
    dim: int
    images: int
    texts: int
    bytes: int
    segments: int
    tombstones: int
    fields: Annotated[
        list[DateSummary | FieldSummary],
        Field(description="What `filter` can name; `label` and `language` where any item has one."),
    ]
    relevance: Annotated[
        dict[Literal["images", "texts"], JudgedBy] | None,
        Field(description="What hits are judged against; null: they carry no relevance."),
    ]
    structures: Annotated[
        list[SearchStructure],
        Field(description="Of optimized segments; all others are searched exactly."),
    ]
    degraded: Annotated[
        list[str],
        Field(description="Damaged structures, whose segments are searched exactly instead."),
    ]
    writable: Annotated[bool, Field(description="Whether items can be put and deleted.")]
    explains: Annotated[bool, Field(description="Whether the model can draw heat maps.")]


class IndexSummary(BaseModel):
    name: Annotated[str, Field(description="What `index=` calls it.")]
    model: str
    fingerprint: str
    dim: int
    images: int
    texts: int
    version: int
    default: Annotated[bool, Field(description="It answers where none is named.")]


class IndexesResponse(BaseModel):
    model_config = examples(
        {
            "indexes": [
                {
                    "name": "photos",
                    "model": "starter",
                    "fingerprint": "9c" * 32,
                    "dim": 512,
                    "images": 550,
                    "texts": 2200,
                    "version": 3,
                    "default": True,
                }
            ]
        }
    )
    indexes: list[IndexSummary]


@router.get("/index", summary="What is loaded")
@LOOKUP
def index(engine: EngineOf, response: Response) -> IndexResponse:
    """Version, counts and model of the index that answers now."""
    info = index_response(engine)
    response.headers["Index-Version"] = str(info.version)
    return info


@router.get("/indexes", summary="All that is served")
@LOOKUP
def indexes(state: StateOf) -> IndexesResponse:
    """The indexes this service answers from, the one that needs no naming first."""
    return _indexes(state.engines)


def index_response(engine: Engine) -> IndexResponse:
    # without the sources: they name the operator's folders
    info = engine.index_info().to_dict()
    known = {name: info[name] for name in IndexResponse.model_fields if name in info}
    fields = [_field(facet) for facet in engine.facets()]
    more = {
        "name": engine.name,
        "structures": [_structure(one) for one in info["structures"]],
        "fields": fields,
        "explains": engine.explanations.possible,
        "writable": engine.writer is not None,
    }
    return IndexResponse(**known | more)


def _structure(about: Mapping[str, Any]) -> SearchStructure:
    modality = about["target"].removesuffix("s")
    return SearchStructure(
        modality=modality, rows=about["rows"], structure=about["structure"], **about["operating"]
    )


def _field(facet: Facet) -> FieldSummary:
    if facet.months is not None:
        return DateSummary(**_summary(facet).model_dump(), months=_values(facet.months) or [])
    return _summary(facet)


def _summary(facet: Facet) -> FieldSummary:
    return FieldSummary(
        name=facet.name,
        type=facet.type,
        present=facet.images,
        texts=facet.texts,
        distinct=facet.distinct,
        values=_values(facet.values),
        min=facet.low,
        max=facet.high,
    )


def _values(found: Sequence[FacetValue] | None) -> list[FieldValue] | None:
    if found is None:
        return None
    return [FieldValue(value=one.value, count=one.images, texts=one.texts) for one in found]


def _indexes(engines: Mapping[str, Engine]) -> IndexesResponse:
    first = next(iter(engines))
    listed = []
    for name, engine in engines.items():
        with engine.pin() as pinned:
            info = pinned.index_info().to_dict()
        fields = {key: info[key] for key in IndexSummary.model_fields if key in info}
        listed.append(IndexSummary(**fields, name=name, default=name == first))
    return IndexesResponse(indexes=listed)
