"""Pictures that are wrong, odd or hostile, and what an index makes of each.

    python tests/support/bad_images.py DIR      writes the whole corpus into DIR, one file a case

A `Case` says what becomes of its bytes: `ok`, or the code of the reject. Names tell nothing: every
file is called `.jpg`, and the bytes alone decide.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

UNDECODABLE, FOREIGN = "image-undecodable", "image-format-not-allowed"
PIXELS, DIMENSIONS = "image-too-many-pixels", "image-bad-dimensions"
_MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    name: str
    data: bytes
    expected: str


def picture(width: int = 64, height: int = 48) -> Image.Image:
    """Smooth, with an edge: something that every format stores well."""
    y, x = np.mgrid[:height, :width]
    red, blue = 255 * x // width, 255 * (x > width // 3)
    return Image.fromarray(np.stack([red, 255 * y // height, blue], axis=2).astype(np.uint8))


def saved(image: Image.Image, fmt: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=fmt, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*middle: bytes, size: tuple[int, int] = (2, 2), body: bytes | None = None) -> bytes:
    width, height = size
    rows = (b"\0" + bytes(3 * width)) * height if body is None else body
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *middle, chunk(b"IDAT", zlib.compress(rows, 9))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def segments(jpeg: bytes, *extra: bytes) -> bytes:
    """A JPEG with APP segments behind its first two bytes."""
    return jpeg[:2] + b"".join(extra) + jpeg[2:]


def app(number: int, payload: bytes) -> bytes:
    return bytes([0xFF, 0xE0 + number]) + struct.pack(">H", len(payload) + 2) + payload


def tiff_in_a_circle() -> bytes:
    """Its second directory says that the first comes next."""
    entries = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (278, 1), (279, 1)]

    def directory(following: int) -> bytes:
        packed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
        return struct.pack("<H", len(entries)) + packed + struct.pack("<I", following)

    size = len(directory(0))
    return b"II*\0" + struct.pack("<I", 8) + directory(8 + size) + directory(8)


def frames(count: int, fmt: str, side: int = 4, **options: object) -> bytes:
    all_of_them = [Image.new("RGB", (side, side), (i % 256, i // 256, 99)) for i in range(count)]
    more = {"save_all": True, "append_images": all_of_them[1:], **options}
    return saved(all_of_them[0], fmt, **more)


def exif(orientation: object = 6, remark: str = "here") -> bytes:
    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = orientation, remark
    return tags.tobytes()


def without_restart_marker() -> bytes:
    """One of the marks between which a scan can be decoded anew is gone."""
    data = saved(picture(), "JPEG", restart_marker_blocks=4)
    at = data.index(b"\xff\xd1")
    return data[:at] + data[at + 2 :]


def cases() -> Iterator[Case]:
    jpeg, whole_png = saved(picture(), "JPEG", quality=90), saved(picture(), "PNG")
    for fmt in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = saved(picture(), fmt)
        yield Case(f"good-{fmt}", data, "ok")
        for part in range(1, 16):
            yield Case(f"cut-{fmt}-{part:02}", data[: len(data) * part // 16], UNDECODABLE)
    yield Case("one-byte", b"\xff", UNDECODABLE)
    yield Case("random", np.random.default_rng(0).bytes(5000), UNDECODABLE)
    yield Case("text", b"I am no picture.\n" * 100, UNDECODABLE)
    for name, head in {
        "html": b"<!DOCTYPE html><script>alert(1)</script>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "svg-xxe": b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
                   b"<svg>&x;</svg>",
        "zip": b"PK\x03\x04" + bytes(60), "pdf": b"%PDF-1.7\n", "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "psd": b"8BPS\x00\x01", "ico": b"\x00\x00\x01\x00\x01\x00", "icns": b"icns\0\0\1\0",
        "mp4": b"\x00\x00\x00\x18ftypisom", "heic": b"\x00\x00\x00\x18ftypheic",
        "avif": b"\x00\x00\x00\x18ftypavif", "jp2": b"\x00\x00\x00\x0cjP  \r\n\x87\n",
        "fits": b"SIMPLE  =                    T",
    }.items():  # fmt: skip
        yield Case(f"foreign-{name}", head + bytes(64), FOREIGN)
    # sizes
    yield Case("1x1", png(size=(1, 1)), "ok")
    yield Case("bomb-66-bytes", png(size=(100_000, 100_000), body=b""), PIXELS)
    bomb = png(size=(13_000, 13_000), body=(b"\0" + bytes(39_000)) * 13_000)
    yield Case("bomb-13000", bomb, PIXELS)
    yield Case("one-row", png(size=(1_000_000, 1), body=b""), DIMENSIONS)
    tall = bytearray(saved(Image.new("L", (8, 8)), "JPEG"))
    at = tall.index(b"\xff\xc0") + 5
    tall[at : at + 4] = b"\xff\xff\xff\xff"
    yield Case("jpeg-65535", bytes(tall), PIXELS)
    yield Case("no-columns", png(size=(0, 5), body=b"x"), UNDECODABLE)
    # metadata
    bloat = zlib.compress(bytes(50 * _MIB), 9)
    yield Case("iccp-bomb", png(chunk(b"iCCP", b"x\0\0" + bloat)), UNDECODABLE)
    yield Case("ztxt-bomb", png(chunk(b"zTXt", b"x\0\0" + bloat)), UNDECODABLE)
    yield Case("itxt-bomb", png(chunk(b"iTXt", b"x\0\1\0\0\0" + bloat)), UNDECODABLE)
    yield Case("200000-texts", png(chunk(b"tEXt", b"a\0b") * 200_000), UNDECODABLE)
    yield Case("1000-segments", segments(jpeg, *[app(9, bytes(16_000))] * 1000), "ok")
    yield Case("50000-segments", segments(jpeg, *[app(9, b"x")] * 50_000), UNDECODABLE)
    noise = b"Exif\0\0" + bytes(range(256)) * 250
    yield Case("exif-10-mb", segments(jpeg, *[app(1, noise)] * 150), "ok")
    yield Case("tiff-circle", tiff_in_a_circle(), "ok")
    for value in (0, 6, 9, 65535):
        yield Case(f"exif-turn-{value}", saved(picture(), "JPEG", exif=exif(value)), "ok")
    # frames: the first counts
    yield Case("tiff-1000-pages", frames(1000, "TIFF"), "ok")
    yield Case("gif-3000-frames", frames(3000, "GIF"), "ok")
    yield Case("apng", frames(10, "PNG"), "ok")
    yield Case("webp-animated", frames(10, "WEBP"), "ok")
    yield Case("mpo", frames(2, "MPO", side=32), "ok")
    canvas = bytearray(saved(Image.new("P", (4, 4)), "GIF"))
    canvas[6:10] = b"\xff\xff\xff\xff"
    yield Case("gif-canvas", bytes(canvas), PIXELS)
    # modes
    for mode in ("1", "L", "P", "LA", "RGBA", "I;16"):
        yield Case(f"png-{mode.replace(';', '-')}", saved(picture().convert("L").convert(mode)
                   if mode == "I;16" else picture().convert(mode), "PNG"), "ok")  # fmt: skip
    for mode in ("CMYK", "LAB", "F"):
        source = picture().convert("L").convert(mode) if mode == "F" else picture().convert(mode)
        yield Case(f"tiff-{mode}", saved(source, "TIFF"), "ok")
    yield Case("jpeg-cmyk", saved(picture().convert("CMYK"), "JPEG"), "ok")
    yield Case("jpeg-progressive", saved(picture(), "JPEG", progressive=True), "ok")
    for number, profile in enumerate((b"not a profile", bytes(200))):
        yield Case(f"icc-broken-{number}", saved(picture(), "PNG", icc_profile=profile), "ok")
    # damage, and what stands behind the end
    yield Case("jpeg-no-eoi", jpeg[:-2], UNDECODABLE)
    yield Case("jpeg-garbage-behind", jpeg + b"garbage" * 100, "ok")
    yield Case("jpeg-zip", jpeg + b"PK\x03\x04" + bytes(100), "ok")
    yield Case("jpeg-html", jpeg + b"<script>alert(1)</script>", "ok")
    yield Case("png-pdf", whole_png + b"%PDF-1.7\n", "ok")
    # libjpeg finds its way again and tells Pillow nothing: a band of the picture is wrong
    yield Case("jpeg-restart-gone", without_restart_marker(), "ok")
    bad_sum = bytearray(whole_png)
    bad_sum[29] ^= 1
    yield Case("png-wrong-sum", bytes(bad_sum), UNDECODABLE)


def main(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for case in cases():
        (target / f"{case.name}.jpg").write_bytes(case.data)
        print(f"{case.name}\t{case.expected}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
