"""What answers while models are loaded: probes, at once, and everything else with 503.

`serve` holds the address from its start, so that a taken port is known before anything slow. Until
the application is there a small one answers at it, in a thread of its own and behind the same
protocol: an orchestrator sees a service that lives and is not ready, and not one that hangs.
"""

from __future__ import annotations

import socket
from threading import Thread
from time import sleep
from types import SimpleNamespace
from typing import Final, Self

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from service.http.middleware.frame import RequestFrame
from service.http.middleware.limits import Limits, RequestLimits
from service.http.middleware.problems import Problem
from service.http.protocol import MAX_HEAD_BYTES, ConnectionLimits, protocol_class

_PROBES: Final = ("/healthz", "/readyz")
_CONNECTIONS: Final = 256
_STOP_S: Final = 1


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] in _PROBES:
        scope["route"] = SimpleNamespace(path=scope["path"])
    if scope["path"] == "/healthz" and scope["method"] == "GET":
        await JSONResponse({"status": "ok"})(scope, receive, send)
        return
    loading = Problem("not-ready", "Starting: the model is loading.", headers={"Retry-After": "2"})
    await loading.send(scope, receive, send)


class LoadingAnswers:
    """A context in which the listener is answered; on leaving it the listener is as it was."""

    def __init__(self, listener: socket.socket, limits: RequestLimits) -> None:
        # each answer ends its connection: the next request is the application's
        app = RequestFrame(Limits(_answer, limits), closing=lambda: True)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=protocol_class(ConnectionLimits(connections=_CONNECTIONS)),
                ws="none",
                lifespan="off",
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_graceful_shutdown=_STOP_S,
                server_header=False,
                proxy_headers=False,
                access_log=False,
                log_config=None,
            )
        )
        # closing it closes this file only, not the address
        own = listener.dup()
        self._thread = Thread(
            target=self._server.run, kwargs={"sockets": [own]}, name="loading", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Once more is no harm."""
        self._server.should_exit = True
        self._thread.join()
