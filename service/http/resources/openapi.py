"""GET /openapi.json: what FastAPI makes of the routes, and what it cannot know.

Our bodies are read by the resources themselves, so they are described from what each route
declares; problems, and with keys who needs which scope, are added for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from service.http.middleware import problems
from service.http.middleware.endpoints import LOOKUP, Endpoint, RequestBody, declared
from service.http.middleware.prefix import outside
from service.http.requests.fields import examples

router = APIRouter(include_in_schema=False)
_REF = "#/components/schemas/"


class PointerError(BaseModel):
    pointer: Annotated[str | None, Field(description="JSON pointer into the body.")] = None
    parameter: Annotated[str | None, Field(description="A query parameter or form field.")] = None
    code: str
    detail: str


class OpenAIError(BaseModel):
    """The problem as OpenAI's clients read it."""

    message: str
    type: str
    code: str
    param: Annotated[str | None, Field(description="A pointer or parameter; null for none.")]


class ProblemDocument(BaseModel):
    """RFC 9457. `type` and `code` are stable; `instance` is the request's id."""

    model_config = examples(
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
            "error": {
                "message": "Input should be less than or equal to 1000",
                "type": "invalid_request_error",
                "code": "invalid-request",
                "param": "#/k",
            },
        }
    )
    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    error: OpenAIError
    hint: str | None = None
    errors: list[PointerError] | None = None


@router.api_route("/openapi.json", methods=["GET", "HEAD"])
@LOOKUP
async def openapi_json(request: Request) -> JSONResponse:
    document = request.app.openapi()
    if prefix := outside(""):
        document = {**document, "servers": [{"url": prefix}]}
    return JSONResponse(document)


def install(app: FastAPI, *, keys: bool = False) -> None:
    """Make the document complete, with `keys` also in who needs one; built on first use."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app, keys=keys)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way


def _build(app: FastAPI, *, keys: bool) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
    )
    models: set[type[BaseModel]] = {ProblemDocument}
    for operation, endpoint in _operations(app, document):
        if endpoint.body is not None:
            models |= _describe(operation, endpoint.body)
        if keys and endpoint.access != "public":
            operation["security"] = [{"bearer": []}, {"api-key": []}]
            operation["x-scope"] = endpoint.access
        responses = operation["responses"]
        responses.pop("422", None)
        responses["4XX"] = _problem("The request was refused.")
        responses["5XX"] = _problem("The service could not answer.")
    _, definitions = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)],
        ref_template=_REF + "{model}",
    )
    components = document.setdefault("components", {})
    known = components.setdefault("schemas", {})
    known.update(definitions["$defs"])
    known.pop("HTTPValidationError", None)
    known.pop("ValidationError", None)
    components["x-problem-codes"] = {
        code: {"status": status, "title": title}
        for code, (status, title) in problems.CATALOGUE.items()
    }
    if keys:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
            "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
        }
    return document


def _operations(
    app: FastAPI, document: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], Endpoint]]:
    """Each operation of the document with what its route declares."""
    for route in iter_route_contexts(app.routes):
        for method in route.methods or ():
            operation = document["paths"].get(route.path_format, {}).get(method.lower())
            endpoint = declared(route.endpoint)
            if operation is not None:
                assert endpoint is not None, "the application's table was made of these routes"
                yield operation, endpoint


def _describe(operation: dict[str, Any], body: RequestBody) -> set[type[BaseModel]]:
    """Put a body into its operation; returns the models it refers to."""
    models: set[type[BaseModel]] = set()
    content: dict[str, Any] = {}
    for kind, shape in body.content.items():
        if isinstance(shape, type):
            models.add(shape)
            shape = _ref(shape.__name__)
        content[kind] = {"schema": shape}
    operation["requestBody"] = {"required": True, "content": content}
    if body.query:
        operation.setdefault("parameters", []).extend(
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in body.query.items()
        )
    return models


def _problem(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {problems.MEDIA_TYPE: {"schema": _ref(ProblemDocument.__name__)}},
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF + name}
