"""GET /metrics on a loopback port of its own, with nothing else on it.

A server of its own, in threads of its own: it answers while the service is too busy to.
"""

from __future__ import annotations

import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from prometheus_client.exposition import choose_encoder

from service.http.middleware.limits import LOOPBACK_HOSTS
from service.operations.metrics import REGISTRY


class _Handler(BaseHTTPRequestHandler):
    timeout = 10  # of a socket operation: a caller who stalls holds a thread no longer
    protocol_version = "HTTP/1.0"
    server_version = sys_version = ""

    def do_GET(self) -> None:
        # a web page that had its name resolve to this machine must not read it
        host = self.headers.get("Host", "localhost").partition(":")[0]
        if self.path.partition("?")[0] != "/metrics" or host not in LOOPBACK_HOSTS:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        encode, kind = choose_encoder(self.headers.get("Accept", ""))
        body = encode(REGISTRY)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: scrapes are not news."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a scraper that hung up is not news either."""


class MetricsPort:
    """Serves while the block is open.

    Attributes:
        port: what it listens on, also when a free one was asked for.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, port: int) -> None:
        self._server = _Server(("127.0.0.1", port), _Handler)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
