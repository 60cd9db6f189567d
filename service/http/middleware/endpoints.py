"""What every endpoint declares, and which endpoint a request is for; all layers read it here.

A route says beside its function what it needs and costs, and the layers in front of it (keys,
admission, idempotency) and the OpenAPI document take it from there. There is no default for a route
nobody thought about: `EndpointTable` refuses an application that has one. Knows no resource.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from starlette.routing import BaseRoute
from starlette.types import Scope

from service.http.middleware.keys import KeyScope
from service.http.middleware.lanes import LaneName

Access = KeyScope | Literal["public"]
H = TypeVar("H", bound=Callable[..., Any])
_MARK: Final = "_diptych_endpoint"
_PICTURE: Final = {"type": "string", "format": "binary"}
_LOOKING: Final = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestBody:
    """A request's body as the document shows it; the reading is the resource's own.

    Attributes:
        content: media type -> a model, or a JSON schema.
        query: options that may stand in the URL as well, each with its JSON schema.
    """

    content: Mapping[str, type[BaseModel] | Mapping[str, Any]]
    query: Mapping[str, Any] = field(default_factory=dict)


def json_of(model: type[BaseModel]) -> RequestBody:
    """A body that is JSON and nothing else."""
    return RequestBody(content={"application/json": model})


def picture_of(options: type[BaseModel], json: type[BaseModel] | None = None) -> RequestBody:
    """A picture as the body itself or in a form, with options; `json` is another way to say all."""
    query = {
        # a default of null is as good as none
        name: {key: value for key, value in schema.items() if value is not None}
        for name, schema in options.model_json_schema()["properties"].items()
    }
    form: dict[str, Any] = {"type": "object", "properties": {"image": _PICTURE, **query}}
    content: dict[str, type[BaseModel] | dict[str, Any]] = {
        "multipart/form-data": form,
        "image/*": _PICTURE,
    }
    if json is None:
        form["required"] = ["image"]
    else:
        content["application/json"] = json
    return RequestBody(content=content, query=query)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """What a route is to the layers around it. A decorator of the function that answers it.

    Attributes:
        access: the scope a key needs; `public` answers without one.
        lane: the requests it waits among; None never waits.
        cost: `one` unit, which joins its lane at the request's head; or by the `body`'s size, which
            joins when the body is complete.
        idempotency_key: a repetition under the same `Idempotency-Key` gets the first answer.
        body: what is sent, as the document shows it; None for nothing.
    """

    access: Access
    lane: LaneName | None
    cost: Literal["one", "body"]
    idempotency_key: bool
    body: RequestBody | None

    def __call__(self, handler: H) -> H:
        setattr(handler, _MARK, self)
        return handler


LOOKUP: Final = Endpoint(access="read", lane="light", cost="one", idempotency_key=False, body=None)
"""A GET that is answered from what is in memory, or nearly so."""
PUBLIC_FILE: Final = Endpoint(
    access="public", lane="light", cost="one", idempotency_key=False, body=None
)
"""A file that holds nothing of an index."""
_NOWHERE: Final = Endpoint(
    access="read", lane="pictures", cost="body", idempotency_key=False, body=None
)


def declared(handler: object) -> Endpoint | None:
    """What the function that answers a route declares."""
    found = getattr(handler, _MARK, None)
    assert found is None or isinstance(found, Endpoint)
    return found


class EndpointTable:
    """An application's routes by what they declare.

    Raises:
        TypeError: a route declares nothing, or what its methods contradict.
    """

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes: list[tuple[re.Pattern[str], frozenset[str], Endpoint, str]] = []
        paths: set[tuple[str, str]] = set()
        for route in iter_route_contexts(routes):
            endpoint = declared(route.endpoint)
            if endpoint is None:
                raise TypeError(f"the route {route.path} declares no Endpoint")
            methods = frozenset(route.methods or ())
            _check(str(route.path), methods, endpoint)
            self._routes.append((route.path_regex, methods, endpoint, str(route.path)))
            paths |= {(method, str(route.path)) for method in methods}
        # most requests go to a path without parameters, for which the patterns are tried here, once
        self._known = {
            (method, path): self._search(method, path) for method, path in paths if "{" not in path
        }

    @property
    def paths(self) -> frozenset[str]:
        """Of all routes, as templates."""
        return frozenset(path for _, _, _, path in self._routes)

    def path_of(self, scope: Scope) -> str | None:
        """The template of the path that is asked for, whatever the method; None for no route's.

        For requests that were refused before they came to their route.
        """
        found = (path for pattern, _, _, path in self._routes if pattern.match(scope["path"]))
        return next(found, None)

    def of(self, scope: Scope) -> Endpoint:
        """What the route declares that takes the request, by the router's own patterns.

        A request that no route takes needs a key as well: without one, not even the addresses can
        be explored.
        """
        if scope.get("root_path"):  # with one, paths mean something else: nothing is public
            return _nowhere(scope["method"])
        state = scope.setdefault("state", {})
        found: Endpoint | None = state.get("endpoint")
        if found is None:
            method, path = scope["method"], scope["path"]
            found = self._known.get((method, path)) or self._search(method, path)
            state["endpoint"] = found
        return found

    def _search(self, method: str, path: str) -> Endpoint:
        for pattern, methods, endpoint, _ in self._routes:
            if method in methods and pattern.match(path):
                return endpoint
        return _nowhere(method)


def _nowhere(method: str) -> Endpoint:
    """For what is answered 404 or 405."""
    return LOOKUP if method in _LOOKING else _NOWHERE


def _check(path: str, methods: frozenset[str], endpoint: Endpoint) -> None:
    looking = methods <= _LOOKING
    if not methods:
        raise TypeError(f"the route {path} takes any method")
    if looking and (endpoint.body or endpoint.idempotency_key or endpoint.access == "write"):
        raise TypeError(f"{path} is looked up, and needs neither body nor key to be repeated")
    if endpoint.access == "public" and not looking:
        raise TypeError(f"{path} takes {sorted(methods)} from anybody")
    if methods & {"POST", "PUT", "PATCH"} and endpoint.body is None:
        raise TypeError(f"{path} takes {sorted(methods)} without a documented body")
