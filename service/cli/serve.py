"""`diptych serve`: an index over HTTP, with the page at `/`.

Whatever can fail does so before the model is loaded: the address, the port, the index.
"""

from __future__ import annotations

import logging
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.cli.exits import OK
from service.cli.output import emit_json, json_option, model_options, note

if TYPE_CHECKING:
    from collections.abc import Callable

    import uvicorn

    from service.app import ServiceSettings
    from service.engine import Engine

_KEEP_ALIVE_S = 15
_DRAIN_S = 30


@click.command(
    epilog="\b\nExamples:\n  diptych serve --index photos.index\n"
    "  diptych serve --index photos.index --port 9000 --device cpu"
)
@click.option(
    "--index",
    "index_dir",
    required=True,
    type=click.Path(path_type=Path),
    help="The index directory, as `diptych index build --out` made it.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--insecure-public",
    is_flag=True,
    help="Allow an address other machines can reach. There are no API keys yet: everyone who can "
    "reach the port can search, so put a proxy with authentication in front.",
)
@model_options
@json_option
def serve(
    index_dir: Path,
    host: str,
    port: int,
    insecure_public: bool,
    model: str | None,
    device: str,
    precision: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Serve an index over HTTP, with a web page at / and documentation at /docs.

    Prints the address once it answers. Ctrl-C or SIGTERM lets running requests finish.
    """
    loopback = _is_loopback(host)
    if not loopback and not insecure_public:
        raise click.UsageError(
            f"{host} can be reached from other machines and there are no API keys yet; "
            "use 127.0.0.1, or --insecure-public behind a proxy of your own"
        )
    listener = _listen(host, port)
    with listener:
        from indexer.snapshot import open_snapshot
        from service.engine import Engine

        # without binding first: verifying the files is quick, loading a model is not
        with open_snapshot(index_dir, fingerprint=None) as snapshot:
            note(f"Loading {model or snapshot.fingerprint.model} ...")
            from models.registry import load_encoder

            encoder = load_encoder(
                model or snapshot.fingerprint.model,
                device=device,
                precision=precision,
                threads=threads,
            )
            engine = Engine(encoder, snapshot)
            engine.warm_up()
            _run(engine, listener, loopback=loopback, as_json=as_json)
    return OK


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address; a name must resolve to loopback only."""
    import ipaddress

    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        raise click.UsageError(f"{host} is not an address of this machine") from None
    return all(ipaddress.ip_address(str(address).split("%")[0]).is_loopback for address in found)


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a busy port is known before anything slow begins."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        # listening at once, or two servers could bind the same port
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise click.UsageError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return listener


def _settings(listener: socket.socket, *, loopback: bool) -> ServiceSettings:
    from service.app import ServiceSettings
    from service.limits import LOOPBACK_HOSTS, RequestLimits

    if not loopback:
        return ServiceSettings()
    own = _url_host(listener)
    return ServiceSettings(limits=RequestLimits(hosts=LOOPBACK_HOSTS | {own}))


def _url_host(listener: socket.socket) -> str:
    name = str(listener.getsockname()[0])
    return f"[{name}]" if ":" in name else name


def _run(engine: Engine, listener: socket.socket, *, loopback: bool, as_json: bool) -> None:
    import uvicorn

    from service.app import create_app
    from service.protocol import MAX_HEAD_BYTES, ProblemH11Protocol

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")  # stderr
    logging.getLogger("diptych").setLevel(logging.INFO)
    config = uvicorn.Config(
        create_app(engine, _settings(listener, loopback=loopback)),
        http=ProblemH11Protocol,
        ws="none",
        lifespan="on",
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_DRAIN_S,
        server_header=False,
        proxy_headers=False,
        # uvicorn's access log holds query strings; ours holds route templates
        access_log=False,
        log_config=None,
    )
    url = f"http://{_url_host(listener)}:{listener.getsockname()[1]}"

    def announce() -> None:
        if as_json:
            emit_json({"url": url, "index_version": engine.snapshot.version, "ready": True})
        else:
            click.echo(f"Serving {engine.index_info().images} pictures at {url}")

    # uvicorn raises the signal again once it has drained; a clean stop is not a failure
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _server(config, announce).run(sockets=[listener])


def _server(config: uvicorn.Config, announce: Callable[[], None]) -> uvicorn.Server:
    import uvicorn

    class AnnouncingServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                announce()

    return AnnouncingServer(config)
