"""Bad tar shards; see `bad_sources.py`."""

from __future__ import annotations

import gzip
import io
import lzma
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bad_sources import BLUE, RED, Case

Entry = tuple[str, bytes] | tarfile.TarInfo


def archive(entries: Iterable[Entry], fmt: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=fmt) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            tar.addfile(info, io.BytesIO(entry[1]))
    return buffer.getvalue()


def raw(data: bytes, name: str = "a.tar") -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(data)
        return str(folder / name)

    return make


def shard(*entries: Entry, fmt: int = tarfile.PAX_FORMAT) -> Callable[[Path], str]:
    return raw(archive(entries, fmt))


def special(name: str, kind: bytes, target: str = "/etc/passwd", **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    for key, value in more.items():
        setattr(info, key, value)
    return info


def header(name: bytes, size: bytes, kind: bytes) -> bytes:
    """A header block whose fields are written as given, with the right checksum."""
    block = bytearray(512)
    block[:100] = name.ljust(100, b"\0")
    block[124:136] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def between(block: bytes) -> bytes:
    """A good row, then `block`, then an end mark."""
    return archive([("a.png", RED)])[:STEP] + block + bytes(1024)


def sparse_files(fmt: str) -> Callable[[Path], str]:
    """Three members as GNU tar writes them; the middle one has holes, in 60 pieces."""

    def make(folder: Path) -> str:
        for name in ("a.png", "c.png"):
            (folder / name).write_bytes(RED)
        with (folder / "b.png").open("wb") as file:
            for piece in range(60):
                file.seek(piece * 65536)
                file.write(b"x" * 4096)
        names = ["a.png", "b.png", "c.png"]
        command = ["tar", "--sparse", f"--format={fmt}", "-cf", "a.tar", *names]
        subprocess.run(command, cwd=folder, check=True)
        return str(folder / "a.tar")

    return make


def shrinking(data: bytes, times: int) -> bytes:
    return gzip.compress(data * times)


STEP = 512 + -(-len(RED) // 512) * 512
GOOD: Entry = ("good.png", RED)
LONG_NAME = header(b"././@LongLink", b"00000000010\0", b"L") + b"name.jpg".ljust(512, b"\0")

SHARDS = [
    Case("tar-empty-file", raw(b""), ("shard-damaged",)),
    Case("tar-empty", shard(), ()),
    Case("tar-text", raw(b"not a tar file, only text\n" * 100), ("shard-damaged",)),
    Case("tar-gz-bomb", raw(shrinking(bytes(1 << 20), 100), "a.tar.gz"), ("!source-compressed",)),
    Case("tar-gz-hidden", raw(shrinking(archive([GOOD]), 1)), ("!source-compressed",)),
    Case("tar-xz", raw(lzma.compress(archive([GOOD])), "a.tar.xz"), ("!source-compressed",)),
    Case("tar-zst", raw(b"\x28\xb5\x2f\xfd rest", "a.tar.zst"), ("!source-compressed",)),
    Case("tar-pipe", lambda folder: f"pipe:cat {folder}/a.tar", ("!not-allowed",)),
    Case("tar-pipe-behind", lambda folder: f"{shard(GOOD)(folder)}::pipe:id", ("!not-allowed",)),
    Case("tar-missing-shard", lambda folder: str(folder / "a-{0..3}.tar"), ("!source-unreadable",)),
    Case("tar-too-many-shards", lambda folder: str(folder / "a-{0..99999999}.tar"),
         ("!source-unreadable",)),
    # names are labels, nothing is written
    Case("tar-names-leading-out", shard(
        ("../x.png", RED), ("/abs/y.png", RED), ("a/../z.png", RED)), ("ok",) * 3),
    Case("tar-links-and-devices", shard(
        special("s.png", tarfile.SYMTYPE), special("h.png", tarfile.LNKTYPE),
        special("f.png", tarfile.FIFOTYPE), special("c.png", tarfile.CHRTYPE),
        special("b.png", tarfile.BLKTYPE), special("d.png", tarfile.DIRTYPE),
        # a link to a folder outside, then a member below it
        special("out", tarfile.SYMTYPE, "/tmp"), ("out/x.png", RED)),
        ("not-a-regular-file",) * 6 + ("ok",)),
    Case("tar-sparse-pax", shard(
        special("s.png", tarfile.REGTYPE, pax_headers={"GNU.sparse.major": "1"}), GOOD),
        ("not-a-regular-file", "ok")),
    Case("tar-sparse-gnu", sparse_files("gnu"), ("ok", "not-a-regular-file", "ok")),
    Case("tar-sparse-posix", sparse_files("posix"), ("ok", "not-a-regular-file", "ok")),
    Case("tar-size-negative", raw(between(header(b"a.jpg", b"\xff" * 12, b"0"))),
         ("shard-damaged",)),
    Case("tar-size-8-eb", raw(between(header(b"a.jpg", b"\x80\0\0\0\x7f" + b"\xff" * 7, b"0"))),
         ("shard-damaged",)),
    Case("tar-pax-path-1-gb", raw(between(header(b"p", b"10000000000\0", b"x"))),
         ("shard-damaged",)),
    Case("tar-pax-malformed", raw(between(
        header(b"p", b"00000000012\0", b"x") + b"9999 path=a".ljust(512, b"\0"))),
        ("shard-damaged",)),
    Case("tar-long-name-loop", raw(
        LONG_NAME * 5000 + header(b"x", b"00000000003\0", b"0") + b"abc".ljust(512, b"\0")
        + bytes(1024)), ("ok",)),
    Case("tar-long-names", shard(("n" * 300 + ".png", RED), fmt=tarfile.GNU_FORMAT), ("ok",)),
    Case("tar-bad-checksum", raw(archive([("a.png", RED), ("b.png", RED)])[: STEP + 10] + b"!"
                                 + archive([("b.png", RED)])[11:]), ("shard-damaged",)),
    Case("tar-zeros-inside", raw(archive([GOOD])[:STEP] + bytes(1024) + archive([("b.png", BLUE)])),
         ("shard-damaged",)),
    Case("tar-concatenated", raw(archive([GOOD]) + archive([("b.png", BLUE)])), ("shard-damaged",)),
    Case("tar-cut-in-a-picture", raw(archive([GOOD, ("z.png", BLUE)])[: STEP + 550]),
         ("shard-damaged",)),  # whether more of the good one's key would follow is not known
    Case("tar-damaged-then-good", lambda folder: "::".join([
        raw(archive([("a.png", RED), GOOD])[: STEP + 100], "a.tar")(folder),
        raw(archive([("z.png", BLUE)]), "z.tar")(folder)]), ("shard-damaged", "ok")),
    Case("tar-in-tar", shard(("inner.tar", archive([GOOD])), GOOD), ("ok",)),
    Case("tar-20000-empty-members", shard(*((f"k{at}.npy", b"") for at in range(20_000))), ()),
    Case("tar-one-key-1000-times", shard(*[("a.png", b"")] * 1000, ("a.png", RED)),
         ("empty-file",) * 1000 + ("ok",)),
    Case("tar-key-twice", shard(("a.png", RED), ("b.png", RED), ("a.png", BLUE)),
         ("ok", "ok", "duplicate-key")),
    Case("tar-two-pictures-one-key", shard(("a.png", RED), ("a.jpg", BLUE)), ("extra-image", "ok")),
    Case("tar-key-without-picture", shard(("a.txt", b"words"), ("b.json", b'{"year": 1}')),
         ("ok",)),
    Case("tar-picture-without-caption", shard(GOOD), ("ok",)),
    Case("tar-code", shard(*((f"a.{suffix}", b"cos\nsystem\n(S'true'\ntR.") for suffix in (
        "pyd", "pkl", "pth", "npy", "ten", "pickle", "py")), ("a.cls", b"cos\nsystem"), GOOD),
        ("ok",)),
    Case("tar-names-not-utf8", shard((b"caf\xe9.png".decode("utf-8", "surrogateescape"), RED),
                                     fmt=tarfile.GNU_FORMAT), ("ok",)),
    Case("tar-bad-texts", shard(("a.png", RED), ("a.txt", b"caf\xe9"), ("b.png", RED),
                                ("b.json", b"{"), ("c.png", RED), ("c.json", b'{"text": 5}'),
                                ("d.png", RED), ("d.txt", b"x" * 2**21)),
         ("not-utf8", "ok", "bad-json", "ok", "bad-caption", "ok", "file-too-large", "ok")),
]  # fmt: skip
