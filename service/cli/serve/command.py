"""`diptych serve`: one index or several over HTTP, with the page at `/`.

Whatever can fail does so before a model is loaded: the address, the port, every index.
"""

from __future__ import annotations

import gc
import os
import re
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.errors import DiptychError
from service.cli.exits import OK
from service.cli.output import json_option, model_options, note
from service.cli.serve.run import Operating, operating_options, run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from indexer.search.holder import SnapshotHolder
    from indexer.search.snapshot import Snapshot
    from service.engine.engine import Engine
    from service.engine.explanations import Decode
    from service.engine.item_writer import ItemWriter
    from service.engine.label_set_store import LabelSetStore
    from service.http.app import ServiceSettings

_STOP_S = 5.0  # of the batches still under way once no request is
_NAMED = re.compile(r"(?P<name>[\w.-]{1,64})=(?P<path>.+)", re.DOTALL)


@click.command(
    epilog="\b\nExamples:\n  diptych serve --index photos.index\n"
    "  diptych serve --index photos.index --port 9000 --device cpu\n"
    "  diptych serve --index small=a.index --index large=b.index\n"
    "  diptych serve --index photos.index --host 0.0.0.0 --keys keys.json"
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
    "--keys",
    "keys",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Ask every caller for an API key of this file (`diptych keys new`). Changes of the file "
    "count within a second.",
)
@click.option(
    "--insecure-public",
    is_flag=True,
    help="Without --keys, allow an address other machines can reach: everyone who can reach the "
    "port can search.",
)
@click.option(
    "--writable",
    is_flag=True,
    help="Let callers put and delete items; with --keys only those whose key has the scope write.",
)
@click.option(
    "--allow-urls",
    is_flag=True,
    help="Let callers name pictures by public http and https addresses, which this machine then "
    "fetches.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    metavar="ORIGIN",
    multiple=True,
    help="A web origin whose pages may call, such as https://photos.example; repeatable. "
    "[default: none]",
)
@click.option(
    "--forwarded-allow-ips",
    "proxies",
    metavar="ADDRESSES",
    help="Proxies whose X-Forwarded-For and -Proto are believed, comma-separated. [default: none]",
)
@operating_options
@model_options
@json_option
def serve(
    indexes: tuple[str, ...],
    label_sets: Path | None,
    host: str,
    port: int,
    keys: Path | None,
    insecure_public: bool,
    writable: bool,
    allow_urls: bool,
    cors_origins: tuple[str, ...],
    proxies: str | None,
    model: str | None,
    device: str,
    precision: str,
    threads: int | None,
    as_json: bool,
    **operating: Any,
) -> int:
    """Serve indexes over HTTP, with a web page at / and documentation at /docs.

    Prints the address once it answers. A new version of an index is taken up without a restart.
    Ctrl-C or SIGTERM lets running requests finish; a second one does not.
    """
    loopback = _is_loopback(host)
    if not loopback and keys is None and not insecure_public:
        raise click.UsageError(
            f"{host} can be reached from other machines, and without --keys everyone there could "
            "search; make a key with: diptych keys new --file keys.json"
        )
    if writable and not loopback and keys is None:
        raise click.UsageError(
            f"{host} can be reached from other machines, and without --keys everyone there could "
            "change the index; make a key with: diptych keys new --file keys.json "
            "--scope read --scope write"
        )
    access = _access(keys, cors_origins, allow_urls=allow_urls)
    proxies = _proxies(proxies)
    paths = _paths(indexes)
    if writable:
        _check_writable(paths)
    listener = _listen(host, port)
    with listener, ExitStack() as closing:
        # without binding first: verifying the files is quick, loading a model is not
        engines: dict[str, Engine] = {}
        holders = _open(paths, engines, closing)
        store = _label_sets(label_sets, next(iter(paths.values())))
        loading = _engines(
            holders, store, model, closing, device=device, precision=precision, threads=threads
        )
        for engine in loading:
            if writable:
                engine.writer = _writer(engine, paths[engine.name])
            engine.warm_up()  # here, where a failure becomes one line
            engines[engine.name] = engine
        # what is loaded stays: a full collection that walks it all stops every request for 0.2 s
        gc.collect()
        gc.freeze()
        settings = _settings(access, listener, loopback=loopback)
        url = f"http://{_url_host(listener)}:{listener.getsockname()[1]}"
        run(
            [*engines.values()],
            listener,
            url,
            settings,
            Operating(**operating),
            proxies,
            as_json=as_json,
        )
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


def _open(
    paths: dict[str, Path], engines: dict[str, Engine], closing: ExitStack
) -> dict[str, SnapshotHolder]:
    """The indexes; a version that comes later is tried out by its engine before it is used."""
    from indexer.search.holder import SnapshotHolder

    def trial(name: str) -> Callable[[Snapshot], None]:
        def try_out(snapshot: Snapshot) -> None:
            if name in engines:
                engines[name].try_out(snapshot)

        return try_out

    holders = {}
    for name, path in paths.items():
        try:
            holders[name] = closing.enter_context(
                SnapshotHolder(path, fingerprint=None, warm=trial(name))
            )
        except DiptychError as error:
            error.message = f"index {name}: {error.message}"
            raise
    return holders


