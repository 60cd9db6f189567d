"""From whatever samples a file holds to 8-bit sRGB, upright, opaque.

Works on a decoded Pillow image. It knows nothing of files, formats or limits;
`models.images.decode` calls it and owns the errors.
"""

from __future__ import annotations

from io import BytesIO
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms

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
