"""What bytes claim to be, judged before any decoder sees them.

Four questions only: does it begin as a format that we accept, is it a known one that we do not, is
it cut into so many pieces that merely listing them would keep a processor busy, and does a PNG end
before its end? Nothing here decodes.
"""

from __future__ import annotations

MAX_PIECES = 10_000
"""Chunks, segments or blocks before the pixels; cameras and editors write at most hundreds.

A PNG's pixel chunks weigh a quarter. Pillow spends some 2 microseconds on each piece, so this
bounds the work hidden in a crafted file to tens of milliseconds; 20 MiB could hold 3 seconds.
"""

_PNG = b"\x89PNG\r\n\x1a\n"

_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (4, b"ftypcrx", "Canon raw"),
    (4, b"ftyp", "MP4 video"),
    (0, b"%PDF-", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x00\x00\x01\x00", "Windows icon"),
    (0, b"\x00\x00\x02\x00", "Windows cursor"),
    (0, b"icns", "macOS icon"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"qoif", "QOI"),
    (0, b"DDS ", "DirectDraw surface"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"\x1aE\xdf\xa3", "Matroska video"),
)


_OURS = (
    b"\xff\xd8\xff", _PNG, b"GIF87a", b"GIF89a", b"BM",
    b"II*\0", b"MM\0*", b"II+\0", b"MM\0+",
)  # fmt: skip


def is_picture(head: bytes) -> bool:
    """Whether the first bytes (12 suffice) are those of JPEG, PNG, WebP, GIF, BMP or TIFF."""
    return head.startswith(_OURS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def foreign_format(data: bytes) -> str | None:
    """Name of a recognisable format that is not accepted; None for anything else."""
    for offset, magic, name in _FOREIGN:
        if data.startswith(magic, offset):
            return name
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head):
        return "SVG"
    if head.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    return None


def too_many_pieces(data: bytes) -> bool:
    """Whether a PNG, JPEG or GIF consists of more than `MAX_PIECES` pieces besides its pixels."""
    if data.startswith(_PNG):
        return _png_chunks(data) > MAX_PIECES
    if data.startswith(b"\xff\xd8"):
        return _jpeg_segments(data) > MAX_PIECES
    if data.startswith(b"GIF8"):
        return _gif_blocks(data) > MAX_PIECES
    return False


def ends_early(data: bytes) -> bool:
    """Whether a PNG lacks its closing chunk.

    Pillow stops reading once it has all pixels, so a file cut inside the last chunks would pass.
    Call it after `too_many_pieces`, which bounds the walk.
    """
    if not data.startswith(_PNG):
        return False
    at = 8
    while at + 12 <= len(data):
        if data[at + 4 : at + 8] == b"IEND":
            return False
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return True


def _png_chunks(data: bytes) -> int:
    at, others, pixels = 8, 0, 0
    while at + 8 <= len(data) and others + pixels // 4 <= MAX_PIECES:
        if data[at + 4 : at + 8] in (b"IDAT", b"fdAT"):
            pixels += 1
        else:
            others += 1
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return others + pixels // 4


def _jpeg_segments(data: bytes) -> int:
    """Segments up to the first scan; what follows is read by libjpeg alone."""
    at, count = 2, 0
    while at + 4 <= len(data) and count <= MAX_PIECES:
        if data[at] != 0xFF:
            break
        if data[at + 1] == 0xDA:  # start of scan
            break
        count += 1
        if data[at + 1] == 0xFF:  # padding
            at += 1
        elif data[at + 1] in (0x00, 0x01) or 0xD0 <= data[at + 1] <= 0xD8:  # no length follows
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return count


def _gif_blocks(data: bytes) -> int:
    """Extension sub-blocks up to the first frame."""
    if len(data) < 13:
        return 0
    at, count = 13, 0
    if data[10] & 0x80:
        at += 3 << ((data[10] & 7) + 1)
    while at + 2 <= len(data) and data[at] == 0x21 and count <= MAX_PIECES:
        at += 2
        while at < len(data) and data[at] and count <= MAX_PIECES:
            count += 1
            at += 1 + data[at]
        at += 1
        count += 1
    return count
