"""Routes that are described by their endpoint's signature as any other, and answered without it.

FastAPI resolves an endpoint's dependencies anew for every request, which for a text search costs
more than reading its body. A `DirectRoute` whose endpoint is marked `direct` calls a function of
the request and the engine instead; what the document says of the route stays FastAPI's work, and
so do errors. Knows no use case.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.engine.engine import Engine
from service.http.middleware.auth import confirm
from service.http.resources.state import app_state, pinned

_MARK: Final = "_diptych_direct"
B = TypeVar("B")
E = TypeVar("E", bound=Callable[..., Any])


def direct(
    read: Callable[[Request], Awaitable[B]],
    answer: Callable[[B, Engine, Request], Awaitable[Response]],
) -> Callable[[E], E]:
    """Answer an endpoint's requests with `answer`, of the body as `read` gives it.

    The order is that of an endpoint which names the body before the engine: a request that is wrong
    in two ways gets the same refusal from both.
    """

    async def handle(request: Request) -> Response:
        if app_state(request).guarded:
            await confirm(request)
        body = await read(request)
        with pinned(request) as engine:
            return await answer(body, engine, request)

    def mark(endpoint: E) -> E:
        setattr(endpoint, _MARK, handle)
        return endpoint

    return mark


class DirectRoute(APIRoute):
    """See the module. An endpoint that is not marked is called as ever."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's hook for routes that read a request in their own way."""
        handle = getattr(self.endpoint, _MARK, None)
        return super().get_route_handler() if handle is None else handle
