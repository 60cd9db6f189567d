"""The shapes of HTTP answers, problems included, with the examples shown in the documentation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from service.http.resources.schemas import EXAMPLE_ID


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


_EXAMPLE_HIT: dict[str, JsonValue] = {
    "id": EXAMPLE_ID,
    "score": 0.3127,
    "relevance": 0.9741,
    "modality": "image",
    "uri": "file:///pictures/fruit/red%20apple.png",
    "text": "a red apple",
    "language": "en",
    "image_id": None,
    "label": None,
    "attributes": {"year": 2024},
    "thumbnail_url": "/v1/items/fruit%2Fred%20apple.png/thumbnail",
}


class SearchResponse(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "hits": [_EXAMPLE_HIT],
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
            ]
        }
    )
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


class Caption(BaseModel):
    id: str
    text: str
    language: str | None = None


class Item(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    key: value
                    for key, value in _EXAMPLE_HIT.items()
                    if key not in ("score", "relevance")
                }
                | {
                    "content_hash": "5f" * 32,
                    "captions": [
                        {"id": EXAMPLE_ID + "#en.0", "text": "a red apple", "language": "en"}
                    ],
                }
            ]
        }
    )
    id: str
    modality: Literal["image", "text"]
    uri: str | None = None
    text: str | None = None
    language: str | None = None
    image_id: str | None = None
    label: str | None = None
    attributes: dict[str, Any]
    content_hash: str
    thumbnail_url: str | None = None
    captions: Annotated[
        list[Caption], Field(description="The texts of this picture, or of the text's picture.")
    ]


class Prediction(BaseModel):
    label: str
    probability: float
    path: Annotated[list[str] | None, Field(description="Of a label in a tree.")] = None


class PictureError(BaseModel):
    code: str
    title: str
    detail: str


class ClassifyResult(BaseModel):
    index: Annotated[int, Field(description="Position of the picture in the request.")]
    predictions: list[Prediction]
    parents: Annotated[
        list[Prediction] | None,
        Field(description="The inner nodes of a tree of labels: sums over their leaves."),
    ] = None
    abstained: Annotated[
        bool, Field(description="None of these: `background` reached the threshold.")
    ] = False
    background: Annotated[
        float | None,
        Field(description="How probable none of these is, against the best label alone."),
    ] = None
    heatmap: Annotated[
        str | None,
        Field(description="With `explain`: where the top label is seen, PNG as a data URI."),
    ] = None
    error: Annotated[PictureError | None, Field(description="Why this picture was refused.")] = None


class ClassifyResponse(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "results": [
                        {
                            "index": 0,
                            "predictions": [
                                {"label": "red", "probability": 0.97, "path": None},
                                {"label": "blue", "probability": 0.03, "path": None},
                            ],
                            "parents": None,
                            "abstained": False,
                            "background": 0.08,
                            "heatmap": None,
                            "error": None,
                        }
                    ],
                    "multi_label": False,
                    "label_set": None,
                    "temperature": 1.0,
                    "abstain": 0.5,
                    "model": "starter",
                    "took_ms": 31.0,
                    "timings": {"prepare": 2.0, "classes": 9.0, "embed": 19.0, "total": 31.0},
                }
            ]
        }
    )
    results: list[ClassifyResult]
    multi_label: bool
    label_set: Annotated[str | None, Field(description="The stored label set used.")]
    temperature: float
    abstain: Annotated[float | None, Field(description="The threshold on `background`.")]
    model: str
    took_ms: float
    timings: dict[str, float]


class Health(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})
    status: Literal["ok", "ready"]


class PointerError(BaseModel):
    pointer: Annotated[str | None, Field(description="JSON pointer into the body.")] = None
    parameter: Annotated[str | None, Field(description="A query parameter or form field.")] = None
    code: str
    detail: str


class ProblemDocument(BaseModel):
    """RFC 9457. `type` and `code` are stable; `instance` is the request's id."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:diptych:problem:invalid-request",
                    "title": "The request does not fit its schema",
                    "status": 422,
                    "detail": "Input should be less than or equal to 1000",
                    "instance": "urn:request:0f8fad5bd9cb469fa16570867728950e",
                    "code": "invalid-request",
                    "errors": [
                        {
                            "pointer": "#/k",
                            "code": "less_than_equal",
                            "detail": "Input should be less than or equal to 1000",
                        }
                    ],
                }
            ]
        }
    )
    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    hint: str | None = None
    errors: list[PointerError] | None = None
