"""The one decoder: bytes of unknown origin -> an upright RGB picture in sRGB.

Training, indexing and queries all decode here, because pixels that differ between the two sides
of a comparison are the fault nobody notices. It does not know the model's own resizing and
normalisation (the encoder's `prepare_image`), nor files, names or declared types: the bytes alone
decide what they are.

Order matters. Everything before `_load` reads headers only, so a small file that promises a
gigantic canvas costs nothing. Damage is an error: a picture half grey is worse than none.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from models.errors import ImageError, InputError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is accepted; Pillow's other readers are never asked (one of them runs Ghostscript)."""

_MIB = 1024 * 1024
_IN_PILLOW = re.compile(r"PIL\.")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What one picture may cost. Fifty megapixels are 150 MB once decoded."""

    max_bytes: int = 20 * _MIB
    max_pixels: int = 50_000_000
    max_side: int = 16_384


def decode_image(data: bytes, *, limits: ImageLimits = ImageLimits()) -> Image.Image:
    """Decode one picture, strictly and within `limits`.

    The first frame of an animation counts. 16-bit and float samples are scaled to 8 bits, not
    clipped; an ICC profile is converted to sRGB, and ignored when broken; the EXIF orientation is
    applied; transparency is laid over white. The result carries no metadata.

    Args:
        data: the encoded file, JPEG, PNG, WebP, GIF, BMP or TIFF.

    Returns:
        A PIL image of mode RGB, at least 1 x 1. Safe to call from any number of threads.

    Raises:
        ImageError: `image-empty`, `image-too-large`, `image-format-not-allowed`,
            `image-too-many-pixels`, `image-bad-dimensions` or `image-undecodable`.
    """
    return decode_reduced(data, limits=limits)[0]


def decode_reduced(
    data: bytes, *, limits: ImageLimits = ImageLimits(), least: int | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """As `decode_image`, but a JPEG may be decoded at a half, a quarter or an eighth of its size.

    Args:
        least: what its shorter side keeps at least, in pixels; None reduces nothing.

    Returns:
        The picture, and the (width, height) it has in full, upright.

    Raises:
        ImageError: as `decode_image`.
    """
    check_bytes(data, limits)
    if foreign := foreign_format(data):
        raise ImageError(
            f"{foreign} is not accepted; use {', '.join(FORMATS)}",
            code="image-format-not-allowed",
        )
    if too_many_pieces(data):
        raise ImageError("the file is cut into absurdly many pieces")
    _hush_pillow()
    with _open(data) as image:
        _check_size(*image.size, limits)
        if ends_early(data):
            raise ImageError("the picture is damaged: the file ends early")
        width, height = image.size
        reduced = least is not None and _reduce(image, least)
        _load(image)
        picture = _finish(image)
        if not reduced:
            return picture, picture.size
        return picture, (height, width) if lies_on_its_side(image) else (width, height)


def check_bytes(data: bytes, limits: ImageLimits) -> None:
    """Refuse by the number of bytes alone. Raises ImageError."""
    if not data:
        raise ImageError("the picture is empty (0 bytes)", code="image-empty")
    if len(data) > limits.max_bytes:
        raise ImageError(
            f"the picture has {len(data):,} bytes; at most {limits.max_bytes:,} are allowed",
            code="image-too-large",
        )


def encode_thumbnail(image: Image.Image, *, side: int = 320) -> bytes:
    """A JPEG preview whose longer side is at most `side`; never enlarged, never with metadata."""
    small = image if image.mode == "RGB" else image.convert("RGB")
    share = side / max(image.size)
    if share < 1:
        size = max(1, round(image.width * share)), max(1, round(image.height * share))
        # whole factors first, by averaging: half the time of bicubic all the way
        small = small.resize(size, Image.Resampling.HAMMING, reducing_gap=1.0)
    elif small is image:
        small = image.copy()  # the caller keeps its picture
    small.info = {}  # Pillow's writer would carry an ICC profile or comment over
    buffer = BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def _open(data: bytes) -> Image.Image:
    """Read the header. Fuzzed files make Pillow raise nearly anything, hence `Exception`."""
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            "the picture promises too many pixels", code="image-too-many-pixels"
        ) from error
    except UnidentifiedImageError as error:
        # Pillow's own message names a buffer's address
        raise ImageError("not a picture, or its header is damaged") from error
    except Exception as error:
        raise ImageError(f"the header is damaged: {_reason(error)}") from error


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{width} x {height} is not a size", code="image-bad-dimensions")
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{width} x {height} is {width * height / 1e6:,.0f} megapixels; "
            f"at most {limits.max_pixels / 1e6:,.0f} are allowed",
            code="image-too-many-pixels",
        )
    if max(width, height) > limits.max_side:
        raise ImageError(
            f"{width} x {height}: a side may have at most {limits.max_side:,} pixels",
            code="image-bad-dimensions",
        )


def _reduce(image: Image.Image, least: int) -> bool:
    """Have libjpeg decode fewer coefficients, if that leaves enough -> whether it will."""
    factor, size = min(image.size) // least, image.size
    if image.format == "JPEG" and factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))
    return image.size != size


def _load(image: Image.Image) -> None:
    """Decode the first frame's pixels, all of them."""
    try:
        image.load()
    except Exception as error:
        raise ImageError(f"the picture is damaged: {_reason(error)}") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture of Pillow's, of any mode, as `decode_image` would return it.

    For callers that opened it themselves: colour, depth, profile, orientation and transparency are
    settled as for bytes. What has nothing to settle is handed back as it is.

    Raises:
        InputError: not a picture of Pillow's.
        ImageError: it has no pixels, they are damaged, or their mode cannot be converted.
    """
    if not isinstance(image, Image.Image):
        raise InputError(
            f"a picture must be a PIL.Image.Image, not {type(image).__name__}",
            hint="of a file: decode_image(path.read_bytes()); of an array: Image.fromarray(array)",
        )
    if min(image.size) < 1:
        raise ImageError(
            f"{image.width} x {image.height} is not a size", code="image-bad-dimensions"
        )
    if image.mode == "RGB" and type(image) is Image.Image and not image.info:
        return image
    _load(image)
    return _finish(image)


def _finish(image: Image.Image) -> Image.Image:
    """Colour, orientation and transparency of a loaded picture."""
    try:
        rgb, alpha = to_srgb(image)
        # after load(): PNG may keep its EXIF behind the pixels
        rgb, alpha = upright(image, rgb, alpha)
        result = over_white(rgb, alpha)
    except Exception as error:
        raise ImageError(f"the pixels cannot be converted: {_reason(error)}") from error
    result.info = {}
    return result


def _reason(error: Exception) -> str:
    """One short line of Pillow's; its messages about in-memory files hold no paths."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def _hush_pillow() -> None:
    """Silence Pillow's remarks about a file's defects; errors still come as errors.

    A process-wide filter, but only for warnings raised inside PIL about data. The obvious
    `catch_warnings` swaps global state and is not safe with several decoding threads. Checked
    per call because test runners, and `catch_warnings` elsewhere, reset the list.
    """
    for category in (UserWarning, Image.DecompressionBombWarning):
        if ("ignore", None, category, _IN_PILLOW, 0) not in warnings.filters:
            warnings.filterwarnings("ignore", category=category, module=_IN_PILLOW.pattern)


