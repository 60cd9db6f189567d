"""`diptych serve`: one index or several over HTTP, with the page at `/`.

Whatever can fail does so before a model is loaded: the address, the port, every index.
"""

from __future__ import annotations

import gc
import os
import re
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.cli.exits import OK
from service.cli.options import (
    FOLDER,
    NEW_FILE,
    ModelOptions,
    group,
    json_option,
    option,
    takes,
)
from service.cli.serve.engines import open_engines
from service.cli.serve.lifetime import OperatingOptions, serve_until_told

if TYPE_CHECKING:
    from service.engine.label_set_store import LabelSetStore
    from service.http.app import ServiceSettings

_NAMED = re.compile(r"(?P<name>[\w.-]{1,64})=(?P<path>.+)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeArguments:
    indexes: tuple[str, ...] = option(
        "--index",
        metavar="[NAME=]PATH",
        required=True,
        multiple=True,
        help="An index directory, as `diptych index build --out` made it; repeatable. Requests "
        "choose by NAME, the directory's name without .index unless given; the first answers the "
        "others.",
    )
    label_sets: Path | None = option(
        "--label-sets",
        type=FOLDER,
        help="Where named label sets are kept. [default: PATH.label-sets beside the first index]",
    )
    host: str = option(
        "--host", default="127.0.0.1", show_default=True, help="Address to listen on."
    )
    port: int = option(
        "--port",
        default=8000,
        show_default=True,
        type=click.IntRange(0, 65535),
        help="Port to listen on; 0 takes a free one.",
    )
    keys: Path | None = option(
        "--keys",
        metavar="FILE",
        type=NEW_FILE,
        help="Ask every caller for an API key of this file (`diptych keys new`). Changes of the "
        "file count within a second.",
    )
    insecure_public: bool = option(
        "--insecure-public",
        is_flag=True,
        help="Without --keys, allow an address other machines can reach: everyone who can reach "
        "the port can search.",
    )
    writable: bool = option(
        "--writable",
        is_flag=True,
        help="Let callers put and delete items; with --keys only those whose key has the scope "
        "write.",
    )
    allow_urls: bool = option(
        "--allow-urls",
        is_flag=True,
        help="Let callers name pictures by public http and https addresses, which this machine "
        "then fetches.",
    )
    cors_origins: tuple[str, ...] = option(
        "--cors-origin",
        metavar="ORIGIN",
        multiple=True,
        help="A web origin whose pages may call, such as https://photos.example; repeatable. "
        "[default: none]",
    )
    proxies: str | None = option(
        "--forwarded-allow-ips",
        metavar="ADDRESSES",
        help="Proxies whose X-Forwarded-For and -Proto are believed, comma-separated. "
        "[default: none]",
    )
    operating: OperatingOptions = group(OperatingOptions)
    pair: ModelOptions = group(ModelOptions)
    as_json: bool = json_option()


@click.command(
    epilog="\b\nExamples:\n  diptych serve --index photos.index\n"
    "  diptych serve --index photos.index --port 9000 --device cpu\n"
    "  diptych serve --index small=a.index --index large=b.index\n"
    "  diptych serve --index photos.index --host 0.0.0.0 --keys keys.json"
)
@takes(ServeArguments)
def serve(given: ServeArguments) -> int:
    """Serve indexes over HTTP, with a web page at / and documentation at /docs.

    Prints the address once it answers. A new version of an index is taken up without a restart.
    Ctrl-C or SIGTERM lets running requests finish; a second one does not.
    """
    loopback = _is_loopback(given.host)
    if not loopback and given.keys is None and not given.insecure_public:
        raise click.UsageError(
            f"{given.host} can be reached from other machines, and without --keys everyone there "
            "could search; make a key with: diptych keys new --file keys.json"
        )
    if given.writable and not loopback and given.keys is None:
        raise click.UsageError(
            f"{given.host} can be reached from other machines, and without --keys everyone there "
            "could change the index; make a key with: diptych keys new --file keys.json "
            "--scope read --scope write"
        )
    access = _access(given)
    _check_proxies(given.proxies)
    paths = _paths(given.indexes)
    if given.writable:
        _check_writable(paths)
    listener = _listen(given.host, given.port)
    with listener, ExitStack() as closing:
        store = _label_sets(given.label_sets, next(iter(paths.values())))
        engines = open_engines(paths, given.pair, store, closing, writable=given.writable)
        # what is loaded stays: a full collection that walks it all stops every request for 0.2 s
        gc.collect()
        gc.freeze()
        serve_until_told(
            engines,
            listener,
            f"http://{_url_host(listener)}:{listener.getsockname()[1]}",
            _settings(access, listener, loopback=loopback),
            given.operating,
            given.proxies,
            as_json=given.as_json,
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


def _label_sets(directory: Path | None, index: Path) -> LabelSetStore:
    """The label sets, by default in a directory beside the index, which is never written to."""
    from service.engine.label_set_store import LabelSetStore

    beside = index.resolve()
    return LabelSetStore(directory or beside.with_name(beside.name + ".label-sets"))


def _check_writable(paths: dict[str, Path]) -> None:
    for path in paths.values():
        if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
            raise click.UsageError(f"--writable, but {path} may not be written by this user")


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


def _access(given: ServeArguments) -> ServiceSettings:
    """Who may call and what for, checked before anything slow begins."""
    from models.sources.fetch import Fetcher
    from service.http.app import ServiceSettings
    from service.http.middleware.auth import Guard
    from service.http.middleware.cors import check_origin
    from service.http.middleware.keys import KeyFile

    origins = tuple(check_origin(origin) for origin in given.cors_origins)
    fetcher = Fetcher() if given.allow_urls else None
    if given.keys is None:
        return ServiceSettings(cors_origins=origins, fetcher=fetcher)
    guard = Guard.of(KeyFile(given.keys))
    if not len(guard.keys.ring()):
        raise click.UsageError(
            f"{given.keys} holds no key; make one with: diptych keys new --file {given.keys}"
        )
    return ServiceSettings(guard=guard, cors_origins=origins, fetcher=fetcher)


def _check_proxies(addresses: str | None) -> None:
    """A server that is given nonsense here believes nobody, silently."""
    import ipaddress

    for address in addresses.split(",") if addresses else ():
        try:
            ipaddress.ip_network(address.strip(), strict=False)
        except ValueError:
            raise click.UsageError(
                "--forwarded-allow-ips takes addresses or networks, such as 10.0.0.7 or 10.0.0.0/24"
            ) from None


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
