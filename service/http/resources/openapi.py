"""The OpenAPI document: request bodies we parse ourselves, examples, and the problem schema.

FastAPI describes the bodies it reads; ours are read by `service.http.resources.bodies`, so they are
described here, from the same pydantic models.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts
from pydantic.json_schema import models_json_schema

from service.http.middleware import problems
from service.http.middleware.auth import access_of
from service.http.resources import (
    answers,
    batch_shapes,
    embedding_shapes,
    explain_shapes,
    item_shapes,
    knn_shapes,
    label_set_shapes,
    schemas,
)

_REF = "#/components/schemas/"
_BODIES = (
    schemas.SearchRequest,
    schemas.TextToImageRequest,
    batch_shapes.BatchRequest,
    schemas.ClassifyRequest,
    schemas.ClassifyForm,
    label_set_shapes.LabelSetRequest,
    explain_shapes.ExplainRequest,
    explain_shapes.ExplainForm,
    embedding_shapes.EmbeddingRequest,
    knn_shapes.KnnRequest,
    knn_shapes.MetadataRequest,
    item_shapes.ItemRequest,
    item_shapes.BulkRequest,
    answers.ProblemDocument,
)
_PICTURE = {"type": "string", "format": "binary"}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF + name}


def body_json(model: str) -> dict[str, Any]:
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(model)}}}
    }


def body_picture() -> dict[str, Any]:
    options = schemas.ImageSearchOptions.model_json_schema()["properties"]
    form = {"type": "object", "required": ["image"], "properties": {"image": _PICTURE, **options}}
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in options.items()
        ],
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": form}, "image/*": {"schema": _PICTURE}},
        },
    }


def body_item() -> dict[str, Any]:
    options = item_shapes.ItemOptions.model_json_schema()["properties"]
    form = {"type": "object", "properties": {"image": _PICTURE, **options}}
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in options.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _ref("ItemRequest")},
                "multipart/form-data": {"schema": form},
                "image/*": {"schema": _PICTURE},
            },
        },
    }


def body_classify() -> dict[str, Any]:
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _ref("ClassifyRequest")},
                "multipart/form-data": {"schema": _ref("ClassifyForm")},
            },
        }
    }


def body_explain() -> dict[str, Any]:
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _ref("ExplainRequest")},
                "multipart/form-data": {"schema": _ref("ExplainForm")},
            },
        }
    }


def install(app: FastAPI, *, keys: bool = False) -> None:
    """Make `/openapi.json` complete, with `keys` also in who needs one; built on first use."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app)
            if keys:
                _secure(app, app.openapi_schema)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way


def _build(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
    )
    _, definitions = models_json_schema(
        [(model, "validation") for model in _BODIES], ref_template=_REF + "{model}"
    )
    known = document.setdefault("components", {}).setdefault("schemas", {})
    known.update(definitions["$defs"])
    known.pop("HTTPValidationError", None)
    known.pop("ValidationError", None)
    for operations in document["paths"].values():
        for operation in operations.values():
            responses = operation["responses"]
            responses.pop("422", None)
            responses["4XX"] = _problem("The request was refused.")
            responses["5XX"] = _problem("The service could not answer.")
    document["components"]["x-problem-codes"] = {
        code: {"status": status, "title": title}
        for code, (status, title) in problems.CATALOGUE.items()
    }
    return document


def _secure(app: FastAPI, document: dict[str, Any]) -> None:
    """The two headers a key travels in, and per operation which scope it needs."""
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
        "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
    }
    for route in iter_route_contexts(app.routes):
        for method in getattr(route, "methods", None) or ():
            operation = document["paths"].get(route.path_format, {}).get(method.lower())
            needed = access_of(getattr(route, "endpoint", None), method)
            if operation is not None and needed != "public":
                operation["security"] = [{"bearer": []}, {"api-key": []}]
                operation["x-scope"] = needed


def _problem(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {problems.MEDIA_TYPE: {"schema": _ref("ProblemDocument")}},
    }