# --- from whatever samples a file holds to 8-bit sRGB, upright, opaque ---------------------------

Alpha: TypeAlias = Image.Image | None
"""Opacity of every pixel, mode L; None when all are opaque."""

_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that undoes it."""

_ON_ITS_SIDE = frozenset({5, 6, 7, 8})

_PROFILE_SPACE = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}
_MAX_PROFILE = 4 * 1024 * 1024
"""Bytes; press profiles have 0.5 to 3 MB, anything above is not worth parsing."""


def to_srgb(image: Image.Image) -> tuple[Image.Image, Alpha]:
    """Convert to 8-bit sRGB -> (mode RGB, alpha). Not yet rotated, not yet composited."""
    base, alpha = _split_alpha(_to_8_bit(image))
    profile = image.info.get("icc_profile")
    managed = _apply_profile(base, profile) if isinstance(profile, bytes) and profile else None
    return managed or base.convert("RGB"), alpha


def upright(source: Image.Image, rgb: Image.Image, alpha: Alpha) -> tuple[Image.Image, Alpha]:
    """Undo the rotation that `source`'s EXIF records; values outside 1..8 are ignored.

    Pillow turns TIFF by itself while loading and then drops the tag, so nothing turns twice.
    """
    try:
        turn = _TURN.get(source.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF says nothing about the pixels
        turn = None
    if turn is None:
        return rgb, alpha
    return rgb.transpose(turn), alpha.transpose(turn) if alpha else None


def lies_on_its_side(source: Image.Image) -> bool:
    """Whether `upright` swaps width and height."""
    try:
        return source.getexif().get(ExifTags.Base.Orientation, 1) in _ON_ITS_SIDE
    except Exception:  # as above
        return False


def over_white(rgb: Image.Image, alpha: Alpha) -> Image.Image:
    """Composite over white in sRGB values, as browsers do; white is what cut-outs are shot on."""
    if alpha is None:
        return rgb
    return Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale samples wider than 8 bits; Pillow's own conversion clips them at 255."""
    mode = image.mode
    if not mode.startswith(("I", "F")):
        return image
    samples = np.asarray(image)
    if mode.startswith("I;16"):
        grey = _scaled(samples, 65535.0)
    else:
        grey = _scaled(samples, _full_scale(samples, integers=mode == "I"))
    result = Image.fromarray(grey)
    key = image.info.get("transparency")
    if isinstance(key, int):  # PNG's one transparent 16-bit grey
        opacity = np.where(samples == key, 0, 255).astype(np.uint8)
        return Image.merge("LA", (result, Image.fromarray(opacity)))
    return result


