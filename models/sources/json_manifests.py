"""JSON documents as manifests: Karpathy's splits, COCO's annotations, or an array of objects.

What a document is, its keys tell. Documents are walked, never loaded: see `json_stream.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from models.errors import SourceError
from models.sources.fields import FieldError
from models.sources.json_stream import JsonStream, count_where, images
from models.sources.lines import open_text
from models.sources.manifest import Format, Found


class ArrayFormat:
    """`[{"image": ..., "caption": ...}, ...]`: the rows of a JSONL manifest in one array."""

    kind = "json"

    def check(self, path: str) -> int:
        return _size(path)

    def count(self, path: str) -> int | None:
        return count_where(path, lambda stream: (one for one, _, _ in stream.elements()))

    def rows(self, path: str) -> Iterator[Found]:
        with open_text(path)[0] as file:
            stream = JsonStream(file, path)
            for number, (row, _, _) in enumerate(stream.elements(), start=1):
                good = isinstance(row, dict)
                yield f"row={number}", row if good else FieldError("bad-json", "not an object")
            stream.end()


class KarpathyFormat:
    """`{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]}`."""

    kind = "karpathy"

    def __init__(self, splits: Sequence[str] = ()) -> None:
        self._splits = frozenset(splits)

    def check(self, path: str) -> int:
        return _size(path)

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
                except FieldError as error:
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


def _karpathy_row(image: Any) -> Mapping[str, Any]:
    if not isinstance(image, dict):
        raise FieldError("bad-json", "not an object")
    name, folder, sentences = (image.get(k) for k in ("filename", "filepath", "sentences"))
    if not isinstance(name, str) or not isinstance(folder, str | None):
        raise FieldError("bad-path", "filename and filepath must be text")
    if not isinstance(sentences, list):
        raise FieldError("bad-caption", "sentences must be a list")
    captions = [one.get("raw") if isinstance(one, dict) else None for one in sentences]
    if not all(isinstance(one, str) for one in captions):
        raise FieldError("bad-caption", "a sentence without its raw text")
    return {
        "image": f"{folder.rstrip('/')}/{name}" if folder else name,
        "captions": captions,
        # nothing nested: tokens and sentence ids only serve those who made the split
        **{
            k: image[k] for k in ("split", "imgid", "cocoid") if isinstance(image.get(k), str | int)
        },
    }


def json_format(path: str, splits: Sequence[str], coco: Format) -> Format:
    """The format of a JSON document, from its keys and the first of its images.

    Raises:
        SourceError: `source-damaged`, or it is none of these formats.
    """
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
                    return _only_without_splits(coco, path, splits)
                if key != "images" or stream.first() != "[":
                    stream.skip()
                    continue
                first = next(stream.elements(), None)
                if first is not None and isinstance(first[0], dict) and "sentences" in first[0]:
                    return KarpathyFormat(splits)
                return _only_without_splits(coco, path, splits)
    raise SourceError(
        f"{path} is no JSON that is read here",
        hint="COCO captions, Karpathy splits, or an array of objects",
    )


def _only_without_splits(form: Format, path: str, splits: Sequence[str]) -> Format:
    if splits:
        raise SourceError(f"{path} ({form.kind}) has no splits; leave #{','.join(splits)} away")
    return form


def _size(path: str) -> int:
    file, size = open_text(path)
    file.close()
    return size
