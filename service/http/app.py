"""The composition root of the HTTP service: built parts in, an application out.

Layers, outermost first: `RequestFrame` (id, headers, log line, last catch), `Prefix`, `Limits`,
`CrossOrigin` and `Authentication` where they are asked for, `Admission`, `Idempotency`, routes.
Nothing here loads a model or opens an index; tests pass an engine whose right answers are known.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Final

from anyio import to_thread
from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool

from models.errors import InputError
from models.sources.fetch import Fetcher
from service.engine.engine import Engine
from service.engine.watcher import DEFAULT_POLL_S, IndexWatcher
from service.http.middleware import problems
from service.http.middleware.admission import Admission, AdmissionControl
from service.http.middleware.auth import Authentication, Guard, confirm
from service.http.middleware.cors import CrossOrigin
from service.http.middleware.endpoints import EndpointTable
from service.http.middleware.frame import RequestFrame
from service.http.middleware.idempotency import Answers, Idempotency
from service.http.middleware.lanes import AdmissionLimits, threads
from service.http.middleware.limits import Limits, RequestLimits
from service.http.middleware.prefix import Prefix
from service.http.requests.state import AppState
from service.http.resources import (
    batch,
    classify,
    embeddings,
    explain,
    health,
    indexes,
    item_writes,
    items,
    knn,
    label_sets,
    openapi,
    search,
    search_forms,
)
from service.http.resources.page import page_router
from service.operations import metrics

RESOURCES: Final = (
    search,
    search_forms,
    batch,
    classify,
    explain,
    label_sets,
    indexes,
    items,
    item_writes,
    embeddings,
    knn,
    health,
    openapi,
)


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What the operator may choose.

    Attributes:
        guard: the API keys that are let in; None lets everybody in.
        cors_origins: web origins whose pages may call, such as `https://photos.example`.
        admission: how much work is taken on, and how long it may take.
        poll_s: how often indexes are looked at for a new version; 0 for never.
        fetcher: fetches pictures that callers name by their address; None fetches none.
        root_path: the path a proxy serves this under, such as `/photos`; "" for none.
    """

    limits: RequestLimits = field(default_factory=RequestLimits)
    guard: Guard | None = None
    cors_origins: tuple[str, ...] = ()
    admission: AdmissionLimits = field(default_factory=AdmissionLimits)
    poll_s: float = DEFAULT_POLL_S
    fetcher: Fetcher | None = None
    root_path: str = ""


def create_app(
    engines: Engine | Sequence[Engine], settings: ServiceSettings | None = None
) -> FastAPI:
    """The ASGI application over one engine, or several that requests choose from by name.

    It is ready once its lifespan has warmed every engine. The first answers where none is named.

    Raises:
        InputError: two engines share a name.
        TypeError: a route does not declare what it needs and costs.
    """
    settings = settings or ServiceSettings()
    state = AppState(
        _by_name([engines] if isinstance(engines, Engine) else engines),
        admission=AdmissionControl(settings.admission),
        fetcher=settings.fetcher,
        guarded=settings.guard is not None,
    )
    app = FastAPI(
        title="Diptych",
        version=version("diptych"),
        summary="Search and sort pictures by meaning.",
        description="Errors are RFC 9457 `application/problem+json`, always. Where too much waits "
        "already, requests are refused with 429 and `Retry-After`. `X-Request-Timeout` says how "
        "many seconds an answer is worth waiting for; after them it is 504.",
        lifespan=partial(_lifespan, state, settings),
        openapi_url=None,  # ours is a route like any other
        docs_url=None,
        redoc_url=None,
        # a redirect would answer a wrong path with something that is not a problem
        redirect_slashes=False,
        # FastAPI's own spans and records hold paths, queries and messages;
        # `service.operations.tracing` does not. Versions that have none ignore this
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
        dependencies=[] if settings.guard is None else [Depends(confirm)],
    )
    app.state.diptych = state
    problems.install(app)
    for router in (*(resource.router for resource in RESOURCES), page_router()):
        app.include_router(router)
    openapi.install(app, keys=settings.guard is not None)
    _surround(app, state, settings)
    return app


@asynccontextmanager
async def _lifespan(state: AppState, settings: ServiceSettings, _: FastAPI) -> AsyncIterator[None]:
    # a request that got its turn does not wait for a thread as well
    to_thread.current_default_thread_limiter().total_tokens = threads(settings.admission)
    for engine in state.engines.values():
        await run_in_threadpool(engine.warm_up)
    with IndexWatcher([*state.engines.values()], settings.poll_s):
        state.warm = True
        metrics.READY.set(1)
        yield
        state.drain()


def _surround(app: FastAPI, state: AppState, settings: ServiceSettings) -> None:
    """Put the layers around the routes; each that is added surrounds those before."""
    endpoints = EndpointTable(app.routes)
    app.add_middleware(Idempotency, answers=Answers(), endpoints=endpoints)
    app.add_middleware(Admission, control=state.admission, endpoints=endpoints)
    if settings.guard is not None:
        app.add_middleware(Authentication, guard=settings.guard, endpoints=endpoints)
    if settings.cors_origins:
        # outside of the keys: a preflight carries none
        app.add_middleware(CrossOrigin, origins=settings.cors_origins)
    app.add_middleware(Limits, limits=settings.limits)
    app.add_middleware(Prefix, root=settings.root_path, paths=endpoints.paths)
    app.add_middleware(RequestFrame, endpoints=endpoints, closing=lambda: state.draining)


def _by_name(engines: Sequence[Engine]) -> dict[str, Engine]:
    assert engines, "a service answers from at least one engine"
    named: dict[str, Engine] = {}
    for engine in engines:
        if engine.name in named:
            raise InputError(f"two indexes are named {engine.name!r}")
        named[engine.name] = engine
    return named
