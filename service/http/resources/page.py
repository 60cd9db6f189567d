"""The web page and the documentation page: a handful of files, read once, served from memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, Request, Response

from service.http.middleware.endpoints import LOOKUP, PUBLIC_FILE
from service.http.middleware.frame import DOCS_POLICY, PAGE_POLICY, STRICT_PAGE_POLICY
from service.http.middleware.problems import refuse

_PAGE = Path(__file__).resolve().parents[2] / "page"
# Swagger UI travels in a package of its own, so the documentation needs no network
_SWAGGER = Path(fastapi_offline.__file__).resolve().parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class _PageFile:
    body: bytes
    media_type: str
    etag: str


def _read(path: Path) -> _PageFile:
    body = path.read_bytes()
    return _PageFile(body, _TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def _serve(file: _PageFile, request: Request, policy: str) -> Response:
    headers = {"ETag": file.etag, "Cache-Control": "no-cache", "Content-Security-Policy": policy}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)


def page_router() -> APIRouter:
    """Routes of `/`, `/docs` and `/static/{name}`.

    The files are public, being those of the package and nothing of an index. The documentation is
    not: it describes the service to whoever may use it.
    """
    router = APIRouter(include_in_schema=False)
    static = {path.name: _read(path) for path in sorted(_PAGE.iterdir()) if path.suffix in _TYPES}
    static |= {name: _read(_SWAGGER / name) for name in ("swagger-ui-bundle.js", "swagger-ui.css")}
    index, docs = static.pop("index.html"), static.pop("docs.html")

    @router.get("/")
    @PUBLIC_FILE
    async def page(request: Request) -> Response:
        return _serve(index, request, STRICT_PAGE_POLICY)

    @router.get("/docs")
    @LOOKUP
    async def documentation(request: Request) -> Response:
        return _serve(docs, request, DOCS_POLICY)

    @router.get("/favicon.ico")
    @PUBLIC_FILE
    async def favicon(request: Request) -> Response:
        return _serve(static["icon.svg"], request, PAGE_POLICY)

    @router.get("/static/{name}")
    @PUBLIC_FILE
    async def asset(name: str, request: Request) -> Response:
        if name not in static:
            raise refuse("not-found", "There is nothing at this path.")
        return _serve(static[name], request, PAGE_POLICY)

    return router
