"""POST /v1/search/batch."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.exceptions import RequestValidationError

from models.errors import DeadlineError, DiptychError, StoreError
from service.engine.engine import Engine
from service.engine.queries import SearchAnswer
from service.engine.steps import Steps
from service.engine.together import finish_together
from service.http.middleware import problems
from service.http.middleware.endpoints import Endpoint, json_of
from service.http.middleware.problems import Problem, ProblemError
from service.http.resources import bodies, presenting, schemas
from service.http.resources.asking import search_options, search_query
from service.http.resources.batch_shapes import (
    BatchRequest,
    BatchResponse,
    BatchResult,
    SearchError,
    Searches,
)
from service.http.resources.fetching import Fetch, FetchOf
from service.http.resources.state import EngineOf

router = APIRouter(prefix="/v1/search", tags=["search"])
_Answered = tuple[schemas.SearchRequest, SearchAnswer]


@router.post(
    "/batch",
    summary="Several searches in one request",
    response_model=BatchResponse,
)
@Endpoint(
    access="read", lane="long", cost="body", idempotency_key=False, body=json_of(BatchRequest)
)
def batch(
    body: Annotated[Searches, Depends(bodies.json_body(Searches))],
    engine: EngineOf,
    fetch: FetchOf,
) -> Response:
    """Each search as /v1/search takes it, all answered by one version of the index.

    A search that is refused carries its own `error` and the others answer.
    """
    found = finish_together(
        [_search(one, engine, fetch) for one in body.searches],
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


def _search(one: Any, engine: Engine, fetch: Fetch) -> Steps[_Answered]:
    body = bodies.validated(schemas.SearchRequest, one)
    query = search_query(body.query, fetch)
    answer = yield from engine.search_steps(query, search_options(body, body.target))
    return body, answer


def _result(index: int, found: _Answered | Exception, engine: Engine) -> BatchResult:
    if not isinstance(found, Exception):
        body, answer = found
        return BatchResult(index=index, answer=presenting.search(engine, answer, body.include))
    problem = _problem(found)
    more: dict[str, Any] = {"hint": problem.hint} if problem.hint else {}
    if problem.errors:
        more["errors"] = [dict(error) for error in problem.errors]
    error = SearchError(
        code=problem.code,
        title=problem.title,
        status=problem.status,
        detail=problem.detail,
        **more,
    )
    return BatchResult(index=index, error=error)


def _problem(error: Exception) -> Problem:
    if isinstance(error, ProblemError):
        return error.problem
    if isinstance(error, RequestValidationError):
        return problems.of_validation(error.errors())
    assert isinstance(error, DiptychError), "nothing else is collected"
    return problems.of_domain(error)
