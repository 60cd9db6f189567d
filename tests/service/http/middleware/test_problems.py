"""Errors to problem documents: one shape, right statuses, nothing of the caller's repeated."""

from __future__ import annotations

import json

import pytest
from starlette.exceptions import HTTPException

from models import errors
from service.engine.embeddings import EmbeddingError
from service.http.middleware import problems
from service.http.middleware.problems import CATALOGUE, Problem, of_domain, of_http, of_validation

SECRET = "my-secret-query /home/me"


def everyone(kind: type = errors.DiptychError) -> list[type[errors.DiptychError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in everyone(child))]


@pytest.mark.parametrize("kind", everyone(), ids=lambda kind: kind.__name__)
def test_every_domain_error_has_a_problem(kind: type[errors.DiptychError]) -> None:
    if kind is errors.IndexCorruptError:
        error: errors.DiptychError = errors.IndexCorruptError("segments/x", SECRET)
    elif kind is EmbeddingError:  # carries another's
        error = EmbeddingError(1, errors.InvalidTextError(f"{SECRET!r} was given"))
    else:
        error = kind(f"{SECRET!r} was given")
    problem = of_domain(error)
    assert problem.code in CATALOGUE
    document = problem.document("abc")
    assert document["status"] == CATALOGUE[problem.code][0]
    assert document["instance"] == "urn:request:abc"
    if not isinstance(error, errors.ImageError):
        assert SECRET not in json.dumps(document)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.NotFoundError("x"), 404, "not-found"),
        (errors.InvalidTextError("x"), 422, "invalid-text"),
        (errors.ImageError("x"), 422, "image-undecodable"),
        (errors.ImageError("x", code="image-format-not-allowed"), 415, "image-format-not-allowed"),
        (errors.ImageError("x", code="image-too-large"), 413, "image-too-large"),
        (errors.ImageError("x", code="image-too-many-pixels"), 422, "image-too-many-pixels"),
        (errors.ImageError("x", code="something-new"), 422, "image-undecodable"),
        (errors.IndexCorruptError("f", "w"), 503, "index-error"),
        (errors.ModelError("x"), 500, "model-unusable"),
        (errors.SourceError("x"), 500, "internal-error"),
    ],
)
def test_statuses(error: errors.DiptychError, status: int, code: str) -> None:
    problem = of_domain(error)
    assert (problem.status, problem.code) == (status, code)


def test_numbers_and_rules_are_told() -> None:
    told = of_domain(
        errors.ImageError("13000 x 13000 is 169 megapixels", code="image-too-many-pixels")
    )
    assert told.detail == "13000 x 13000 is 169 megapixels"
    quoting = of_domain(errors.InvalidLabelsError("the label 'secret' appears twice"))
    assert "secret" not in quoting.detail


def test_503_says_when_to_come_back() -> None:
    assert of_domain(errors.StoreError("x")).headers["Retry-After"] == "5"


def complaint(kind: str, *loc: object, msg: str = "no") -> dict[str, object]:
    return {"type": kind, "loc": loc, "msg": msg, "input": SECRET}


def test_validation_points_into_the_body() -> None:
    problem = of_validation([complaint("int_type", "body", "query", "items", 3)])
    assert problem.errors == [{"pointer": "#/query/items/3", "code": "int_type", "detail": "no"}]
    assert problem.status == 422
    assert SECRET not in json.dumps(problem.document("x"))


def test_validation_names_parameters() -> None:
    problem = of_validation([complaint("less_than_equal", "query", "k")])
    assert problem.errors[0]["parameter"] == "k"


def test_a_name_that_is_text_is_not_repeated() -> None:
    problem = of_validation([complaint("extra_forbidden", "body", "query", SECRET)])
    assert problem.errors[0]["pointer"] == "#/query"


def test_one_shared_code_of_ours_becomes_the_problems() -> None:
    ours = complaint("invalid-text", "body", "text")
    assert of_validation([ours, ours]).code == "invalid-text"
    assert of_validation([ours, complaint("int_type", "body", "k")]).code == "invalid-request"


def test_a_flood_of_complaints_is_cut() -> None:
    problem = of_validation([complaint("int_type", "body", n) for n in range(1000)])
    assert len(problem.errors) == 20


def test_http_errors() -> None:
    assert of_http(HTTPException(404, detail=SECRET)).code == "not-found"
    wrong = of_http(HTTPException(405, headers={"Allow": "POST"}))
    assert (wrong.status, wrong.headers["Allow"]) == (405, "POST")
    assert of_http(HTTPException(405)).headers["Allow"]
    teapot = of_http(HTTPException(418, detail=SECRET))
    assert teapot.status == 418
    assert SECRET not in json.dumps(teapot.document("x"))


def test_the_writer_survives_any_text() -> None:
    response = Problem("invalid-request", "\ud800", errors=[{"pointer": "#/\udfff"}]).response("x")
    assert json.loads(response.body)["status"] == 422
    assert response.headers["content-type"] == problems.MEDIA_TYPE
