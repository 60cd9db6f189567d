"""What the running application holds, and how routes reach it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Query, Request

from models.sources.fetch import Fetcher
from service.engine.engine import Engine
from service.http.middleware.admission import AdmissionControl
from service.http.middleware.problems import refuse
from service.operations import metrics


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
