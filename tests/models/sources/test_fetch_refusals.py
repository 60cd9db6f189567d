"""Which addresses are refused, by their text and by what they resolve to. Nothing is dialled.

The dialler is the assertion: what reaches it would have been connected to.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

import pytest

from models.errors import UrlError
from models.sources.fetch import Fetcher, is_public, parse_url, resolve

# by the text alone; every one is `url-not-allowed`
_BY_TEXT = """
file:///etc/passwd file://localhost/etc/passwd ftp://a.example/x gopher://a.example:70/_x
data:image/png;base64,AAAA pipe:cat s3://bucket/key jar:http://a.example!/x javascript:alert(1)
dict://a.example:11211/ ldap://a.example/ sftp://a.example/x tftp://a.example/x unix:///run/x.sock
netdoc:///etc/passwd phar://x expect://id php://input ws://a.example/ wss://a.example/ blob:x
about:blank http http: http:/ http:// http:///x https:///x http://?x http://#x http:a.example
http:/a.example //a.example/x /etc/passwd a.example www.a.example/x.png httpss://a.example
http+unix://a.example/ http://user@a.example/ http://user:pass@a.example/ http://:@a.example/
http://@a.example/ http://a.example@127.0.0.1/ http://127.0.0.1@a.example/
http://a.example:80@127.0.0.1/ http://a.example%40127.0.0.1/ http://a.example\\@127.0.0.1/
http://a.example\\.evil.example/ http:\\\\a.example/ http://a.example:22/ http://a.example:25/
http://a.example:6379/ http://a.example:0/ http://a.example:65536/ http://a.example:8080/
https://a.example:8443/ http://a.example:99999/ http://a.example:-1/ http://a.example:+80/
http://a.example:080/ http://a.example:80:80/ http://a.example:/ http://a.example:0x50/
http://a.example:8e1/ http://127.1/ http://127.0.1/ http://0/ http://2130706433/
http://0x7f000001/ http://0x7f.1/ http://0x7f.0.0.1/ http://0177.0.0.1/ http://00000177.0.0.1/
http://127.0.0.01/ http://127.0.0.1./ http://127.0.0.0x1/ http://017700000001/ http://0x/
http://1.2.3/ http://1.2.3.4.5/ http://256.1.1.1/ http://1.1.1.256/ http://127.0.0.1.0x7f/
http://a.example.0x1/ http://a.example.1/ http://4294967296/ http://1e100/ http://[/ http://]/
http://[]/ http://[::1/ http://::1/ http://[::1]x/ http://[g::1]/ http://[::1]:x/
http://[fe80::1%25eth0]/ http://[fe80::1%eth0]/ http://[::ffff:127.0.0.1%251]/
http://[1:2:3:4:5:6:7:8:9]/ http://[127.0.0.1]/ http://[v1.x]/ http://[::1]@a.example/
http://localhost/ http://localhost:80/ http://LOCALHOST/ http://redis/ http://metadata/
http://kubernetes/ http://localhost./ http://a.example./ http://.a.example/ http://a..example/
http://-/ http://a.b/ http://a_b/ http://a,b.example/ http://a*b.example/ http://a%2eexample/
http://%6c%6f%63%61%6c%68%6f%73%74/ http://a.example;b/ http://a.example&b/ http://a.exa|mple/
http://a.example{}/ http://(a.example)/
"""
BY_TEXT = [
    *_BY_TEXT.split(),
    "", " ", "http://a.example/ x", " http://a.example/", "http://a.example/\n", "http://a.exa\tmple/",
    "http://a.example/\r\nHost: b", "http://a.example\x00.evil.example/", "http://\x7f.example/",
    "http://ａ.example/", "http://a。example/", "http://аpple.example/", "http://①②⑦.⓪.⓪.①/",
    "http://ﬀ.example/", "http://a.example/é", 'http://a.example/"', "http://a.example/<x>",
    "http://a.example/" + "x" * 3000, "http://" + "a" * 64 + ".example/",
    "http://" + "a." * 130 + "example/",
]  # fmt: skip

_INSIDE = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1
127.255.255.254 168.63.129.16 169.254.0.1 169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255
192.0.0.1 192.0.0.192 192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1 192.168.0.1 192.168.255.255
192.175.48.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255
240.0.0.1 255.255.255.255 :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:8.8.8.8
::ffff:0:127.0.0.1 ::ffff:0:8.8.8.8 64:ff9b::7f00:1 64:ff9b::a00:1 64:ff9b::a9fe:a9fe
64:ff9b:1::7f00:1 64:ff9b:1::808:808 100::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2::1
2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1:: 2002:808:808:: 2002:a00:1::1 2620:4f:8000::1
3ffe::1 3fff::1 4000::1 5f00::1 2606:4700::5efe:127.0.0.1 2606:4700::5efe:8.8.8.8
2606:4700::200:5efe:10.0.0.1 fc00::1 fd00::1 fd00:ec2::254 fe80::1 fe80::1%eth0
fe80::5efe:10.0.0.1 fec0::1 ff02::1 ff05::2 ff0e::1
"""
INSIDE = _INSIDE.split()
_OUTSIDE = """
1.1.1.1 8.8.8.8 9.9.9.9 100.63.255.255 100.128.0.0 172.15.255.255 172.32.0.0 192.0.1.1
198.17.255.255 198.20.0.0 223.255.255.255 168.63.129.15 2606:4700:4700::1111 2001:4860:4860::8888
2a00:1450::1 64:ff9b::808:808
"""
OUTSIDE = _OUTSIDE.split()


