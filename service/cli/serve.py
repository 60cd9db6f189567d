"""`diptych serve`: one index or several over HTTP, with the page at `/`.

Whatever can fail does so before a model is loaded: the address, the port, every index.
"""

from __future__ import annotations

import logging
import re
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from models.errors import DiptychError
from service.cli.exits import OK
from service.cli.output import emit_json, json_option, model_options, note

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import uvicorn

    from indexer.snapshot import Snapshot
    from service.app import ServiceSettings
    from service.engine import Engine
    from service.label_set_store import LabelSetStore

_KEEP_ALIVE_S = 15
_DRAIN_S = 30
_NAMED = re.compile(r"(?P<name>[\w.-]{1,64})=(?P<path>.+)", re.DOTALL)


@click.command(
    epilog="\b\nExamples:\n  diptych serve --index photos.index\n"
    "  diptych serve --index photos.index --port 9000 --device cpu\n"
    "  diptych serve --index small=a.index --index large=b.index"
)
@click.option(
    "--index",
    "indexes",
    metavar="[NAME=]PATH",
    required=True,
    multiple=True,
    help="An index directory, as `diptych index build --out` made it; repeatable. Requests choose "
    "by NAME, the directory's name without .index unless given; the first answers the others.",
)
@click.option(
    "--label-sets",
    "label_sets",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where named label sets are kept. [default: PATH.label-sets beside the first index]",
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
    indexes: tuple[str, ...],
    label_sets: Path | None,
    host: str,
    port: int,
    insecure_public: bool,
    model: str | None,
    device: str,
    precision: str,
    threads: int | None,
    as_json: bool,
) -> int:
    """Serve indexes over HTTP, with a web page at / and documentation at /docs.

    Prints the address once it answers. Ctrl-C or SIGTERM lets running requests finish.
    """
    loopback = _is_loopback(host)
    if not loopback and not insecure_public:
        raise click.UsageError(
            f"{host} can be reached from other machines and there are no API keys yet; "
            "use 127.0.0.1, or --insecure-public behind a proxy of your own"
        )
    paths = _paths(indexes)
    listener = _listen(host, port)
    with listener, ExitStack() as closing:
        # without binding first: verifying the files is quick, loading a model is not
        snapshots = _open(paths, closing)
        store = _label_sets(label_sets, next(iter(paths.values())))
        engines = _engines(
            snapshots, store, model, device=device, precision=precision, threads=threads
        )
        for engine in engines:
            engine.warm_up()
        _run(engines, listener, loopback=loopback, as_json=as_json)
    return OK


def _paths(values: Sequence[str]) -> dict[str, Path]:
    """`[NAME=]PATH` options as paths by name, in order."""
    paths: dict[str, Path] = {}
    for value in values:
        named = _NAMED.fullmatch(value)
        # a directory's own name may hold an equals sign
        if named is not None and not Path(value).exists():
            name, path = named["name"], Path(named["path"])
        else:
            path = Path(value)
            name = path.resolve().name.removesuffix(".index") or "index"
        if name in paths:
            raise click.UsageError(
                f"two indexes would be named {name}; tell them apart with --index NAME=PATH"
            )
        paths[name] = path
    return paths


def _open(paths: dict[str, Path], closing: ExitStack) -> dict[str, Snapshot]:
    from indexer.snapshot import open_snapshot

    snapshots = {}
    for name, path in paths.items():
        try:
            snapshots[name] = closing.enter_context(open_snapshot(path, fingerprint=None))
        except DiptychError as error:
            error.message = f"index {name}: {error.message}"
            raise
    return snapshots


def _label_sets(directory: Path | None, index: Path) -> LabelSetStore:
    """The label sets, by default in a directory beside the index, which is never written to."""
    from service.label_set_store import LabelSetStore

    beside = index.resolve()
    return LabelSetStore(directory or beside.with_name(beside.name + ".label-sets"))


def _engines(
    snapshots: dict[str, Snapshot],
    label_sets: LabelSetStore,
    model: str | None,
    *,
    device: str,
    precision: str,
    threads: int | None,
) -> list[Engine]:
    """An engine per index; indexes of one encoder pair share it, and its place on the device."""
    from service.engine import Engine
    from service.serial import SerialEncoder

    loaded: dict[str, SerialEncoder] = {}
    engines = []
    for name, snapshot in snapshots.items():
        # with --model all share that one, and an index of another pair refuses it below
        key = model or snapshot.fingerprint.digest
        if key not in loaded:
            note(f"Loading {model or snapshot.fingerprint.model} ...")
            from models.registry import load_encoder

            loaded[key] = SerialEncoder(
                load_encoder(
                    model or snapshot.fingerprint.model,
                    device=device,
                    precision=precision,
                    threads=threads,
                )
            )
        try:
            engines.append(Engine(loaded[key], snapshot, name=name, label_sets=label_sets))
        except DiptychError as error:
            error.message = f"index {name}: {error.message}"
            raise
    return engines


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


def _run(
    engines: Sequence[Engine], listener: socket.socket, *, loopback: bool, as_json: bool
) -> None:
    import uvicorn

    from service.app import create_app
    from service.protocol import MAX_HEAD_BYTES, ProblemH11Protocol

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")  # stderr
    logging.getLogger("diptych").setLevel(logging.INFO)
    config = uvicorn.Config(
        create_app(engines, _settings(listener, loopback=loopback)),
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
        versions = {engine.name: engine.snapshot.version for engine in engines}
        if as_json:
            first = next(iter(versions.values()))
            emit_json({"url": url, "index_version": first, "indexes": versions, "ready": True})
        else:
            count = sum(engine.index_info().images for engine in engines)
            among = f" in {len(engines)} indexes" if len(engines) > 1 else ""
            click.echo(f"Serving {count} pictures{among} at {url}")

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
