"""What the running application holds, and how routes reach it.

A route names what it needs in its signature (`EngineOf`, `StateOf`). FastAPI resolves those anew
for every request, which for a text search costs more than reading its body: a `DirectRoute` calls
an endpoint that is marked `direct` with its body, the engine and the request itself. What the
document says of it stays FastAPI's work, and so do errors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from fastapi import Depends, Query, Request, Response
from fastapi.routing import APIRoute

from models.sources.fetch import Fetcher
from service.engine import deadline
from service.engine.engine import Engine
from service.http.middleware.admission import AdmissionControl
from service.http.middleware.auth import confirm
from service.http.middleware.problems import refuse
from service.operations import metrics

_MARK: Final = "_diptych_direct"
B = TypeVar("B")
Answer: TypeAlias = Callable[[B, Engine, Request], Awaitable[Response]]
Fetch: TypeAlias = Callable[[str], bytes]
"""`AppState.fetch`: a picture by its address, or a refusal; blocks, so it is called in a thread."""


@dataclass(slots=True)
class AppState:
    """The engines by name, and whether they may be asked.

    The first engine answers requests that name none.

    Attributes:
        warm: every engine has answered a warm-up.
        draining: the service is about to stop; what is asked is still answered.
        admission: how much is being answered.
        fetcher: fetches pictures that callers name by their address; None fetches none.
        guarded: requests need a key.
    """

    engines: Mapping[str, Engine]
    warm: bool = False
    draining: bool = False
    admission: AdmissionControl = field(default_factory=AdmissionControl)
    fetcher: Fetcher | None = None
    guarded: bool = False

    @property
    def ready(self) -> bool:
        return self.warm and not self.draining

    def drain(self) -> None:
        """Say no to health checks, and close connections with their next answer."""
        self.draining = True
        metrics.READY.set(0)

    def engine(self, name: str | None) -> Engine:
        """The engine of a name; raises a `not-found` problem."""
        if name is None:
            return next(iter(self.engines.values()))
        if name not in self.engines:
            raise refuse("not-found", "No index has this name.")
        return self.engines[name]

    def fetch(self, url: str) -> bytes:
        """A picture that a caller names by its address; blocks.

        Raises:
            ProblemError: the operator did not turn fetching on.
            UrlError: an address that is refused, or gave no picture.
        """
        if self.fetcher is None:
            raise refuse(
                "url-not-allowed",
                "This service fetches nothing; send the picture itself.",
                hint="diptych serve --allow-urls turns fetching on.",
            )
        return self.fetcher.fetch(url, within=deadline.left())


def app_state(request: Request) -> AppState:
    state = request.app.state.diptych
    assert isinstance(state, AppState)
    return state


IndexName = Annotated[
    str | None,
    Query(description="Which index answers, as /v1/indexes names it; without it the first."),
]


@contextmanager
def pinned(request: Request) -> Iterator[Engine]:
    """The engine of the index a request names, pinned to one version of it within the block."""
    named = request.query_params.getlist("index") if request.scope["query_string"] else []
    if len(named) > 1:
        raise refuse("invalid-request", "A query parameter is given twice.")
    with app_state(request).engine(named[0] if named else None).pin() as engine:
        yield engine


# async, so that resolving them costs no trip through the thread pool
async def _engine(request: Request, index: IndexName = None) -> AsyncIterator[Engine]:  # noqa: ARG001  # named for the document
    with pinned(request) as engine:
        yield engine


async def _state(request: Request) -> AppState:
    return app_state(request)


EngineOf = Annotated[Engine, Depends(_engine)]
"""The engine of the index a request names, pinned to one version of it until the answer is out."""
StateOf = Annotated[AppState, Depends(_state)]


def direct(read: Callable[[Request], Awaitable[B]]) -> Callable[[Answer[B]], Answer[B]]:
    """Call an endpoint of a body, the engine and the request without FastAPI's resolving.

    `read` is what its body depends on. The order is that of its signature: a request that is wrong
    in two ways gets the same refusal either way.
    """

    def mark(endpoint: Answer[B]) -> Answer[B]:
        async def handle(request: Request) -> Response:
            if app_state(request).guarded:
                await confirm(request)
            body = await read(request)
            with pinned(request) as engine:
                return await endpoint(body, engine, request)

        setattr(endpoint, _MARK, handle)
        return endpoint

    return mark


class DirectRoute(APIRoute):
    """See the module. An endpoint that is not marked is called as ever."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's hook for routes that read a request in their own way."""
        handle = getattr(self.endpoint, _MARK, None)
        return super().get_route_handler() if handle is None else handle
