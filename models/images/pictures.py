"""One encoded picture into all that an index keeps of it, in one decoding.

The pixels that the model takes, a digest that tells pictures apart, a thumbnail, the size: made
together where the picture is decoded, which may be a process of its own
(`models.images.pool`). Plain bytes go in and come out, so it can travel; it knows no model
beyond its geometry.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from models.images.decode import encode_thumbnail
from models.images.geometry import FILTERS, RESIZES, Geometry, Pixels

FORM: Final = struct.Struct("<IIBBBI?")
"""`Wanted` on its way to a worker."""
_STRIP: Final = 256
_DRAFT_MARGIN: Final = 2
"""A reduced JPEG keeps at least so many times the side that the model takes."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to make of a picture.

    Attributes:
        geometry: the model's; None leaves the picture whole.
        thumbnail_side: the longer side of a JPEG preview in pixels; None makes none.
        draft: let JPEGs be decoded at a half, a quarter or an eighth where that leaves twice what
            the model takes. Faster for photographs above two megapixels, and not quite the same
            embedding: see docs/indexing.md.
    """

    geometry: Geometry | None = None
    thumbnail_side: int | None = None
    draft: bool = False

    @property
    def least(self) -> int | None:
        """The shorter side in pixels that a reduced JPEG keeps; None where none may be reduced."""
        if not self.draft or self.geometry is None:
            return None
        return _DRAFT_MARGIN * max(
            self.geometry.width, self.geometry.height, self.thumbnail_side or 0
        )

    def encode(self) -> bytes:
        """For the way to a worker."""
        one = self.geometry or Geometry(0, 0)
        return FORM.pack(
            one.width,
            one.height,
            RESIZES.index(one.resize),
            FILTERS.index(one.filter),
            one.fill,
            self.thumbnail_side or 0,
            self.draft,
        )

    @classmethod
    def decode(cls, data: bytes) -> Wanted:
        """Inverse of `encode`."""
        width, height, resize, name, fill, side, draft = FORM.unpack(data)
        geometry = Geometry(width, height, RESIZES[resize], FILTERS[name], fill) if width else None
        return cls(geometry, side or None, draft)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was made of a picture.

    Attributes:
        width, height: of the upright picture in full.
        digest: see `pixel_digest`; of the reduced picture where a JPEG was reduced.
        pixels: fitted to the geometry; of the whole picture where none was named.
        thumbnail: JPEG, if wanted.
    """

    width: int
    height: int
    digest: bytes
    pixels: Pixels
    thumbnail: bytes | None


def see(image: Image.Image, size: tuple[int, int], wanted: Wanted) -> Seen:
    """Make what is wanted of a decoded picture; `size` is what it had before any reduction."""
    fitted = image if wanted.geometry is None else wanted.geometry.fit(image)
    side = wanted.thumbnail_side
    return Seen(
        width=size[0],
        height=size[1],
        digest=pixel_digest(image),
        pixels=np.asarray(fitted),
        thumbnail=None if side is None else encode_thumbnail(image, side=side),
    )


def pixel_digest(image: Image.Image) -> bytes:
    """16 bytes that tell pictures apart by size and pixels, not by file format (XXH3)."""
    from xxhash import xxh3_128

    digest = xxh3_128(f"{image.mode} {image.width} {image.height} ".encode())
    for top in range(0, image.height, _STRIP):  # strips, so as not to hold the pixels twice
        bottom = min(top + _STRIP, image.height)
        digest.update(image.crop((0, top, image.width, bottom)).tobytes())
    return digest.digest()
