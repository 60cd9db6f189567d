"""The one place where errors become HTTP answers: RFC 9457 `application/problem+json`.

Domain errors, validation errors, the framework's own 404 and 405, refused bodies and defects of
ours all end here, in one shape. A problem never holds the caller's text, a path, or a stack: where
a domain message may name such things, a fixed sentence replaces it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Mount
from starlette.types import Receive, Scope, Send

from models.errors import (
    DeadlineError,
    DiptychError,
    ImageError,
    IndexLockedError,
    InputError,
    InvalidFilterError,
    LabelSetError,
    LabelSetNotFoundError,
    NoSpaceError,
    NotFoundError,
    StoreError,
)

_LOG = logging.getLogger("diptych.service")

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:diptych:problem:"

# code -> (status, title); every problem this service can answer with
CATALOGUE: dict[str, tuple[int, str]] = {
    "malformed-json": (400, "The body is not valid JSON"),
    "malformed-multipart": (400, "The body is not valid multipart/form-data"),
    "bad-request": (400, "The request cannot be understood"),
    "bad-host": (400, "The Host header names no host of this service"),
    "unauthorized": (401, "A key is needed"),
    "scope-missing": (403, "The key does not allow this"),
    "read-only": (403, "Items cannot be changed here"),
    "not-found": (404, "Not found"),
    "method-not-allowed": (405, "Method not allowed"),
    "body-timeout": (408, "The body did not arrive in time"),
    "body-too-large": (413, "The body is too large"),
    "uri-too-long": (414, "The URI is too long"),
    "unsupported-media-type": (415, "The media type is not supported"),
    "content-encoding-refused": (415, "Encoded bodies are not accepted"),
    "invalid-request": (422, "The request does not fit its schema"),
    "invalid-input": (422, "A value is out of range"),
    "invalid-text": (422, "The text cannot be searched for"),
    "url-not-allowed": (422, "Pictures are not fetched from this address"),
    "url-fetch-failed": (422, "The address gave no picture"),
    "answer-too-large": (422, "The answer would be too large"),
    "invalid-vector": (422, "The embedding cannot be used"),
    "model-not-found": (404, "No model has this name"),
    "label-set-not-found": (404, "No label set has this name"),
    "label-sets-read-only": (403, "Label sets cannot be changed here"),
    "idempotency-key-in-use": (409, "The first request is not answered yet"),
    "idempotency-key-reused": (422, "The Idempotency-Key belongs to another request"),
    "label-sets-full": (409, "There are too many label sets"),
    "label-set-mismatch": (409, "The label set was made with another model"),
    "label-set-damaged": (500, "The stored label set is damaged"),
    "label-sets-unwritable": (503, "The label set could not be stored"),
    "invalid-filter": (422, "The filter cannot be used"),
    "invalid-sort": (422, "The hits cannot be sorted so"),
    "invalid-labels": (422, "The labels or templates cannot be used"),
    "cannot-explain": (422, "This model cannot explain its answers"),
    "image-empty": (422, "The picture is empty"),
    "image-undecodable": (422, "The picture cannot be decoded"),
    "decode-timeout": (422, "The picture takes too long to decode"),
    "image-bad-dimensions": (422, "The picture's dimensions are not usable"),
    "image-too-many-pixels": (422, "The picture has too many pixels"),
    "image-too-large": (413, "The picture is too large"),
    "image-format-not-allowed": (415, "The picture's format is not accepted"),
    "headers-too-large": (431, "The request headers are too large"),
    "internal-error": (500, "Something went wrong on our side"),
    "model-unusable": (500, "The model failed"),
    "index-error": (503, "The index cannot answer"),
    "index-locked": (503, "Another program is writing the index"),
    "no-space": (507, "The disk is full"),
    "not-ready": (503, "Not ready"),
    "too-many-attempts": (429, "Too many requests without a valid key"),
    "shutting-down": (503, "Shutting down"),
    "too-many-connections": (503, "Too many connections are open"),
    "overloaded": (429, "Too much is waiting already"),
    "deadline-exceeded": (504, "The time allowed has passed"),
}
# the reason once more where OpenAI's clients look for it, in that service's words
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_FALLBACK = {404: "not-found", 405: "method-not-allowed", 413: "body-too-large"}
_RULES = {
    "invalid-labels": "Labels are distinct and not empty; a template has {c} or {} for the label."
}
# code -> (detail, hint)
_LABEL_SETS: dict[str, tuple[str, str | None]] = {
    "label-set-not-found": ("No label set has this name.", "GET /v1/label-sets lists them."),
    "label-set-damaged": ("Its file cannot be read.", "Store it again, or delete it."),
    "label-set-mismatch": (
        "Its examples or its temperature belong to another model.",
        "Store it again with the model in use.",
    ),
    "label-sets-full": ("No more can be stored.", "Delete one that is not needed."),
    "label-sets-read-only": ("The service keeps no label sets, or may not write them.", None),
    "label-sets-unwritable": ("What was stored before still is; the log has the cause.", None),
}
_STORE = {
    "index-locked": "Nothing was written; searches go on meanwhile.",
    "no-space": "Nothing was written; what the index holds is untouched.",
}
_MAX_ERRORS = 20
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One RFC 9457 problem; `errors` point into the request."""

    code: str
    detail: str
    errors: Sequence[Mapping[str, str]] = ()
    hint: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    status_override: int | None = None

    @property
    def title(self) -> str:
        return CATALOGUE[self.code][1]

    @property
    def status(self) -> int:
        return self.status_override or CATALOGUE[self.code][0]

    def document(self, request_id: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "type": TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": f"urn:request:{request_id}",
            "code": self.code,
        }
        if self.hint:
            body["hint"] = self.hint
        if self.errors:
            body["errors"] = list(self.errors)
        first: Mapping[str, str] = self.errors[0] if self.errors else {}
        body["error"] = {
            "message": " ".join(part for part in (self.detail, self.hint) if part),
            "type": _OPENAI_TYPES.get(self.status, _openai_type(self.status)),
            "code": self.code,
            "param": first.get("pointer", first.get("parameter")),
        }
        return body

    def response(self, request_id: str) -> Response:
        # ASCII escapes: whatever reached a pointer, the bytes are valid
        body = json.dumps(self.document(request_id), ensure_ascii=True).encode("ascii")
        headers = {"Cache-Control": "no-store", **self.headers}
        return Response(body, self.status, headers, media_type=MEDIA_TYPE)

    def answer(self, scope: Scope) -> Response:
        """The response to a request, whose log line will name the problem."""
        scope.setdefault("state", {})["problem"] = self.code
        return self.response(request_id_of(scope))

    async def send(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with it, from a layer outside of the routes."""
        await self.answer(scope)(scope, receive, send)


def _openai_type(status: int) -> str:
    return "server_error" if status >= 500 else "invalid_request_error"


class ProblemError(HTTPException):
    """Raised by the HTTP layer itself. An HTTPException, because FastAPI lets only those through
    while it reads a body."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.status, problem.detail)
        self.problem = problem


def refuse(code: str, detail: str, **more: Any) -> ProblemError:
    return ProblemError(Problem(code, detail, **more))


def of_domain(error: DiptychError) -> Problem:
    """A domain error as a problem. Only messages that describe numbers and rules pass through."""
    code, detail, hint, headers = error.code, error.message, error.hint, {}
    errors: list[dict[str, str]] = []
    if isinstance(error, LabelSetNotFoundError | LabelSetError):
        detail, hint = _LABEL_SETS[code]
        headers = {"Retry-After": "5"} if code == "label-sets-unwritable" else {}
    elif isinstance(error, NotFoundError):
        code, detail, hint = "not-found", "No item has this id.", None
    elif isinstance(error, ImageError):
        if code not in CATALOGUE or code == ImageError.code:
            # the decoder's reason may quote bytes of the file
            code, detail = ImageError.code, "It is damaged, or not a picture."
    elif isinstance(error, InputError):
        code = code if code in CATALOGUE else InputError.code
        if "'" in detail or '"' in detail:
            # the message quotes what was sent (labels, templates): name the rule instead
            detail = _RULES.get(code, "The value cannot be used.")
        if isinstance(error, InvalidFilterError):
            errors = [{"pointer": f"#/filter{error.where}", "code": code, "detail": detail}]
        if code == "invalid-sort":
            errors = [{"pointer": "#/sort", "code": code, "detail": detail}]
    elif isinstance(error, IndexLockedError | NoSpaceError):
        detail, headers = _STORE[code], {"Retry-After": "5"}
        hint = None
    elif isinstance(error, StoreError):
        # the message names files; the operator finds it in the log
        code, detail, hint = "index-error", "The index cannot answer at the moment.", None
        headers = {"Retry-After": "5"}
    elif isinstance(error, DeadlineError):
        detail, hint = "The answer was not ready in time.", "X-Request-Timeout allows more seconds."
        if code == "shutting-down":
            detail, hint, headers = "Ask again, or another server.", None, {"Retry-After": "1"}
    else:
        if code == "cannot-explain":
            return Problem(code, "There is no method for its architecture.")
        code = code if code == "model-unusable" else "internal-error"
        detail, hint = "The request could not be answered; the log has the cause.", None
    return Problem(code, detail, errors, hint=hint, headers=headers)


def of_pictures(refused: Sequence[DiptychError]) -> Problem:
    """No picture of a request could be read: the first one's problem, with a pointer to each."""
    each = [of_domain(error) for error in refused]
    errors = [
        {"pointer": f"#/images/{index}", "code": problem.code, "detail": problem.detail}
        for index, problem in enumerate(each[:_MAX_ERRORS])
    ]
    return replace(each[0], errors=errors)


def of_validation(errors: Iterable[Mapping[str, Any]]) -> Problem:
    """Pydantic's complaints as pointers into the body, or names of parameters.

    Validators of ours raise `PydanticCustomError` with a catalogue code as its type; when all
    complaints share one, it is the problem's.
    """
    listed: list[dict[str, str]] = []
    codes: set[str] = set()
    for error in errors:
        kind = str(error["type"])
        codes.add(kind if kind in CATALOGUE else "invalid-request")
        if len(listed) < _MAX_ERRORS:
            place, *path = error["loc"]
            where = (
                {"pointer": _pointer(path, kind)}
                if place == "body"
                else {"parameter": _safe_name(path[-1] if path else place)}
            )
            listed.append({**where, "code": kind, "detail": str(error["msg"])})
    code = codes.pop() if len(codes) == 1 else "invalid-request"
    detail = listed[0]["detail"] if len(listed) == 1 else "Several values do not fit; see errors."
    return Problem(code, detail, errors=listed)


def of_http(error: HTTPException) -> Problem:
    """The framework's own refusals."""
    if isinstance(error, ProblemError):
        return error.problem
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # static mounts refuse without saying what they allow; RFC 9110 wants Allow on every 405
        headers.setdefault("Allow", "GET, HEAD")
        return Problem(
            "method-not-allowed", "This path does not take this method.", (), headers=headers
        )
    if error.status_code == 404:
        return Problem("not-found", "There is nothing at this path.")
    code = _FALLBACK.get(error.status_code)
    if code is None:
        code = "bad-request" if error.status_code < 500 else "internal-error"
    return Problem(
        code, "The request was refused.", headers=headers, status_override=error.status_code
    )


def internal() -> Problem:
    return Problem("internal-error", "The request could not be answered; the log has the cause.")


def _allowed(request: Request) -> str:
    """Every method of a path: routes that share one each know only their own."""
    # a mount takes any method and refuses later; ours hold files, which are only read
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    allowed = [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        # HEAD is answered as GET, see `RequestFrame`
        for asked in ("GET" if method == "HEAD" else method,)
        if any(
            route.matches({**request.scope, "method": asked})[0] is Match.FULL for route in routes
        )
    ]
    return ", ".join(allowed) or "GET, HEAD"


def _safe_name(part: object) -> str:
    """A field's name if it looks like one; the caller's text is not repeated."""
    text = str(part)
    return text if isinstance(part, int) or _PLAIN_NAME.fullmatch(text) else "?"


def _pointer(path: Sequence[object], kind: str) -> str:
    parts = [_safe_name(part) for part in path]
    if kind == "extra_forbidden" and parts and parts[-1] == "?":
        parts.pop()
    return "#" + "".join(f"/{part}" for part in parts)


def request_id_of(scope: Scope) -> str:
    return str(scope.get("state", {}).get("request_id", "unknown"))


def install(app: FastAPI) -> None:
    """Register the handlers. Defects (any other exception) are caught by `RequestFrame`."""

    async def domain(request: Request, error: Exception) -> Response:
        assert isinstance(error, DiptychError)
        problem = of_domain(error)
        if problem.status >= 500:
            # of the store or the model, whose messages name files but never what was asked
            request_id = request_id_of(request.scope)
            _LOG.error("request=%s %s: %s", request_id, error.code, error.message)
        return problem.answer(request.scope)

    async def validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return of_validation(error.errors()).answer(request.scope)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            error.headers = {**(error.headers or {}), "Allow": _allowed(request)}
        return of_http(error).answer(request.scope)

    async def gone(request: Request, _: Exception) -> Response:
        # nobody reads this; it keeps a caller who hung up from looking like a defect
        problem = Problem("bad-request", "The body ended early.")
        return problem.answer(request.scope)

    app.add_exception_handler(DiptychError, domain)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientDisconnect, gone)
