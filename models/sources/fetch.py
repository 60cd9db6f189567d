"""Fetch a picture from an address that a stranger named, without becoming their hands in here.

The service fetches for its callers, the command line for manifests (`--allow-urls`). The name is
resolved once, every address it has must be public (`is_public`), and one of those very addresses is
dialled, so that no second look-up can answer differently; Host and the certificate's name stay the
caller's. http and https on their own ports only, no credentials, at
most three redirects each judged anew, no proxies from the environment, no cookies, no encodings,
and bounds on time and bytes that hold against a server that drips. What came is a picture by its
first bytes, whatever its headers say. Nothing here decodes.

After an address is judged by its text, every failure is one error with one message: whoever asks
learns nothing about what else is reachable from this machine.
"""

from __future__ import annotations

import http.client
import queue
import re
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address, ip_network
from time import monotonic
from typing import Final
from urllib.parse import urljoin

from models.errors import UrlError
from models.images.decode import is_picture

_REFUSED_V4: Final = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; 100.100.100.200 is a cloud's metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's platform address, on a public number
        "169.254.0.0/16",  # link-local; 169.254.169.254 is most clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",  # 192.0.0.192 is a cloud's metadata
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
_PUBLIC_V6: Final = ip_network("2000::/3")
_REFUSED_V6: Final = tuple(
    ip_network(text)
    for text in (
        "2001::/23",  # Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3ffe::/16",  # the old 6bone
        "3fff::/20",  # documentation
    )
)
_NAT64: Final = ip_network("64:ff9b::/96")
# ISATAP writes an IPv4 address into the interface id of any network
_ISATAP: Final = frozenset({0x00005EFE, 0x02005EFE})


def is_public(text: str) -> bool:
    """Whether an address, as text without a port, may be dialled for a stranger.

    Everybody's, and neither ours nor a neighbour's. Python's `ipaddress.is_global` changed between
    versions and knows nothing of tunnels, in which an address holds another one. So: it must agree,
    and the table above as well. IPv6 is let in by what it must be (2000::/3, the only part in
    public use) rather than by what it must not. Of the transition mechanisms only NAT64 is
    unwrapped, because networks without IPv4 need it; the others are refused whole: 6to4, Teredo,
    ISATAP, IPv4-mapped, -compatible and -translated addresses, local NAT64.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv4Address):
        return _is_public_v4(address)
    if address.scope_id is not None:
        return False
    if address in _NAT64:
        return _is_public_v4(IPv4Address(int(address) & 0xFFFFFFFF))
    return _is_public_v6(address)


def _is_public_v4(address: IPv4Address) -> bool:
    return address.is_global and not any(address in network for network in _REFUSED_V4)


def _is_public_v6(address: IPv6Address) -> bool:
    return (
        address.is_global
        and address in _PUBLIC_V6
        and not any(address in network for network in _REFUSED_V6)
        and (int(address) >> 32 & 0xFFFFFFFF) not in _ISATAP
    )


Resolver = Callable[[str, int], Sequence[str]]
Dialler = Callable[[str, int, float], socket.socket]

_MAX_URL = 2048
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?:#.*)?",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?=.{4,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9-]{2,63}")
# what a resolver would take for a number: the last label is one, in any base
_NUMBER = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)")
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Seconds for everything together, bytes of the body, redirects, fetches at one time."""

    seconds: float = 10.0
    max_bytes: int = 20 << 20
    redirects: int = 3
    at_once: int = 8


@dataclass(frozen=True, slots=True)
class Target:
    """An address in parts, judged by its text: `host` bare, `path` with the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """As in a Host header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_url(url: str, *, ports: frozenset[int] = frozenset(_PORTS.values())) -> Target:
    """Judge an address by its text.

    Stricter than any standard: printable ASCII, no user, no backslash, a dotted name or a plainly
    written IP address. A name of another script must come in its punycode form.

    Raises:
        UrlError: `url-not-allowed`.
    """
    if (
        len(url) > _MAX_URL
        or not url.isascii()
        or not url.isprintable()
        or set(url) & set(' \\"<>')
    ):
        raise _not_allowed()
    match = _URL.fullmatch(url)
    if match is None:
        raise _not_allowed()
    scheme = match["scheme"].lower()
    host, port = _authority(match["authority"].lower(), _PORTS[scheme])
    if port not in ports:
        raise _not_allowed()
    return Target(scheme, host, port, (match["path"] or "/") + (match["query"] or ""))


