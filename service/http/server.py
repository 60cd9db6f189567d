"""Running the application: uvicorn with our protocol, and a stop that loses nothing.

The first SIGTERM or SIGINT: `/readyz` says no while connections are still accepted, so that whoever
balances load looks elsewhere; then none are accepted, and what has begun or waits is answered, each
connection closed with its answer; what is not done in time is answered 503. The second stops at
once. Knows sockets and signals, not commands.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from models.environment import raise_file_limit
from service.http.middleware.prefix import BelievedProxies
from service.http.protocol import MAX_HEAD_BYTES, ConnectionLimits, protocol_class
from service.http.requests.state import AppState

_LOG = logging.getLogger("diptych.service")

# files, sockets of callers, an index's own: what is not a connection
_OTHER_FILES: Final = 256
# connections taken in one turn of the event loop: asyncio would take as many as may wait, and a
# thousand that come at once would keep the answers to others waiting for a tenth of a second
_ACCEPTED_AT_ONCE: Final = 16
_WAITING_TO_BE_ACCEPTED: Final = 2048


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How the server deals with connections and its end.

    Attributes:
        keep_alive_s: an idle connection is kept.
        unready_s: between saying no to `/readyz` and accepting no more connections.
        drain_s: for what has begun, once no more is accepted.
        proxies: addresses whose `X-Forwarded-*` are believed, comma-separated.
    """

    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    keep_alive_s: int = 15
    unready_s: float = 0.5
    drain_s: float = 30.0
    proxies: str | None = None


class Server(uvicorn.Server):
    """See the module.

    Attributes:
        abandoned: requests that were still running when the time to finish was over.
    """

    def __init__(
        self, app: FastAPI, settings: ServerSettings, announce: Callable[[], None]
    ) -> None:
        room = max(1, raise_file_limit() - _OTHER_FILES)
        limits = replace(
            settings.connections, connections=min(settings.connections.connections, room)
        )
        super().__init__(
            uvicorn.Config(
                # whoever connects could claim any address
                app if settings.proxies is None else BelievedProxies(app, settings.proxies),
                http=protocol_class(limits),
                ws="none",
                backlog=_ACCEPTED_AT_ONCE,
                lifespan="on",
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_keep_alive=settings.keep_alive_s,
                # ours ends first, with answers; this one only cancels what did not listen
                timeout_graceful_shutdown=int(settings.drain_s) + 3,
                server_header=False,
                proxy_headers=False,
                # uvicorn's access log holds query strings; ours holds route templates
                access_log=False,
                log_config=None,
            )
        )
        state = app.state.diptych
        assert isinstance(state, AppState)
        self._state = state
        self._settings = settings
        self._announce = announce
        self.abandoned = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_WAITING_TO_BE_ACCEPTED)  # only the system's queue grows by that
        if self.started:
            self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.should_exit:
            os._exit(128 + sig)  # asked twice: whoever waits for an answer is out of luck
        # unlike uvicorn's, the signal is not raised again afterwards: a clean stop is no failure
        self.should_exit = True
        # no more than a flag: the signal may have come in the middle of anything
        self._state.draining = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._state.drain()
        under_way = self._state.admission.in_flight
        _LOG.info(
            "stopping, %d requests under way",
            under_way,
            extra={"fields": {"event": "stopping", "in_flight": under_way}},
        )
        await asyncio.sleep(self._settings.unready_s)
        loop = asyncio.get_running_loop()
        last = loop.call_later(self._settings.drain_s, self._state.admission.give_up)
        try:
            await super().shutdown(sockets)
        finally:
            last.cancel()
        self.abandoned = self._state.admission.in_flight
