"""POST /v1/embeddings, GET /v1/models: OpenAI's shapes, with infinity's ways to send pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Path, Request
from pydantic import AfterValidator, BaseModel, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from models.vectors import Vectors
from service.engine.embeddings import EmbeddingError
from service.engine.engine import Engine
from service.engine.queries import ImageQuery, TextQuery
from service.http.middleware import problems
from service.http.middleware.admission import charge
from service.http.middleware.endpoints import LOOKUP, Endpoint, json_of
from service.http.middleware.lanes import Price
from service.http.middleware.problems import ProblemError, refuse
from service.http.requests import bodies
from service.http.requests.fields import EXAMPLE_PNG, MAX_IMAGES, StrictModel, examples
from service.http.requests.state import EngineOf, Fetch, StateOf
from service.operations import timing

router = APIRouter(tags=["embeddings"])
MAX_INPUTS = 2048
_DATA = "data:image/"
UNNAMED = frozenset({"", "default", "default/not-specified"})
"""What clients send as the model where they do not care; infinity's own clients do."""


def _bad(why: str) -> PydanticCustomError:
    return PydanticCustomError("invalid-request", "{why}", {"why": why})


def _checked_inputs(value: Any) -> Any:
    """Texts and pictures by hand: a union's complaints would name its branches."""
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise _bad("Give at least one input.")
    if len(listed) > MAX_INPUTS:
        raise _bad(f"At most {MAX_INPUTS} inputs.")
    for one in listed:
        if isinstance(one, int | list):
            raise _bad("Arrays of tokens are another tokenizer's; send the text itself.")
        if isinstance(one, dict):
            if len(one) != 1 or not isinstance(next(iter(one.values())), str):
                raise _bad("An input that is an object has one member, a string.")
            if next(iter(one)) not in ("text", "image"):
                raise _bad("An input that is an object is {text: ...} or {image: ...}.")
        elif not isinstance(one, str):
            raise _bad("An input is a string, or an object {text: ...} or {image: ...}.")
    return value


_ONE = {
    "anyOf": [
        {"type": "string", "description": "A text, or a picture as a data: URI."},
        {
            "type": "object",
            "properties": {"text": {"type": "string"}, "image": {"type": "string"}},
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
        },
    ]
}


class EmbeddingRequest(StrictModel):
    """What is to be embedded. `modality` makes every string a picture, or every one a text."""

    model_config = examples(
        {"input": "a red apple"},
        {"input": ["a red apple", "一个红苹果"], "encoding_format": "base64"},
        {"input": ["data:image/png;base64," + EXAMPLE_PNG], "modality": "image"},
        {"input": [{"image": EXAMPLE_PNG}, {"text": "a red apple"}]},
    )
    input: Annotated[
        Any,
        AfterValidator(_checked_inputs),
        WithJsonSchema(
            {
                "anyOf": [
                    *_ONE["anyOf"],
                    {"type": "array", "items": _ONE, "minItems": 1, "maxItems": MAX_INPUTS},
                ],
                "description": f"One input or several; at most {MAX_IMAGES} pictures.",
            }
        ),
    ]
    model: Annotated[
        str | None, Field(max_length=512, description="As /v1/models names it; without, the first.")
    ] = None
    modality: Annotated[
        Literal["text", "image"] | None,
        Field(description="Without it a string that begins `data:image/` is a picture."),
    ] = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[
        int | None, Field(ge=0, le=65_536, description="The model's own number, or 0 or absent.")
    ] = None
    user: Annotated[str | None, Field(max_length=1024, description="Ignored.")] = None

    def parts(self) -> list[tuple[Literal["text", "image"], str]]:
        """Each input with what it is: a text, or a picture as base64, data URI or address."""
        listed = self.input if isinstance(self.input, list) else [self.input]
        return [self._part(one) for one in listed]

    def _part(self, one: str | dict[str, str]) -> tuple[Literal["text", "image"], str]:
        if isinstance(one, dict):
            ((kind, value),) = one.items()
            return ("image" if kind == "image" else "text"), value
        if self.modality is not None:
            return self.modality, one
        return ("image" if one[: len(_DATA)].lower() == _DATA else "text"), one


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: Annotated[
        list[float] | str,
        Field(description="Of unit length; as base64 the bytes of little-endian float32."),
    ]


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    model_config = examples(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.0123, -0.0456]}],
            "model": "starter",
            "usage": {"prompt_tokens": 4, "total_tokens": 4},
        }
    )
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


_EXAMPLE_MODEL = {
    "id": "starter",
    "object": "model",
    "created": 0,
    "owned_by": "diptych",
    "dimensions": 256,
    "indexes": ["photos"],
}


class ModelInfo(BaseModel):
    model_config = examples(_EXAMPLE_MODEL)
    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Field(description="Unknown, so 0; clients expect a number.")] = 0
    owned_by: str = "diptych"
    dimensions: int
    indexes: Annotated[list[str], Field(description="The indexes built with it.")]


class ModelList(BaseModel):
    model_config = examples({"object": "list", "data": [_EXAMPLE_MODEL]})
    object: Literal["list"] = "list"
    data: list[ModelInfo]


_read = bodies.json_body(EmbeddingRequest)


async def _priced(request: Request, state: StateOf) -> EmbeddingRequest:
    body = await _read(request)
    pictures = [kind for kind, _ in body.parts()].count("image")
    inputs = len(body.parts())
    # base64 of the floats themselves takes a quarter of their digits
    number = 6 if body.encoding_format == "base64" else 21
    dim = max(engine.embeddings.dim for engine in state.engines.values())
    price = Price(inputs - pictures, pictures, answer_bytes=inputs * dim * number)
    await charge(request.scope, price)
    return body


_Body = Annotated[EmbeddingRequest, Depends(_priced)]


@router.post("/embeddings", include_in_schema=False)
@router.post("/v1/embeddings", summary="Embed texts and pictures")
@Endpoint(
    access="read", lane="long", cost="body", idempotency_key=False, body=json_of(EmbeddingRequest)
)
def embeddings(
    body: _Body, state: StateOf, engine: EngineOf, request: Request
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
        answer = embedder.embed(_inputs(body, state.fetch))
    except EmbeddingError as refused:
        raise ProblemError(_at(problems.of_domain(refused.error), refused.position)) from refused
    timing.report(request.scope, answer.timings)
    compact = body.encoding_format == "base64"
    return EmbeddingResponse(
        data=[
            Embedding(index=index, embedding=as_base64(row) if compact else row.tolist())
            for index, row in enumerate(answer.vectors_BD)
        ],
        model=engine.fingerprint.model,
        usage=Usage(prompt_tokens=answer.tokens, total_tokens=answer.tokens),
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
    if model is None or model in UNNAMED:
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


def as_base64(vector_D: Vectors) -> str:
    return base64.b64encode(np.ascontiguousarray(vector_D, dtype="<f4").tobytes()).decode("ascii")
