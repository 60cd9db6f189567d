"""The shapes of what is told about an index: counts, fields, how it is searched and judged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class FieldValue(BaseModel):
    value: str | bool
    count: Annotated[int, Field(description="Pictures that have it.")]
    texts: Annotated[int, Field(description="Texts that have it; a caption has its picture's.")]


class FieldSummary(BaseModel):
    """A field that filters can name, and what is asked for by it."""

    name: str
    type: Literal["int", "float", "str", "bool", "str[]"]
    present: Annotated[int, Field(description="Pictures that have any value.")]
    distinct: Annotated[int | None, Field(description="How many values; null for numbers.")]
    values: Annotated[
        list[FieldValue] | None, Field(description="The 50 most frequent; null for numbers.")
    ]
    min: Annotated[int | float | None, Field(description="Of a number.")]
    max: Annotated[int | float | None, Field(description="Of a number.")]


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
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
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
                            "distinct": 37,
                            "values": [{"value": "birds", "count": 31, "texts": 92}],
                            "min": None,
                            "max": None,
                        },
                        {
                            "name": "year",
                            "type": "int",
                            "present": 240,
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
            ]
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
        list[FieldSummary],
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
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
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
            ]
        }
    )
    indexes: list[IndexSummary]
