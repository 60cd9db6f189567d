"""What the running application holds, and how routes reach it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request

from service.engine import Engine
from service.problems import refuse


@dataclass(slots=True)
class AppState:
    """The engines by name, and whether they have answered a warm-up and are not draining.

    The first engine answers requests that name none.
    """

    engines: Mapping[str, Engine]
    ready: bool = False

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


# async, so that resolving them costs no trip through the thread pool
async def _engine(request: Request, index: IndexName = None) -> AsyncIterator[Engine]:
    if len(request.query_params.getlist("index")) > 1:
        raise refuse("invalid-request", "A query parameter is given twice.")
    with app_state(request).engine(index).pin() as engine:
        yield engine


async def _state(request: Request) -> AppState:
    return app_state(request)


EngineOf = Annotated[Engine, Depends(_engine)]
"""The engine of the index a request names, pinned to one version of it until the answer is out."""
StateOf = Annotated[AppState, Depends(_state)]
