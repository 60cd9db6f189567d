"""Fetching over real sockets from a server in this process, reached through an injected resolver.

The names and addresses are made up; the dialler connects each to the server's own port.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

import pytest
from fakes import solid

from models.errors import UrlError
from models.sources.fetch import Fetcher, FetchLimits, dial

PICTURE = solid("red")
PUBLIC = "1.1.1.1"
Reply = bytes | Callable[[socket.socket], None]


def answer(status: str = "200 OK", body: bytes = PICTURE, **headers: object) -> bytes:
    named = {"Content-Length": len(body), **{k.replace("_", "-"): v for k, v in headers.items()}}
    lines = [f"HTTP/1.1 {status}", *(f"{k}: {v}" for k, v in named.items() if v is not None)]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Server:
    """Answers each connection with the next reply; keeps what it was asked."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.replies: list[Reply] = []
        self.requests: list[str] = []
        self.dialled: list[tuple[str, int]] = []
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.settimeout(10)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection:
                asked = b""
                while b"\r\n\r\n" not in asked and (data := connection.recv(65536)):
                    asked += data
                self.requests.append(asked.decode())
                reply = self.replies.pop(0) if self.replies else answer("404 Not Found")
                if callable(reply):
                    reply(connection)
                else:
                    connection.sendall(reply)

    def dial(self, address: str, port: int, timeout: float) -> socket.socket:
        self.dialled.append((address, port))
        return dial("127.0.0.1", self._listener.getsockname()[1], timeout)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(20)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


NAMES = {
    "a.example": [PUBLIC],
    "b.example": ["9.9.9.9", "2606:4700::1"],
    "in.example": ["10.0.0.7"],
}


def fetcher(server: Server, seconds: float = 5.0, **more: Any) -> Fetcher:
    def look_up(host: str, port: int) -> list[str]:
        if host not in NAMES:
            raise socket.gaierror("no such name")
        return NAMES[host]

    limits = more.pop("limits", FetchLimits(seconds=seconds, max_bytes=1 << 20))
    return Fetcher(limits, resolver=more.pop("resolver", look_up), dialler=server.dial, **more)


def fails(fetcher: Fetcher, url: str = "http://a.example/x.png") -> None:
    with pytest.raises(UrlError) as failed:
        fetcher.fetch(url)
    assert failed.value.code == "url-fetch-failed"
    assert failed.value.message == "no picture could be fetched from the address"
    hidden = failed.value.__suppress_context__ or failed.value.__context__ is None
    assert hidden, "what happened stays in here"


def test_a_picture_is_fetched_from_the_checked_address(server: Server) -> None:
    server.replies = [answer()]
    assert fetcher(server).fetch("http://a.example/x.png?y=1#z") == PICTURE
    assert server.dialled == [(PUBLIC, 80)]
    (asked,) = server.requests
    head, *headers = asked.strip().split("\r\n")
    assert head == "GET /x.png?y=1 HTTP/1.1"
    assert dict(line.split(": ", 1) for line in headers) == {
        "Host": "a.example", "User-Agent": "diptych", "Accept": "image/*",
        "Accept-Encoding": "identity", "Connection": "close",
    }  # fmt: skip


def test_a_name_is_resolved_once(server: Server) -> None:
    """Between two look-ups it could come to mean another machine."""
    answers = [[PUBLIC], ["127.0.0.1"]]
    server.replies = [answer()]
    rebinding = fetcher(server, resolver=lambda host, port: answers.pop(0))
    assert rebinding.fetch("http://a.example/") == PICTURE
    assert server.dialled == [(PUBLIC, 80)]
    assert answers == [["127.0.0.1"]]
    fails(rebinding)
    assert len(server.dialled) == 1, "nothing was dialled"


