"""The shapes of /v1/search/batch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.http.resources.answers import SearchResponse
from service.http.resources.schemas import SearchRequest, Strict

MAX_SEARCHES = 64
_ANSWERS: Any = SearchResponse.model_config["json_schema_extra"]


class Searches(Strict):
    """What is checked of the whole; each search is checked on its own."""

    searches: Annotated[list[Any], Field(min_length=1, max_length=MAX_SEARCHES)]


class BatchRequest(Strict):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "searches": [
                        {"query": {"text": "a red apple"}, "k": 3},
                        {"query": {"text": "fruit"}, "target": "texts", "min_score": 0.2},
                    ]
                }
            ]
        }
    )
    searches: Annotated[list[SearchRequest], Field(min_length=1, max_length=MAX_SEARCHES)]


class SearchError(BaseModel):
    code: str
    title: str
    status: Annotated[int, Field(description="What it would have been for this search alone.")]
    detail: str
    hint: str | None = None
    errors: Annotated[
        list[dict[str, str]] | None, Field(description="Pointers into this search.")
    ] = None


class BatchResult(BaseModel):
    """One search's answer, or why it has none."""

    index: Annotated[int, Field(description="Position of the search in the request.")]
    answer: SearchResponse | None = None
    error: SearchError | None = None


class BatchResponse(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "results": [
                        {
                            "index": 0,
                            "answer": _ANSWERS["examples"][0],
                        },
                        {
                            "index": 1,
                            "error": {
                                "code": "invalid-text",
                                "title": "The text cannot be searched for",
                                "status": 422,
                                "detail": "the text is empty",
                            },
                        },
                    ]
                }
            ]
        }
    )
    results: Annotated[list[BatchResult], Field(description="In the order of the searches.")]