class DialledError(Exception):
    pass


def fetcher(addresses: Sequence[str] = ("1.1.1.1",)) -> Fetcher:
    def dial(address: str, port: int, timeout: float) -> socket.socket:
        assert is_public(address), f"{address} would have been connected to"
        assert port in (80, 443)
        assert 0 < timeout <= 10
        raise DialledError(address)

    return Fetcher(resolver=lambda host, port: list(addresses), dialler=dial)


def test_the_tables_are_long_enough() -> None:
    assert len(BY_TEXT) + len(INSIDE) >= 190
    assert len(set(BY_TEXT)) == len(BY_TEXT)
    assert len(set(INSIDE)) == len(INSIDE)


@pytest.mark.parametrize("url", BY_TEXT, ids=repr)
def test_refused_by_its_text(url: str) -> None:
    with pytest.raises(UrlError) as refused:
        fetcher().fetch(url)
    assert refused.value.code == "url-not-allowed"
    assert "a.example" not in refused.value.message


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_inside_is_refused_however_it_is_reached(address: str) -> None:
    assert not is_public(address)
    # as what a name resolves to, alone, and beside public ones in any order
    for addresses in ([address], ["1.1.1.1", address], [address, "2606:4700::1"]):
        with pytest.raises(UrlError) as refused:
            fetcher(addresses).fetch("http://a.example/x.png")
        assert refused.value.code == "url-fetch-failed"
    # and written into the URL
    host = f"[{address}]" if ":" in address else address
    for url in (f"http://{host}/", f"https://{host}/x.png", f"http://{host}:80/"):
        with pytest.raises(UrlError):
            fetcher().fetch(url)


@pytest.mark.parametrize("address", OUTSIDE)
def test_a_public_address_is_dialled(address: str) -> None:
    assert is_public(address)
    with pytest.raises(DialledError, match=address):
        fetcher([address]).fetch("https://a.example/x.png")


def test_an_unknown_python_table_cannot_open_what_ours_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`is_global` differs between Python versions: without it, our table alone still holds."""
    monkeypatch.setattr(ipaddress.IPv4Address, "is_global", property(lambda self: True))
    monkeypatch.setattr(ipaddress.IPv6Address, "is_global", property(lambda self: True))
    assert [address for address in INSIDE if is_public(address)] == []


def test_no_answer_is_no_permission() -> None:
    with pytest.raises(UrlError, match="no picture"):
        fetcher([]).fetch("http://a.example/")
    for text in ("", "a.example", "1.2.3", "1.2.3.4:80"):
        assert not is_public(text)


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "path"),
    [
        ("http://a.example", "http", "a.example", 80, "/"),
        ("HTTPS://A.Example/x.PNG?q=1#f", "https", "a.example", 443, "/x.PNG?q=1"),
        ("http://a.example:443/", "http", "a.example", 443, "/"),
        ("http://xn--bcher-kva.example/%C3", "http", "xn--bcher-kva.example", 80, "/%C3"),
        ("http://1.1.1.1/a;b@c:d", "http", "1.1.1.1", 80, "/a;b@c:d"),
        ("https://[2606:4700:0:0::1]:443/", "https", "2606:4700::1", 443, "/"),
        ("http://a-b_c.example/?u=http://[::1]", "http", "a-b_c.example", 80, "/?u=http://[::1]"),
        ("http://a.example?x", "http", "a.example", 80, "/?x"),
    ],
)  # fmt: skip
def test_what_is_allowed_is_read_in_parts(
    url: str, scheme: str, host: str, port: int, path: str
) -> None:
    target = parse_url(url)
    assert (target.scheme, target.host, target.port, target.path) == (scheme, host, port, path)
    assert parse_url(target.url) == target


def test_the_systems_resolver_is_judged_too() -> None:
    assert set(resolve("localhost", 80)) <= {"127.0.0.1", "::1"}
    found: list[str] = []

    def local(host: str, port: int) -> list[str]:
        found.extend(resolve("localhost", port))
        return found

    def dial(*_: object) -> socket.socket:
        raise AssertionError("dialled")

    with pytest.raises(UrlError):
        Fetcher(resolver=local, dialler=dial).fetch("http://a.example/")
    assert found
