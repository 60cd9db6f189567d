"""GET /healthz: the process answers. GET /readyz: it can answer searches."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from service.http.middleware.endpoints import Endpoint
from service.http.middleware.problems import refuse
from service.http.requests.fields import examples
from service.http.requests.state import StateOf

router = APIRouter(tags=["health"])
# answered whatever happens: they are how one finds out what happens
_ALWAYS = Endpoint(access="public", lane=None, cost="one", idempotency_key=False, body=None)


class Health(BaseModel):
    model_config = examples({"status": "ok"})
    status: Literal["ok", "ready"]


@router.get("/healthz", summary="Alive")
@_ALWAYS
async def healthz() -> Health:
    return Health(status="ok")


@router.get("/readyz", summary="Ready to answer")
@_ALWAYS
async def readyz(state: StateOf) -> Health:
    """503 until a warm-up query has run, and again while the service drains."""
    if not state.ready:
        raise refuse("not-ready", "Warming up or shutting down.", headers={"Retry-After": "1"})
    return Health(status="ready")
