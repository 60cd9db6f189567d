"""COCO annotations: captions, or categories of instances, joined to their images.

The document lists images and annotations apart. A first walk notes where each annotation stands,
in 24 bytes; a second goes through the images and reads theirs back from the file. So a document of
gigabytes is joined without being loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from models.errors import SourceError
from models.sources.fields import FieldError
from models.sources.json_stream import JsonStream, count_where, images
from models.sources.lines import open_text
from models.sources.manifest import Found

_MAX_CATEGORIES: Final = 100_000
_ATTRIBUTES: Final = ("width", "height", "license", "date_captured", "coco_url", "flickr_url")


class CocoFormat:
    """Captions of an image become its texts; one category all its instances share, its label.

    `attributes.categories` lists all of an image's categories, `attributes.coco_id` is its id.
    """

    kind = "coco"

    def check(self, path: str) -> int:
        file, size = open_text(path)
        file.close()
        return size

    def count(self, path: str) -> int | None:
        return count_where(path, images)

    def rows(self, path: str) -> Iterator[Found]:
        with open_text(path)[0] as file:
            index = _Annotations()
            yield from index.collect(JsonStream(file, path))
            index.sort()
            file.seek(0)
            for number, image in images(JsonStream(file, path)):
                try:
                    yield f"image={number}", index.row(image, file)
                except FieldError as error:
                    yield f"image={number}", error
            for number in index.orphans():
                detail = "the image it belongs to is not in the document"
                yield f"annotation={number}", FieldError("image-unknown", detail)


@dataclass(slots=True)
class _Annotations:
    """Where the annotations of each image stand in the file, by a digest of the image's id."""

    owners: array[int] = field(default_factory=lambda: array("Q"))
    places: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("Q"))
    categories: dict[str, str] = field(default_factory=dict)
    order_N: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    sorted_N: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    used_N: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def collect(self, stream: JsonStream) -> Iterator[Found]:
        """Note every annotation and category; yields what is wrong with them."""
        for key in stream.fields():
            if key == "annotations":
                for number, (one, place, length) in enumerate(stream.elements(), start=1):
                    owner = one.get("image_id") if isinstance(one, dict) else None
                    if not isinstance(owner, int | str) or isinstance(owner, bool):
                        detail = "an annotation without an image_id"
                        yield f"annotation={number}", FieldError("bad-json", detail)
                        owner = None
                    self.owners.append(0 if owner is None else _digest(owner))
                    self.places.append(place)
                    self.lengths.append(length)
            elif key == "categories" and stream.first() == "[":
                for one, _, _ in stream.elements():
                    if isinstance(one, dict) and isinstance(one.get("name"), str):
                        if len(self.categories) >= _MAX_CATEGORIES:
                            raise SourceError("too many categories", code="source-damaged")
                        self.categories[str(one.get("id"))] = one["name"]
            else:
                stream.skip()
        stream.end()

    def sort(self) -> None:
        owners_N = np.frombuffer(self.owners, dtype=np.uint64)
        self.order_N = np.argsort(owners_N, kind="stable")
        self.sorted_N = owners_N[self.order_N]
        self.used_N = self.sorted_N == 0  # those were reported already

    def row(self, image: Any, file: BinaryIO) -> Mapping[str, Any]:
        """The row of one image, as a JSONL manifest would have it."""
        if not isinstance(image, dict):
            raise FieldError("bad-json", "not an object")
        name, number = image.get("file_name"), image.get("id")
        if not isinstance(name, str):
            raise FieldError("bad-path", "file_name must be text")
        if not isinstance(number, int | str):
            raise FieldError("bad-id", "an image's id must be a number or text")
        digest = np.uint64(_digest(number))
        first, last = (int(np.searchsorted(self.sorted_N, digest, side)) for side in _SIDES)
        self.used_N[first:last] = True
        captions, categories = [], []
        for position in self.order_N[first:last].tolist():
            data = os.pread(file.fileno(), self.lengths[position], self.places[position])
            try:
                one = json.loads(data)
            except ValueError as error:
                raise FieldError("file-changed", "the document changed meanwhile") from error
            if not isinstance(one, dict):
                raise FieldError("file-changed", "the document changed meanwhile")
            if isinstance(one.get("caption"), str):
                captions.append(one["caption"])
            elif (category := str(one.get("category_id"))) in self.categories:
                categories.append(self.categories[category])
        row = {k: image[k] for k in _ATTRIBUTES if isinstance(image.get(k), int | str)}
        distinct = sorted(set(categories))
        if distinct:
            row["categories"] = distinct
        if len(distinct) == 1:
            row["label"] = distinct[0]
        return {"image": name, "captions": captions, "coco_id": number, **row}

    def orphans(self) -> Iterator[int]:
        """Numbers of the annotations whose image was not there, in file order."""
        for at in np.sort(self.order_N[~self.used_N]):
            yield int(at) + 1


_SIDES: Final = ("left", "right")


def _digest(owner: int | str) -> int:
    """8 bytes for an id of either type, never 0; 5 and "5" are one image."""
    digest = hashlib.blake2b(str(owner).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