def _authority(authority: str, port: int) -> tuple[str, int]:
    host, colon, digits = authority.rpartition(":")
    if not colon or authority.endswith("]"):
        host, digits = authority, str(port)
    if not re.fullmatch(r"[1-9][0-9]{0,4}", digits):
        raise _not_allowed()
    if host.startswith("[") and host.endswith("]"):
        with suppress(AddressValueError):
            address = IPv6Address(host[1:-1])
            if address.scope_id is None:
                return str(address), int(digits)
        raise _not_allowed()
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        # 127.1, 0x7f.1, 2130706433, 0177.0.0.1 are addresses to a resolver: only the plain form
        with suppress(AddressValueError):
            return str(IPv4Address(host)), int(digits)
        raise _not_allowed()
    if not _NAME.fullmatch(host):
        raise _not_allowed()
    return host, int(digits)


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, A and AAAA, by the system's resolver. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def dial(address: str, port: int, timeout: float) -> socket.socket:
    """A TCP connection to an IP address; never a name. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


class Fetcher:
    """Fetches pictures; safe to call from many threads. See the module for what it refuses.

    Args:
        admits: whether an IP address may be dialled.
        resolver, dialler, ports, tls: for tests, and for callers who know a network of their own.
    """

    def __init__(
        self,
        limits: FetchLimits | None = None,
        *,
        admits: Callable[[str], bool] = is_public,
        resolver: Resolver = resolve,
        dialler: Dialler = dial,
        ports: frozenset[int] = frozenset(_PORTS.values()),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = limits or FetchLimits()
        self._admits = admits
        self._resolver = resolver
        self._dialler = dialler
        self._ports = ports
        self._tls = tls or ssl.create_default_context()
        self._slots = threading.BoundedSemaphore(self._limits.at_once)

    def fetch(self, url: str, *, within: float | None = None) -> bytes:
        """The bytes of a picture; `within` can shorten the seconds it may take.

        Raises:
            UrlError: `url-not-allowed` by the text of `url`; `url-fetch-failed` for all else.
        """
        target = parse_url(url, ports=self._ports)
        seconds = self._limits.seconds if within is None else min(within, self._limits.seconds)
        until = monotonic() + seconds
        if not self._slots.acquire(timeout=seconds):
            raise _failed()
        try:
            for _ in range(self._limits.redirects + 1):
                found = self._get(target, until)
                if isinstance(found, bytes):
                    return found
                target = found
        except (UrlError, OSError, ValueError, http.client.HTTPException):
            # a redirect's address is not the caller's text: its refusal says nothing either
            raise _failed() from None
        finally:
            self._slots.release()
        raise _failed()

    def _get(self, target: Target, until: float) -> bytes | Target:
        """One exchange: the picture, or where it is said to be."""
        sock = self._connect(target, until)
        # a timeout of the socket counts from one byte to the next; this one does not
        killer = sock.dup()
        watchdog = threading.Timer(max(0.0, until - monotonic()), _cut, [killer])
        watchdog.daemon = True
        watchdog.start()
        try:
            with closing(self._secured(sock, target)) as stream:
                found = self._exchange(stream, target)
            # a body without a length ends where the connection does, also where that was cut
            if monotonic() >= until:
                raise _failed()
            return found
        finally:
            watchdog.cancel()
            watchdog.join()
            killer.close()

    def _connect(self, target: Target, until: float) -> socket.socket:
        addresses = self._look_up(target, until)
        # one inside is enough to refuse all: it may be the one that answers next time
        if not addresses or not all(self._admits(address) for address in addresses):
            raise _failed()
        for address in addresses[:4]:
            left = until - monotonic()
            if left <= 0:
                break
            with suppress(OSError):
                return self._dialler(address, target.port, left)
        raise _failed()

    def _look_up(self, target: Target, until: float) -> Sequence[str]:
        """Resolve within the time: a resolver takes no timeout, so it gets a thread of its own."""
        with suppress(ValueError):
            return [str(IPv4Address(target.host))]
        with suppress(ValueError):
            return [str(IPv6Address(target.host))]
        answer: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answer.put(self._resolver(target.host, target.port))
            except (OSError, UnicodeError):
                answer.put(())

        threading.Thread(target=ask, name="resolve", daemon=True).start()
        try:
            return answer.get(timeout=max(0.001, until - monotonic()))
        except queue.Empty:
            return ()

    def _secured(self, sock: socket.socket, target: Target) -> socket.socket:
        try:
            if target.scheme == "https":
                return self._tls.wrap_socket(sock, server_hostname=target.host)
        except BaseException:
            sock.close()
            raise
        return sock

    def _exchange(self, stream: socket.socket, target: Target) -> bytes | Target:
        request = (
            f"GET {target.path} HTTP/1.1\r\nHost: {target.authority}\r\nUser-Agent: diptych\r\n"
            "Accept: image/*\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n"
        )
        stream.sendall(request.encode("ascii"))
        response = http.client.HTTPResponse(stream, method="GET")
        with closing(response):
            response.begin()
            if response.status in _REDIRECTS:
                return parse_url(
                    urljoin(target.url, response.headers.get("Location") or ""), ports=self._ports
                )
            encoding = response.headers.get("Content-Encoding", "identity")
            if response.status != 200 or encoding.strip().lower() != "identity":
                raise _failed()
            return self._body(response)

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        limit = self._limits.max_bytes
        expected = response.length  # None where the end is the connection's
        if expected is not None and expected > limit:
            raise _failed()
        body = bytearray()
        while chunk := response.read(_CHUNK):
            body += chunk
            if len(body) > limit:
                raise _failed()
        if expected is not None and len(body) != expected:
            raise _failed()
        if not is_picture(bytes(body[:64])):
            raise _failed()
        return bytes(body)


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _not_allowed() -> UrlError:
    return UrlError(
        "only http and https addresses on their own ports are fetched, written plainly and without "
        "a user",
        code="url-not-allowed",
    )


def _failed() -> UrlError:
    return UrlError("no picture could be fetched from the address")