def _full_scale(samples: npt.NDArray[np.generic], *, integers: bool) -> float:
    """The value that means white: files with 32-bit and float samples do not say.

    The smallest customary white that holds the brightest sample: 1 (floats only), 255, 65535;
    brighter still, the brightest sample itself.
    """
    finite = samples[np.isfinite(samples)]
    peak = float(finite.max()) if finite.size else 0.0
    customary = (255.0, 65535.0) if integers else (1.0, 255.0, 65535.0)
    return next((white for white in customary if peak <= white), peak)


def _scaled(samples: npt.NDArray[np.generic], white: float) -> npt.NDArray[np.uint8]:
    finite = np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=white, neginf=0.0)
    return np.rint(np.clip(finite / white, 0.0, 1.0) * 255.0).astype(np.uint8)


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Alpha]:
    """Separate opacity from colour -> (mode L, RGB, CMYK or LAB, alpha)."""
    mode = image.mode
    if mode in ("L", "CMYK", "LAB") and "transparency" not in image.info:
        return image, None
    if mode in ("RGBa", "La"):
        image = image.convert("RGBA" if mode == "RGBa" else "LA")
    elif image.has_transparency_data:
        image = _with_8_bit_key(image).convert("RGBA")
    if image.mode not in ("RGBA", "LA"):
        # 1-bit pictures keep their one grey band, so that a grey profile still fits
        return image.convert("L" if mode == "1" else "RGB"), None
    alpha = image.getchannel("A")
    colour = image.convert("RGB" if image.mode == "RGBA" else "L")
    return colour, None if alpha.getextrema() == (255, 255) else alpha


def _with_8_bit_key(image: Image.Image) -> Image.Image:
    """PNG's transparent colour of a 16-bit picture, at the depth Pillow decoded the pixels to."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _apply_profile(base: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert to sRGB through the embedded profile; None when it is broken or does not fit."""
    if len(profile) > _MAX_PROFILE:
        return None
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if source.profile.xcolor_space.strip() != _PROFILE_SPACE[base.mode]:
            return None  # e.g. the grey profile left in a file that was coloured later
        if base.mode == "RGB" and (source.profile.profile_description or "").startswith("sRGB"):
            return base  # already there: most photographs; saves a pass over the pixels
        return ImageCms.profileToProfile(
            base,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except Exception:  # a profile is advice: without it the colours are a little off, no more
        return None


# --- what bytes claim to be, judged before any decoder sees them --------------------------------

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