def test_the_next_address_is_tried(server: Server) -> None:
    server.replies = [answer()]
    tried: list[str] = []

    def first_is_down(address: str, port: int, timeout: float) -> socket.socket:
        tried.append(address)
        if len(tried) == 1:
            raise ConnectionRefusedError
        return server.dial(address, port, timeout)

    both = Fetcher(resolver=lambda *_: NAMES["b.example"], dialler=first_is_down)
    assert both.fetch("http://b.example/") == PICTURE
    assert tried == NAMES["b.example"]


def test_the_environment_names_no_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.replies = [answer()]
    assert fetcher(server).fetch("http://a.example/") == PICTURE


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
def test_redirects_are_followed_without_cookies(server: Server, status: str) -> None:
    hop = answer(status, b"", Location="http://b.example/new.png?x", Set_Cookie="a=b")
    server.replies = [hop, answer()]
    assert fetcher(server).fetch("http://a.example/old") == PICTURE
    assert server.dialled == [(PUBLIC, 80), ("9.9.9.9", 80)]
    assert "GET /new.png?x" in server.requests[1]
    assert "Host: b.example" in server.requests[1]
    assert not any(word in server.requests[1].lower() for word in ("cookie", "referer"))


def test_a_relative_redirect(server: Server) -> None:
    server.replies = [answer("302 F", b"", Location="../c.png"), answer()]
    assert fetcher(server).fetch("http://a.example/x/y/z") == PICTURE
    assert server.requests[1].startswith("GET /x/c.png ")


@pytest.mark.parametrize(
    "location",
    ["http://in.example/", "//169.254.169.254/latest", "http://127.0.0.1/", "file:///etc/passwd",
     "http://[::1]/", "http://b.example:22/", "ftp://b.example/", "http://user@b.example/",
     "http://unknown.example/", "http://localhost/", "\\\\in.example\\x", "http://b.example/é"],
)  # fmt: skip
def test_a_redirect_is_judged_like_the_first_address(server: Server, location: str) -> None:
    server.replies = [answer("302 Found", b"", Location=location)]
    fails(fetcher(server))
    assert server.dialled == [(PUBLIC, 80)], "and nothing else was dialled"


def test_redirects_end(server: Server) -> None:
    round_trip = answer("301 M", b"", Location="http://a.example/x.png")
    server.replies = [round_trip] * 20
    fails(fetcher(server))
    assert len(server.dialled) == 4, "the first, and three more"
    server.replies = [round_trip] * 3 + [answer()]
    assert fetcher(server).fetch("http://a.example/") == PICTURE
    server.replies = [answer("302 Found", b"")] * 9
    fails(fetcher(server))


HUGE = b"HTTP/1.1 200 OK\r\n"
BAD: dict[str, Reply] = {
    "404": answer("404 Not Found"),
    "401": answer("401 U", WWW_Authenticate="Basic"),
    "500": answer("500 Oops"),
    "204": answer("204 No Content", b""),
    "206": answer("206 Partial Content"),
    "304": answer("304 Not Modified", b""),
    "an error page as 200": answer(body=b"<html>root:x:0:0</html>", Content_Type="image/png"),
    "secrets as a picture": answer(body=b'{"AccessKeyId": "x"}', Content_Type="image/png"),
    "svg": answer(body=b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "empty": answer(body=b""),
    "gzip": answer(Content_Encoding="gzip"),
    "br": answer(Content_Encoding="br"),
    "shorter than it says": answer(Content_Length=len(PICTURE) + 10),
    "a length over the limit": answer(Content_Length=1 << 40),
    "a body over the limit": answer(body=PICTURE + bytes(1 << 20), Content_Length=None),
    "not HTTP": b"220 mail.example ESMTP\r\n",
    "HTTP/0.9": PICTURE,
    "nothing": b"",
    "half a status": b"HTTP/1.1 2",
    "a huge header": HUGE + b"X: " + b"x" * 200_000 + b"\r\n\r\n" + PICTURE,
    "many headers": HUGE + b"X: y\r\n" * 5_000 + b"\r\n" + PICTURE,
    "broken chunks": HUGE + b"Transfer-Encoding: chunked\r\n\r\nffff\r\nabc",
    "chunks of nonsense": HUGE + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
    "an endless chunk size": HUGE + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 100_000,
    "a reset": lambda connection: connection.close(),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_fails_in_the_same_words(server: Server, name: str) -> None:
    server.replies = [BAD[name]]
    fails(fetcher(server))


def test_chunks_and_an_open_end_are_read(server: Server) -> None:
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(PICTURE), PICTURE)
    server.replies = [HUGE + chunked, HUGE + b"\r\n" + PICTURE]
    assert fetcher(server).fetch("http://a.example/") == PICTURE
    assert fetcher(server).fetch("http://a.example/") == PICTURE


def drip(data: bytes, every: float) -> Callable[[socket.socket], None]:
    def send(connection: socket.socket) -> None:
        for byte in data:
            connection.sendall(bytes([byte]))
            sleep(every)

    return send


SLOW: dict[str, Reply] = {
    "silence": lambda connection: sleep(1.5),
    "dripping headers": drip(b"HTTP/1.1 200 OK\r\n" + b"X-Y: z\r\n" * 50, 0.05),
    "a dripping body": drip(HUGE + b"\r\n" + PICTURE, 0.05),
    "endless 100s": drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 50, 0.003),
}


