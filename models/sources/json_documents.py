"""JSON documents as manifests: Karpathy's splits, COCO's annotations, or an array of objects.

What a document is, its keys tell (`json_format`, which `open_source` asks). Documents are walked,
never loaded: see `models.sources.json_stream`.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from models.errors import SourceError
from models.sources.fields import ReadOptions
from models.sources.files import open_text
from models.sources.json_stream import JsonStream, count_where, images
from models.sources.manifest import Format, Found
from models.sources.records import RefusedError


def json_format(path: str, options: ReadOptions) -> Format:
    """The format of a JSON document, from its keys and the first of its images.

    Raises:
        SourceError: `source-damaged`, or it is none of these formats.
    """
    splits = options.splits
    with open_text(path)[0] as file:
        stream = JsonStream(file, path)
        start = stream.first()
        if start == "":
            raise SourceError(f"{path} is empty", code="source-empty")
        if start == "[":
            return _only_without_splits(ArrayFormat(), path, splits)
        if start == "{":
            for key in stream.fields():
                if key == "annotations":
                    return _only_without_splits(CocoFormat(), path, splits)
                if key != "images" or stream.first() != "[":
                    stream.skip()
                    continue
                first = next(stream.elements(), None)
                if first is not None and isinstance(first[0], dict) and "sentences" in first[0]:
                    return KarpathyFormat(splits)
                return _only_without_splits(CocoFormat(), path, splits)
    raise SourceError(
        f"{path} is no JSON that is read here",
        hint="COCO captions, Karpathy splits, or an array of objects",
    )


def _only_without_splits(form: Format, path: str, splits: Sequence[str]) -> Format:
    if splits:
        raise SourceError(f"{path} ({form.kind}) has no splits; leave #{','.join(splits)} away")
    return form


class ArrayFormat(Format):
    """`[{"image": ..., "caption": ...}, ...]`: the rows of a JSONL manifest in one array."""

    kind = "json"

    def count(self, path: str) -> int | None:
        return count_where(path, lambda stream: (one for one, _, _ in stream.elements()))

    def rows(self, path: str) -> Iterator[Found]:
        with open_text(path)[0] as file:
            stream = JsonStream(file, path)
            for number, (row, _, _) in enumerate(stream.elements(), start=1):
                good = isinstance(row, dict)
                yield f"row={number}", row if good else RefusedError("bad-json", "not an object")
            stream.end()


class KarpathyFormat(Format):
    """`{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}`."""

    kind = "karpathy"

    def __init__(self, splits: Sequence[str] = ()) -> None:
        self._splits = frozenset(splits)

    def count(self, path: str) -> int | None:
        return count_where(
            path, lambda stream: filter(self._wanted, (i for _, i in images(stream)))
        )

    def rows(self, path: str) -> Iterator[Found]:
        seen: dict[str, None] = {}
        with open_text(path)[0] as file:
            for number, image in images(JsonStream(file, path)):
                split = image.get("split") if isinstance(image, dict) else None
                if isinstance(split, str) and len(seen) < _MAX_SPLITS:
                    seen[split] = None
                if not self._wanted(image):
                    continue
                try:
                    yield f"image={number}", _karpathy_row(image)
                except RefusedError as error:
                    yield f"image={number}", error
        if missing := self._splits - seen.keys():
            raise SourceError(
                f"{path} has no split {', '.join(sorted(missing))}",
                code="split-missing",
                hint=f"its splits are {', '.join(seen)}",
            )

    def _wanted(self, image: Any) -> bool:
        """Whether an image is of a chosen split, or not even an object, which is to be said."""
        return not self._splits or not isinstance(image, dict) or image.get("split") in self._splits


_MAX_SPLITS: Final = 100
_KARPATHY_ATTRIBUTES: Final = ("split", "imgid", "cocoid")


def _karpathy_row(image: Any) -> Mapping[str, Any]:
    if not isinstance(image, dict):
        raise RefusedError("bad-json", "not an object")
    name, folder, sentences = (image.get(k) for k in ("filename", "filepath", "sentences"))
    if not isinstance(name, str) or not isinstance(folder, str | None):
        raise RefusedError("bad-path", "filename and filepath must be text")
    if not isinstance(sentences, list):
        raise RefusedError("bad-caption", "sentences must be a list")
    captions = [one.get("raw") if isinstance(one, dict) else None for one in sentences]
    if not all(isinstance(one, str) for one in captions):
        raise RefusedError("bad-caption", "a sentence without its raw text")
    return {
        "image": f"{folder.rstrip('/')}/{name}" if folder else name,
        "captions": captions,
        # nothing nested: tokens and sentence ids only serve those who made the split
        **{k: image[k] for k in _KARPATHY_ATTRIBUTES if isinstance(image.get(k), str | int)},
    }


_MAX_CATEGORIES: Final = 100_000
_COCO_ATTRIBUTES: Final = ("width", "height", "license", "date_captured", "coco_url", "flickr_url")


class CocoFormat(Format):
    """Captions of an image become its texts; one category all its instances share, its label.

    `attributes.categories` lists all of an image's categories, `attributes.coco_id` is its id.

    The document lists images and annotations apart. A first walk notes where each annotation
    stands, in 24 bytes; a second goes through the images and reads theirs back from the file. So a
    document of gigabytes is joined without being loaded.
    """

    kind = "coco"

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
                except RefusedError as error:
                    yield f"image={number}", error
            for number in index.orphans():
                detail = "the image it belongs to is not in the document"
                yield f"annotation={number}", RefusedError("image-unknown", detail)


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
                        yield f"annotation={number}", RefusedError("bad-json", detail)
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
            raise RefusedError("bad-json", "not an object")
        name, number = image.get("file_name"), image.get("id")
        if not isinstance(name, str):
            raise RefusedError("bad-path", "file_name must be text")
        if not isinstance(number, int | str):
            raise RefusedError("bad-id", "an image's id must be a number or text")
        digest = np.uint64(_digest(number))
        first, last = (int(np.searchsorted(self.sorted_N, digest, side)) for side in _SIDES)
        self.used_N[first:last] = True
        captions, categories = [], []
        for position in self.order_N[first:last].tolist():
            data = os.pread(file.fileno(), self.lengths[position], self.places[position])
            try:
                one = json.loads(data)
            except ValueError as error:
                raise RefusedError("file-changed", "the document changed meanwhile") from error
            if not isinstance(one, dict):
                raise RefusedError("file-changed", "the document changed meanwhile")
            if isinstance(one.get("caption"), str):
                captions.append(one["caption"])
            elif (category := str(one.get("category_id"))) in self.categories:
                categories.append(self.categories[category])
        row = {k: image[k] for k in _COCO_ATTRIBUTES if isinstance(image.get(k), int | str)}
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
