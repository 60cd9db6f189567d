"""Good pictures of every kind with bytes changed, cut and repeated, as a source of records."""

from __future__ import annotations

import random
from collections.abc import Iterator

from bad_images import exif, frames, picture, saved
from mutated_sources import mutate

from models.sources.records import Plan, Record, Source


def seeds() -> list[bytes]:
    photo = picture()
    return [
        saved(photo, "JPEG", quality=90),
        saved(photo, "JPEG", progressive=True, exif=exif()),
        saved(photo.convert("CMYK"), "JPEG"),
        saved(photo, "PNG"),
        saved(photo.convert("L").convert("I;16"), "PNG"),
        saved(photo.convert("P"), "PNG", transparency=3),
        saved(photo, "WEBP"),
        saved(photo, "WEBP", lossless=True),
        saved(photo, "BMP"),
        saved(photo, "TIFF", compression="tiff_lzw"),
        saved(photo, "TIFF"),
        frames(3, "GIF", side=32),
    ]


class MutatedPictures(Source):
    """Every picture is a mutant of one of the seeds; the same seed gives the same mutants."""

    kind = "mutants"
    name = "mutants"

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed

    def count(self) -> int:
        return self._count

    def plan(self) -> Plan:
        return Plan(self._count, self._count, None, None, exact=True)

    def __iter__(self) -> Iterator[Record]:
        draw, whole = random.Random(self._seed), seeds()
        for number in range(self._count):
            data = mutate(whole[number % len(whole)], draw)
            yield Record(f"m{number:06}", f"file:///mutants/{number}", data)
