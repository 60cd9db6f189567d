"""What the running application holds, and how routes reach it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.engine import Engine


@dataclass(slots=True)
class AppState:
    """The engine, and whether it has answered a warm-up and is not draining."""

    engine: Engine
    ready: bool = False


def app_state(request: Request) -> AppState:
    state = request.app.state.diptych
    assert isinstance(state, AppState)
    return state


def _engine(request: Request) -> Engine:
    return app_state(request).engine


EngineOf = Annotated[Engine, Depends(_engine)]
StateOf = Annotated[AppState, Depends(app_state)]
