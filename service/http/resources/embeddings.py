"""POST /v1/embeddings and GET /v1/models in OpenAI's shape, and where infinity has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request

from service.engine.embedding import EmbeddingError
from service.engine.engine import Engine
from service.engine.queries import ImageQuery, TextQuery
from service.http.middleware import problems
from service.http.middleware.endpoints import LOOKUP, Endpoint, json_of
from service.http.middleware.problems import ProblemError, refuse
from service.http.resources import bodies, embedding_shapes
from service.http.resources.embedding_shapes import (
    EmbeddingRequest,
    EmbeddingResponse,
    ModelInfo,
    ModelList,
)
from service.http.resources.fetching import Fetch, FetchOf
from service.http.resources.schemas import MAX_IMAGES
from service.http.resources.state import EngineOf, StateOf
from service.operations import timing

router = APIRouter(tags=["embeddings"])
_Body = Annotated[EmbeddingRequest, Depends(bodies.json_body(EmbeddingRequest))]


@router.post("/embeddings", include_in_schema=False)
@router.post(
    "/v1/embeddings",
    summary="Embed texts and pictures",
)
@Endpoint(
    access="read", lane="long", cost="body", idempotency_key=False, body=json_of(EmbeddingRequest)
)
def embeddings(
    body: _Body, state: StateOf, engine: EngineOf, fetch: FetchOf, request: Request
) -> EmbeddingResponse:
    """Vectors of unit length in the space of the index, in the order of the inputs.

    The shape is OpenAI's, so that its clients work unchanged. Pictures are `data:` URIs, or objects
    `{"image": ...}`; with `"modality": "image"` every string is a picture.
    """
    engine = _engine(state.engines, engine, body.model)
    embedder = engine.embeddings
    if body.dimensions not in (None, 0, embedder.dim):
        raise refuse(
            "invalid-request",
            f"The model's vectors have {embedder.dim} dimensions and cannot be cut.",
            errors=[{"pointer": "#/dimensions", "code": "invalid-request", "detail": "dimensions"}],
        )
    try:
        answer = embedder.embed(_inputs(body, fetch))
    except EmbeddingError as refused:
        raise ProblemError(_at(problems.of_domain(refused.error), refused.position)) from refused
    timing.report(request.scope, answer.timings)
    compact = body.encoding_format == "base64"
    return EmbeddingResponse(
        data=[
            embedding_shapes.Embedding(
                index=index,
                embedding=embedding_shapes.as_base64(row) if compact else row.tolist(),
            )
            for index, row in enumerate(answer.vectors_BD)
        ],
        model=engine.fingerprint.model,
        usage=embedding_shapes.Usage(prompt_tokens=answer.tokens, total_tokens=answer.tokens),
    )


@router.get("/models", include_in_schema=False)
@router.get("/v1/models", summary="The models that embed")
@LOOKUP
async def models(state: StateOf) -> ModelList:
    return ModelList(data=list(_models(state.engines).values()))


@router.get("/v1/models/{model:path}", summary="One model")
@LOOKUP
async def model(
    model: Annotated[str, Path(description="As /v1/models names it.")], state: StateOf
) -> ModelInfo:
    found = _models(state.engines).get(model)
    if found is None:
        raise _unknown()
    return found


def _models(engines: Mapping[str, Engine]) -> dict[str, ModelInfo]:
    found: dict[str, ModelInfo] = {}
    for name, engine in engines.items():
        model = engine.fingerprint.model
        info = ModelInfo(id=model, dimensions=engine.embeddings.dim, indexes=[])
        found.setdefault(model, info).indexes.append(name)
    return found


def _engine(engines: Mapping[str, Engine], chosen: Engine, model: str | None) -> Engine:
    """The engine of a model; the one the request chose, where it has that model or names none."""
    if model is None or model in embedding_shapes.UNNAMED:
        return chosen
    for engine in (chosen, *engines.values()):
        if engine.fingerprint.model == model:
            return engine
    raise _unknown()


def _unknown() -> ProblemError:
    return refuse("model-not-found", "GET /v1/models lists the models.")


def _inputs(body: EmbeddingRequest, fetch: Fetch) -> list[TextQuery | ImageQuery]:
    parts = body.parts()
    if sum(kind == "image" for kind, _ in parts) > MAX_IMAGES:
        raise refuse("invalid-request", f"At most {MAX_IMAGES} pictures.")
    inputs: list[TextQuery | ImageQuery] = []
    for position, (kind, value) in enumerate(parts):
        if kind == "text":
            inputs.append(TextQuery(value))
        elif value[:5].lower() in ("http:", "https"):
            inputs.append(ImageQuery(fetch(value)))
        elif (data := bodies.decode_base64(value)) is None:
            problem = problems.Problem("image-undecodable", "Not base64, nor a data: URI of it.")
            raise ProblemError(_at(problem, position))
        else:
            inputs.append(ImageQuery(data))
    return inputs


def _at(problem: problems.Problem, position: int) -> problems.Problem:
    error = {"pointer": f"#/input/{position}", "code": problem.code, "detail": problem.detail}
    return replace(problem, errors=[error])