def _label_sets(directory: Path | None, index: Path) -> LabelSetStore:
    """The label sets, by default in a directory beside the index, which is never written to."""
    from service.engine.label_set_store import LabelSetStore

    beside = index.resolve()
    return LabelSetStore(directory or beside.with_name(beside.name + ".label-sets"))


def _engines(
    holders: dict[str, SnapshotHolder],
    label_sets: LabelSetStore,
    model: str | None,
    closing: ExitStack,
    *,
    device: str,
    precision: str,
    threads: int | None,
) -> list[Engine]:
    """An engine per index; indexes of one encoder pair share it, and its batches."""
    from service.engine.engine import Engine
    from service.engine.retrieval import BatchedSearch
    from service.engine.shared_encoder import BatchingEncoder

    decode = _decoders(closing)
    searches = BatchedSearch()
    closing.callback(searches.stop, _STOP_S)
    loaded: dict[str, BatchingEncoder] = {}
    engines = []
    for name, holder in holders.items():
        with holder.use() as snapshot:
            built_with = snapshot.fingerprint
        # with --model all share that one, and an index of another pair refuses it below
        key = model or built_with.digest
        if key not in loaded:
            note(f"Loading {model or built_with.model} ...")
            from models.encoders.registry import load_encoder

            loaded[key] = BatchingEncoder(
                load_encoder(
                    model or built_with.model,
                    device=device,
                    precision=precision,
                    threads=threads,
                )
            )
            closing.callback(loaded[key].stop, _STOP_S)
        try:
            engines.append(
                Engine(
                    loaded[key],
                    holder,
                    name=name,
                    label_sets=label_sets,
                    searches=searches,
                    decode=decode,
                )
            )
        except DiptychError as error:
            error.message = f"index {name}: {error.message}"
            raise
    return engines


def _decoders(closing: ExitStack) -> Decode:
    """Processes that decode callers' pictures; their pixels never enter through this one."""
    from models.images.pool import DecodePool
    from service.engine import deadline
    from service.operations import metrics

    pool = closing.enter_context(
        DecodePool(
            min(4, os.cpu_count() or 1),
            on_restart=lambda reason: metrics.DECODE_RESTARTS.labels(reason).inc(),
        )
    )
    return lambda data: pool.decode(data, wait_s=deadline.left())


def _check_writable(paths: dict[str, Path]) -> None:
    import os

    for path in paths.values():
        if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
            raise click.UsageError(f"--writable, but {path} may not be written by this user")


def _writer(engine: Engine, path: Path) -> ItemWriter:
    from indexer.ingest.options import BuildOptions
    from indexer.maintain.edit import Editor
    from service.engine.item_writer import ItemWriter

    assert engine.holder is not None, "what is served from a directory has one"
    # an index that was built without a background goes on without
    editor = Editor(path, engine.encoder, options=BuildOptions(relevance=False))
    return ItemWriter(editor, engine.holder, engine.name)


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


def _access(
    keys: Path | None, cors_origins: tuple[str, ...], *, allow_urls: bool
) -> ServiceSettings:
    """Who may call and what for, checked before anything slow begins."""
    from models.sources.fetch import Fetcher
    from service.http.app import ServiceSettings
    from service.http.middleware.auth import Guard
    from service.http.middleware.cors import check_origin
    from service.http.middleware.keys import KeyFile

    origins = tuple(check_origin(origin) for origin in cors_origins)
    fetcher = Fetcher() if allow_urls else None
    if keys is None:
        return ServiceSettings(cors_origins=origins, fetcher=fetcher)
    guard = Guard.of(KeyFile(keys))
    if not len(guard.keys.ring()):
        raise click.UsageError(
            f"{keys} holds no key; make one with: diptych keys new --file {keys}"
        )
    return ServiceSettings(guard=guard, cors_origins=origins, fetcher=fetcher)


def _proxies(addresses: str | None) -> str | None:
    """The addresses, checked: a server that is given nonsense here believes nobody, silently."""
    import ipaddress

    for address in addresses.split(",") if addresses else ():
        try:
            ipaddress.ip_network(address.strip(), strict=False)
        except ValueError:
            raise click.UsageError(
                "--forwarded-allow-ips takes addresses or networks, such as 10.0.0.7 or 10.0.0.0/24"
            ) from None
    return addresses


def _settings(
    access: ServiceSettings, listener: socket.socket, *, loopback: bool
) -> ServiceSettings:
    from dataclasses import replace

    from service.http.middleware.limits import LOOPBACK_HOSTS, RequestLimits

    if not loopback:
        return access
    own = _url_host(listener)
    return replace(access, limits=RequestLimits(hosts=LOOPBACK_HOSTS | {own}))


def _url_host(listener: socket.socket) -> str:
    name = str(listener.getsockname()[0])
    return f"[{name}]" if ":" in name else name
