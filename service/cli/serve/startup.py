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
    KeepingOptions,
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
    from service.engine.queries import FilePaths
    from service.http.app import ServiceSettings


class _Indexes(click.types.StringParamType):
    """`[NAME=]PATH`; in a variable, several as in PATH."""

    envvar_list_splitter = os.pathsep


_NAMED = re.compile(r"(?P<name>[\w.-]{1,64})=(?P<path>.+)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeArguments:
    indexes: tuple[str, ...] = option(
        "--index",
        metavar="[NAME=]PATH",
        type=_Indexes(),
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
    keeping: KeepingOptions = group(KeepingOptions)
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
        help="Proxies whose X-Forwarded-For, -Proto and -Prefix are believed, comma-separated. "
        "[default: none]",
    )
    allowed_hosts: tuple[str, ...] = option(
        "--allowed-host",
        metavar="NAME",
        multiple=True,
        help="A Host name to answer to beside this machine's own, as a proxy passes it on, such as "
        "photos.example; * for any; repeatable. [default: any, but without --keys a loopback "
        "address answers to its own names only]",
    )
    root_path: str = option(
        "--root-path",
        metavar="PATH",
        default="",
        help="The path a proxy serves this under, such as /photos, passed on or taken off. "
        "[default: none, or X-Forwarded-Prefix of a proxy that is believed]",
    )
    file_paths: str | None = option(
        "--file-paths",
        metavar="full|none|FOLDER",
        help="What callers are told of where pictures lie on this machine: all, nothing, or paths "
        "relative to FOLDER and nothing of files elsewhere. [default: full where only programs of "
        "this machine can call, without keys and proxies; otherwise none]",
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
@takes(ServeArguments, environment="DIPTYCH", but=("model",))
def serve(given: ServeArguments) -> int:
    """Serve indexes over HTTP, with a web page at / and documentation at /docs.

    Prints the address once it answers. A new version of an index is taken up without a restart.
    Ctrl-C or SIGTERM lets running requests finish; a second one does not. While models load,
    /healthz says yes and all else 503. Options may stand in the environment, several values
    separated by spaces, indexes by colons.
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
    if given.keeping.asked and not given.writable:
        raise click.UsageError("--keep, --keep-days and --keep-size need --writable")
    access = _access(given)
    _check_proxies(given.proxies)
    paths = _paths(given.indexes)
    if given.writable:
        _check_writable(paths)
    listener = _listen(given.host, given.port)
    from service.http.loading import LoadingAnswers

    settings = _settings(given, access, listener, loopback=loopback)
    given.operating.log_to_stderr()
    with listener, ExitStack() as closing:
        loading = closing.enter_context(LoadingAnswers(listener, settings.limits))
        store = _label_sets(given.label_sets, next(iter(paths.values())))
        engines = open_engines(
            paths,
            given.pair,
            store,
            closing,
            writable=given.keeping.value() if given.writable else None,
            file_paths=_file_paths(given, loopback=loopback),
            tell=given.operating.tell,
        )
        # what is loaded stays: a full collection that walks it all stops every request for 0.2 s
        gc.collect()
        gc.freeze()
        # or libraries report what was never collected as leaks of theirs, on the way out
        closing.callback(gc.unfreeze)
        serve_until_told(
            engines,
            listener,
            f"http://{_url_host(listener)}:{listener.getsockname()[1]}",
            settings,
            given.operating,
            given.proxies,
            loading,
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
    given: ServeArguments, access: ServiceSettings, listener: socket.socket, *, loopback: bool
) -> ServiceSettings:
    from dataclasses import replace

    from service.http.middleware.limits import LOOPBACK_HOSTS, RequestLimits
    from service.http.middleware.prefix import check_prefix

    try:
        root_path = check_prefix(given.root_path)
    except ValueError as error:
        raise click.UsageError(f"--root-path: {error}") from None
    hosts: frozenset[str] | None = None
    # a page from elsewhere that reaches a loopback address by DNS rebinding has no key
    if given.allowed_hosts or (loopback and given.keys is None):
        named = _hosts(given.allowed_hosts)
        hosts = None if "*" in named else LOOPBACK_HOSTS | {_url_host(listener)} | named
    return replace(access, limits=RequestLimits(hosts=hosts), root_path=root_path)


def _file_paths(given: ServeArguments, *, loopback: bool) -> FilePaths:
    """Who can only call from this machine could list its folders; all others need not know them."""
    from service.engine.queries import FilePaths

    proxied = bool(given.proxies or given.allowed_hosts or given.root_path)
    here = loopback and given.keys is None and not proxied
    wanted = given.file_paths or ("full" if here else "none")
    if wanted in ("full", "none"):
        return FilePaths(everything=wanted == "full")
    return FilePaths.below(Path(wanted))


def _hosts(names: Sequence[str]) -> frozenset[str]:
    from service.http.middleware.limits import host_name

    for name in names:
        if name != "*" and host_name(name) != name.lower():
            raise click.UsageError(
                f"--allowed-host takes a name such as photos.example, without a port, not {name}"
            )
    return frozenset(name.lower() for name in names)


def _url_host(listener: socket.socket) -> str:
    name = str(listener.getsockname()[0])
    return f"[{name}]" if ":" in name else name