@pytest.mark.parametrize("name", SLOW)
def test_the_time_is_for_everything_together(server: Server, name: str) -> None:
    server.replies = [SLOW[name]]
    began = monotonic()
    fails(fetcher(server, seconds=0.6))
    # far below what the server would take; a loaded machine may be late
    assert monotonic() - began < 3.5


def test_a_slow_resolver_does_not_hold(server: Server) -> None:
    def slow(host: str, port: int) -> list[str]:
        sleep(2)
        return [PUBLIC]

    fails(fetcher(server, seconds=0.3, resolver=slow))
    assert server.dialled == []


def test_so_many_at_once(server: Server) -> None:
    release = threading.Event()

    def hold(connection: socket.socket) -> None:
        release.wait(10)
        connection.sendall(answer())

    server.replies = [hold, hold]
    two = fetcher(server, limits=FetchLimits(seconds=8, at_once=2))
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(two.fetch("http://a.example/")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    while len(server.requests) < 2:
        sleep(0.01)
    assert not two._slots.acquire(blocking=False), "a third would wait"
    release.set()
    for thread in threads:
        thread.join(10)
    assert found == [PICTURE] * 2
    assert two._slots.acquire(blocking=False), "the places are given back"


def test_certificates_are_checked_for_the_name_asked(server: Server) -> None:
    trustme = pytest.importorskip("trustme")
    authority, stranger = trustme.CA(), trustme.CA()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    for issuer, name, good in (
        (authority, "a.example", True),
        (authority, "b.example", False),
        (stranger, "a.example", False),
    ):
        serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        issuer.issue_cert(name).configure_cert(serving)
        secure = Server(serving)
        secure.replies = [answer()]
        try:
            if good:
                assert fetcher(secure, tls=trust).fetch("https://a.example/x") == PICTURE
                assert secure.dialled == [(PUBLIC, 443)]
            else:
                fails(fetcher(secure, tls=trust), "https://a.example/x")
                assert secure.requests == [], "nothing was asked of the wrong machine"
        finally:
            secure.close()


def test_the_real_thing_refuses_this_machine(server: Server) -> None:
    """Without injected parts, against a server that would answer."""
    port = server._listener.getsockname()[1]
    server.replies = [answer()]
    plain = Fetcher(ports=frozenset({port}))
    for host in ("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"):
        fails(plain, f"http://{host}:{port}/")
    assert server.requests == []
    allowed = Fetcher(ports=frozenset({port}), admits=lambda address: address == "127.0.0.1")
    assert allowed.fetch(f"http://127.0.0.1:{port}/") == PICTURE, "the same server does answer"
