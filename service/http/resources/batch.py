"""POST /v1/search/batch: several searches, each refused or answered on its own."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from indexer.search.options import SearchOptions
from models.errors import DeadlineError, DiptychError, StoreError
from service.engine.calls import Steps, finish_together
from service.engine.engine import Engine
from service.engine.queries import SearchAnswer
from service.http.middleware import problems
from service.http.middleware.admission import charge
from service.http.middleware.endpoints import Endpoint, json_of
from service.http.middleware.lanes import Price
from service.http.middleware.problems import Problem, ProblemError, refuse
from service.http.requests import bodies
from service.http.requests.fields import StrictModel, examples
from service.http.requests.state import EngineOf, Fetch, StateOf
from service.http.resources.search import (
    EXAMPLE_ANSWER,
    SearchRequest,
    SearchResponse,
    price_of,
    search_options,
    search_query,
    search_response,
)

router = APIRouter(prefix="/v1/search", tags=["search"])
MAX_SEARCHES = 64
# a single search may always have its largest page; 64 of these would be gigabytes of memory
MAX_ANSWER_BYTES = 64 << 20


class Searches(StrictModel):
    """What is checked of the whole; each search is checked on its own."""

    searches: Annotated[list[Any], Field(min_length=1, max_length=MAX_SEARCHES)]


class BatchRequest(StrictModel):
    model_config = examples(
        {
            "searches": [
                {"query": {"text": "a red apple"}, "k": 3},
                {"query": {"text": "fruit"}, "target": "texts", "min_score": 0.2},
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
    model_config = examples(
        {
            "results": [
                {"index": 0, "answer": EXAMPLE_ANSWER},
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
    )
    results: Annotated[list[BatchResult], Field(description="In the order of the searches.")]


_Read: TypeAlias = tuple[SearchRequest, SearchOptions] | Exception
_read = bodies.json_body(Searches)


async def _searches(request: Request, engine: EngineOf) -> list[_Read]:
    """A FastAPI dependency: each search, or why it is none; charged together.

    Raises:
        ProblemError: their answers would be too large together.
    """
    body = await _read(request)
    read = await run_in_threadpool(lambda: [_checked(one) for one in body.searches])
    priced = [
        price_of(engine, one[0].query, one[1]) for one in read if not isinstance(one, Exception)
    ]
    price = sum(priced, Price())
    if price.answer_bytes > MAX_ANSWER_BYTES:
        raise refuse(
            "answer-too-large",
            f"About {price.answer_bytes >> 20} MB; at most {MAX_ANSWER_BYTES >> 20} MB are given.",
            hint="Ask for fewer searches at once, a smaller k, or less in `include`.",
        )
    await charge(request.scope, price)
    return read


def _checked(one: Any) -> _Read:
    try:
        body = bodies.validated(SearchRequest, one)
        return body, search_options(body, body.target)
    except (DiptychError, ProblemError, RequestValidationError) as error:
        return error


@router.post("/batch", summary="Several searches in one request", response_model=BatchResponse)
@Endpoint(
    access="read", lane="long", cost="body", idempotency_key=False, body=json_of(BatchRequest)
)
def batch(
    asked: Annotated[list[_Read], Depends(_searches)], engine: EngineOf, state: StateOf
) -> Response:
    """Each search as /v1/search takes it, all answered by one version of the index.

    A search that is refused carries its own `error` and the others answer. All answers together
    are at most some 64 MB, by estimate.
    """
    found = finish_together(
        [_search(one, engine, state.fetch) for one in asked],
        DiptychError, ProblemError, RequestValidationError,
    )  # fmt: skip
    for one in found:
        # not one search's fault: the request as a whole has no answer
        if isinstance(one, DeadlineError | StoreError):
            raise one
    results = [_result(index, one, engine) for index, one in enumerate(found)]
    document = BatchResponse(results=results).model_dump_json(exclude_unset=True)
    headers = {"Index-Version": str(engine.reader.version)}
    return Response(document, headers=headers, media_type="application/json")


def _search(one: _Read, engine: Engine, fetch: Fetch) -> Steps[SearchAnswer]:
    if isinstance(one, Exception):
        raise one
    body, options = one
    query = search_query(body.query, fetch)
    return (yield from engine.search_steps(query, options))


def _result(index: int, found: SearchAnswer | Exception, engine: Engine) -> BatchResult:
    if not isinstance(found, Exception):
        return BatchResult(index=index, answer=search_response(engine, found))
    problem = _problem(found)
    more: dict[str, Any] = {"hint": problem.hint} if problem.hint else {}
    if problem.errors:
        more["errors"] = [dict(error) for error in problem.errors]
    error = SearchError(
        code=problem.code, title=problem.title, status=problem.status, detail=problem.detail, **more
    )
    return BatchResult(index=index, error=error)


def _problem(error: Exception) -> Problem:
    if isinstance(error, ProblemError):
        return error.problem
    if isinstance(error, RequestValidationError):
        return problems.of_validation(error.errors())
    assert isinstance(error, DiptychError), "nothing else is collected"
    return problems.of_domain(error)
