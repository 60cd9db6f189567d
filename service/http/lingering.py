"""The transport that `protocol` gives uvicorn: its end can be read, and is not waited for for ever.

Closing a socket while bytes of the caller's lie unread resets the connection, and the answer is
lost with it. So the sending side is closed first, and what still arrives is dropped for a while.
"""

from __future__ import annotations

import asyncio
from typing import Any

from service.operations import metrics

# slower than this in reading an answer counts as not reading
_PACE = 1_000
# of an answer; not `100 Continue`, which nothing follows for now
_HEAD = b"HTTP/1.1 "
_INTERIM = b"HTTP/1.1 1"


class LingeringTransport(asyncio.Transport):
    """Wraps the transport that uvicorn writes to."""

    def __init__(
        self,
        wire: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        write_s: float,
        linger_s: float,
    ) -> None:
        super().__init__()
        self._wire = wire
        self._loop = loop
        self._write_s = write_s
        self._linger_s = linger_s
        self._closing = False
        self._unsent = 0
        self._head = b""
        self._write_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None

    # -- what uvicorn uses --------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._wire.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._closing or self._wire.is_closing()

    def write(self, data: Any) -> None:
        # an answer's head goes out with the first of its body: every sending gives Python's lock
        # away, and with an encoder at work beside the event loop that costs more than the sending
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(_HEAD) and not data.startswith(_INTERIM):
            self._head = data
            self._loop.call_soon(self._flush)  # a body may take its time
            return
        self._wire.write(data)

    def pause_reading(self) -> None:
        self._wire.pause_reading()

    def resume_reading(self) -> None:
        self._wire.resume_reading()

    def close(self) -> None:
        self.linger()

    # -- what the protocol uses ---------------------------------------------------------------

    def linger(self) -> None:
        """Send what is written, close our side, drop what arrives until the other side closes."""
        if self.is_closing():
            return
        self._flush()
        self._closing = True
        self.watch_writing()
        if self._wire.can_write_eof():
            self._wire.write_eof()
            self._wire.resume_reading()
            self._linger_timer = self._loop.call_later(self._linger_s, self._wire.close)
        else:
            self._wire.close()

    def finished(self) -> None:
        """The other side has closed its half."""
        if self._closing:
            self._wire.close()

    def drop(self) -> None:
        """Close at once, whatever is unsent."""
        self._closing = True
        self._wire.abort()

    def lost(self) -> None:
        """The connection is gone."""
        self._closing = True
        for timer in (self._write_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()

    def watch_writing(self) -> None:
        """Drop the connection if the caller stops reading what is written."""
        if self._write_timer is None:
            self._unsent = self._wire.get_write_buffer_size()
            self._write_timer = self._loop.call_later(self._write_s, self._check)

    def _flush(self) -> None:
        """Send a head that no body has followed yet."""
        head, self._head = self._head, b""
        if head and not self.is_closing():
            self._wire.write(head)

    def _check(self) -> None:
        self._write_timer = None
        left = self._wire.get_write_buffer_size()
        if left == 0:
            return
        if self._unsent - left < _PACE * self._write_s:
            metrics.CONNECTIONS_CLOSED.labels("write-timeout").inc()
            self.drop()
        else:
            self.watch_writing()
