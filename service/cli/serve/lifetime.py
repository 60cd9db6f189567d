"""A server's lifetime, once `serve.startup` has all loaded: logs, metrics, serving, its end."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from service.cli.options import option
from service.cli.output import emit_json, note

if TYPE_CHECKING:
    import socket

    from service.engine.engine import Engine
    from service.http.app import ServiceSettings
    from service.http.loading import LoadingAnswers

_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingOptions:
    """What an operator may choose beside what is served and to whom."""

    metrics_port: int | None = option(
        "--metrics-port",
        metavar="PORT",
        type=click.IntRange(0, 65535),
        help="Serve /metrics for Prometheus on this port of the loopback address, and nothing "
        "else; 0 takes a free one. [default: off]",
    )
    timeout_s: float = option(
        "--timeout",
        metavar="SECONDS",
        default=2.0,
        show_default=True,
        type=click.FloatRange(0.05, 120),
        help="Time allowed to a search, unless it asks for another with X-Request-Timeout. "
        "When waiting alone would take half of it, requests are refused with 429.",
    )
    drain_s: float = option(
        "--drain",
        metavar="SECONDS",
        default=30.0,
        show_default=True,
        type=click.FloatRange(0, 3600),
        help="Time to finish what has begun after SIGTERM or Ctrl-C; a second one stops at once.",
    )
    connections: int = option(
        "--connections",
        metavar="N",
        default=4096,
        show_default=True,
        type=click.IntRange(1, 60_000),
        help="Connections open at once, as far as the limit of open files allows.",
    )
    poll_s: float = option(
        "--poll",
        metavar="SECONDS",
        default=1.0,
        show_default=True,
        type=click.FloatRange(0, 3600),
        help="How often to look for a new version of each index; it is taken up without a "
        "restart. 0 for never.",
    )
    log_format: str = option(
        "--log-format",
        default="text",
        show_default=True,
        type=click.Choice(["text", "json"]),
        help="A line for people, or one JSON object a line; to stderr. No query is logged.",
    )
    log_level: str = option(
        "--log-level", default="info", show_default=True, type=click.Choice(_LEVELS)
    )

    def log_to_stderr(self) -> None:
        from service.operations.logs import TEXT_FORMAT, JsonFormatter

        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(
            JsonFormatter() if self.log_format == "json" else logging.Formatter(TEXT_FORMAT)
        )
        logging.basicConfig(handlers=[handler], force=True)
        logging.getLogger("diptych").setLevel(self.log_level.upper())
        # its warnings are of what callers send, which is answered and counted
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)

    def tell(self, line: str) -> None:
        """Say what is waited for, as the log is read."""
        if self.log_format == "json":
            logging.getLogger("diptych.service").info(line)
        else:
            note(line)


def serve_until_told(
    engines: Sequence[Engine],
    listener: socket.socket,
    url: str,
    settings: ServiceSettings,
    operating: OperatingOptions,
    proxies: str | None,
    loading: LoadingAnswers,
    *,
    as_json: bool,
) -> None:
    """Serve until told to stop; until the application is there, `loading` answers."""
    from dataclasses import replace

    from service.http.app import create_app
    from service.http.middleware.lanes import AdmissionLimits
    from service.http.protocol import ConnectionLimits
    from service.http.server import Server, ServerSettings

    settings = replace(
        settings,
        admission=AdmissionLimits(timeout_s=operating.timeout_s),
        poll_s=operating.poll_s,
    )
    with ExitStack() as stack:
        metrics_url = _metrics(operating.metrics_port, stack)

        def announce() -> None:
            counts = {}
            for engine in engines:
                with engine.pin() as pinned:
                    info = pinned.index_info()
                counts[engine.name] = (info.version, info.images)
            versions = {name: version for name, (version, _) in counts.items()}
            if as_json:
                first = next(iter(versions.values()))
                more = {} if metrics_url is None else {"metrics_url": metrics_url}
                emit_json(
                    {"url": url, "index_version": first, "indexes": versions, "ready": True, **more}
                )
                return
            pictures = sum(images for _, images in counts.values())
            among = f" in {len(engines)} indexes" if len(engines) > 1 else ""
            click.echo(f"Serving {pictures} pictures{among} at {url}")
            if metrics_url is not None:
                click.echo(f"Metrics at {metrics_url}")

        server = Server(
            create_app(engines, settings),
            ServerSettings(
                connections=ConnectionLimits(connections=operating.connections),
                drain_s=operating.drain_s,
                proxies=proxies,
            ),
            announce,
        )
        loading.stop()
        server.run(sockets=[listener])
    if server.abandoned:
        # threads that nothing can interrupt would keep the process for as long as they like
        sys.stderr.flush()
        os._exit(1)


def _metrics(port: int | None, stack: ExitStack) -> str | None:
    from service.http.metrics_port import MetricsPort

    if port is None:
        return None
    try:
        served = stack.enter_context(MetricsPort(port))
    except OSError as error:
        raise click.UsageError(f"cannot serve metrics on port {port}: {error.strerror}") from None
    return f"http://127.0.0.1:{served.port}/metrics"
