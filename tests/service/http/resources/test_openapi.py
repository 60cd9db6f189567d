"""The OpenAPI document: complete, true to the service, and its examples run."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
from fakes import solid
from pydantic import BaseModel
from services import build_colours
from starlette.testclient import TestClient
from writable import writable_client

from service.http import resources
from service.http.middleware import problems
from service.http.resources.search_forms import ImageSearchOptions


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    index: Path = build_colours(tmp_path_factory.mktemp("openapi") / "colours.index")
    with writable_client(index) as client:
        yield client


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    loaded: dict[str, Any] = client.get("/openapi.json").json()
    return loaded


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    target: Any = document
    for part in schema["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return dict(target)


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in references(document):
        assert resolve(document, {"$ref": reference})


def test_every_operation_has_words_and_documents_its_errors(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        assert operation["summary"], path
        for status in ("4XX", "5XX"):
            content = operation["responses"][status]["content"]["application/problem+json"]
            assert content["schema"] == {"$ref": "#/components/schemas/ProblemDocument"}
        assert "422" not in operation["responses"]
        names = [(p["in"], p["name"]) for p in operation.get("parameters", [])]
        assert len(names) == len(set(names)), f"{path}: a parameter is listed twice"


def test_every_answer_in_json_has_an_example(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        for kind, content in operation["responses"].get("200", {"content": {}})["content"].items():
            if kind == "application/json":
                assert resolve(document, content["schema"])["examples"], path


def test_every_post_has_a_body_and_the_json_ones_examples(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        if method != "post":
            continue
        for kind, content in operation["requestBody"]["content"].items():
            if kind == "application/json":
                assert resolve(document, content["schema"])["examples"], path


MODELS = [
    model
    for model in dict.fromkeys(
        value
        for found in iter_modules(resources.__path__, "service.http.resources.")
        for value in vars(import_module(found.name)).values()
        if isinstance(value, type)
    )
    if isinstance(model, type)
    and issubclass(model, BaseModel)
    and "examples" in (model.model_config.get("json_schema_extra") or {})
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_examples_fit_their_own_schema(model: type[BaseModel]) -> None:
    examples = model.model_config["json_schema_extra"]["examples"]  # type: ignore[index]
    for example in examples:
        read = model.model_validate(example)
        if isinstance(example, list) or model.model_config.get("extra") == "ignore":
            continue  # a bare list, or a protocol with fields that mean nothing here
        assert set(example) <= set(read.model_dump()), "no field of an example is unknown"


def test_examples_are_executed(client: TestClient, document: dict[str, Any]) -> None:
    executed = 0
    for path, method, operation in operations(document):
        if method != "post" or "application/json" not in operation["requestBody"]["content"]:
            continue
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        for example in resolve(document, schema)["examples"]:
            accept = {"Accept": "application/json"}  # a heat map is a picture otherwise
            response = client.post(path, json=example, headers=accept)
            assert response.status_code == 200, (path, example, response.text)
            answer = response.json()
            filled = answer if isinstance(answer, list) else list(answer.values())
            assert any(isinstance(part, list | dict) and part for part in filled), path
            executed += 1
    assert executed >= 8


def test_example_parameters_are_executed(client: TestClient, document: dict[str, Any]) -> None:
    for path in ("/v1/items/{id}", "/v1/items/{id}/thumbnail"):
        (parameter,) = (
            p for p in document["paths"][path]["get"]["parameters"] if p["in"] == "path"
        )
        assert (
            client.get(path.replace("{id}", parameter["schema"]["examples"][0])).status_code == 200
        )


def test_uploads_are_described_as_they_are_read(
    client: TestClient, document: dict[str, Any]
) -> None:
    operation = document["paths"]["/v1/search/image-to-text"]["post"]
    assert {p["name"] for p in operation["parameters"]} == {
        *ImageSearchOptions.model_fields,
        "index",
    }
    assert {"multipart/form-data", "image/*"} == set(operation["requestBody"]["content"])
    form = document["paths"]["/v1/classify"]["post"]["requestBody"]["content"][
        "multipart/form-data"
    ]
    assert "image" in resolve(document, form["schema"])["required"]
    sent = client.post("/v1/classify", files={"image": ("x", solid("red"))}, data={"labels": "a,b"})
    assert sent.status_code == 200


def test_every_problem_code_is_documented(document: dict[str, Any]) -> None:
    assert set(document["components"]["x-problem-codes"]) == set(problems.CATALOGUE)
