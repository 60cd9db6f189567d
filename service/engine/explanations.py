"""Which part of a picture answers to a text: the use case, map and drawing together.

One map at a time: the device is locked inside `SerialEncoder`, and decoded pictures are counted by
the engine's own slots. Knows nothing of HTTP, torch or the index.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from models.atomic import replace_file
from models.encoder import Encoder
from models.errors import InputError
from models.explainer import RelevanceMap, cannot_explain
from models.sources.files import name_of
from models.sources.records import Record
from models.vectors import Vectors, unit_rows
from service.engine.label_sets import LabelSet
from service.engine.queries import ImageResult, Prediction, check_text
from service.engine.shared_encoder import SerialEncoder
from service.engine.sorter import numbered, safe_name
from service.operations.timing import Stopwatch

if TYPE_CHECKING:
    from PIL.Image import Image


Decode: TypeAlias = "Callable[[bytes], Image]"
"""Bytes -> an upright RGB picture: `models.images.decode.decode_image`, or a pool's `decode`."""


def decode_here(data: bytes) -> Image:
    """`decode_image` in this thread; Pillow is loaded with the first picture."""
    from models.images.decode import decode_image

    return decode_image(data)


@dataclass(frozen=True, slots=True)
class Explanation:
    """A map and what it looks like.

    Attributes:
        map_HW: float32 [H, W], 0..1 over the whole picture, row 0 at the top; zeros where the model
            does not look.
        png: the map drawn over the picture, `width` x `height` pixels.
        score: cosine of picture and text.
        method: see `models.explainer`.
    """

    map_HW: RelevanceMap
    png: bytes
    width: int
    height: int
    score: float
    method: str
    model: str
    timings: Mapping[str, float] = field(default_factory=dict)


class Explanations:
    """Explains with one encoder pair; `slots` bounds the pictures decoded at once."""

    def __init__(
        self,
        encoder: SerialEncoder,
        slots: threading.BoundedSemaphore,
        decode: Decode | None = None,
    ) -> None:
        self._encoder = encoder
        self._decode = decode or decode_here
        self._slots = slots

    @property
    def possible(self) -> bool:
        """Whether the pair has a method."""
        return self._encoder.explanation_method is not None

    def explain(self, image: bytes, text: str) -> Explanation:
        """Where an encoded picture answers to a text.

        Raises:
            InvalidTextError, ImageError, and ModelError with code `cannot-explain`.
        """
        check_text(text)
        self.require()
        watch = Stopwatch()
        direction_D = self._encoder.embed_texts([self._encoder.prepare_text(text)])[0]
        watch.lap("embed")
        return self.explain_direction(image, direction_D, watch)

    def explain_direction(
        self, image: bytes, direction_D: Vectors, watch: Stopwatch | None = None
    ) -> Explanation:
        """As `explain`, for a direction of the shared space, e.g. a class of a label set."""
        from models.images.overlay import overlay_png, shown_size, spread

        method = self.require()
        watch = watch or Stopwatch()
        with self._slots:
            picture = self._decode(image)
            watch.lap("decode")
            prepared = self._encoder.prepare_image(picture)
            watch.lap("prepare")
            score = float(self._encoder.embed_images([prepared])[0] @ direction_D)
            map_HW = self._encoder.relevance_map(prepared, direction_D)
            watch.lap("explain")
            area = self._encoder.explained_area(*picture.size)
            png = overlay_png(picture, map_HW, area)
            width, height = shown_size(picture.size)
            # cells as large as the tower's, over the whole picture
            cells = _cells(picture.size, area, map_HW.shape)
            whole_HW = spread(map_HW, area, picture.size, cells).astype("float32")
        watch.lap("render")
        return Explanation(
            map_HW=whole_HW,
            png=png,
            width=width,
            height=height,
            score=max(-1.0, min(1.0, score)),
            method=method,
            model=self._encoder.fingerprint.model,
            timings=watch.stop(),
        )

    def require(self) -> str:
        """The method, for refusing early.

        Raises:
            ModelError: code `cannot-explain`.
        """
        method = self._encoder.explanation_method
        if method is None:
            raise cannot_explain("it has no method")
        return method


class HeatMaps:
    """Heat maps of whole sources' pictures, one each, of its most likely label, in a folder.

    The folder is made; heat maps of the same name that are there already are replaced.

    Raises:
        ModelError: code `cannot-explain`, before anything is made.
        InputError: the folder cannot be made.
    """

    def __init__(
        self, directory: Path, encoder: Encoder, label_set: LabelSet, class_CD: Vectors
    ) -> None:
        self._explanations = Explanations(SerialEncoder(encoder), threading.BoundedSemaphore(1))
        self._explanations.require()
        self._directory = directory
        self._label_set = label_set
        self._class_CD = class_CD
        self._taken: set[str] = set()
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {directory}: {error.strerror}") from error

    def draw(self, record: Record, result: ImageResult) -> Path:
        """Draw one picture's top label -> where the PNG is.

        Raises:
            InputError: it cannot be written.
        """
        assert record.image is not None, "only pictures are classified"
        assert result.predictions, "a picture that was judged has a most likely label"
        direction_D = direction_of(result.predictions[0], self._label_set, self._class_CD)
        found = self._explanations.explain_direction(record.image, direction_D)
        path = self._directory / self._free(record)
        try:
            replace_file(path, found.png)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        return path

    def _free(self, record: Record) -> str:
        """`stem.png`, or `stem-2.png` where this run has drawn another picture of that name."""
        stem = safe_name(Path(name_of(record)).stem)
        number = 1
        while numbered(f"{stem}.png", number).casefold() in self._taken:
            number += 1
        name = numbered(f"{stem}.png", number)
        self._taken.add(name.casefold())
        return name


def direction_of(prediction: Prediction, label_set: LabelSet, class_CD: Vectors) -> Vectors:
    """The direction of a predicted label, or of a tree's node: the middle of its leaves; [D]."""
    tree, path = label_set.tree, prediction.path
    if tree is None or path is None:
        rows = [label_set.labels.index(prediction.label)]
    else:
        rows = [at for at, leaf in enumerate(tree.leaves) if leaf[: len(path)] == path]
    middle_D: Vectors = unit_rows(class_CD[rows].mean(axis=0)[None])[0]
    return middle_D


def _cells(
    size: tuple[int, int], area: tuple[float, float, float, float], cells: tuple[int, ...]
) -> tuple[int, int]:
    """Columns and rows for a whole picture in steps of the map's cells, at most 256 each."""
    across = size[0] / (area[2] - area[0]) * cells[1]
    down = size[1] / (area[3] - area[1]) * cells[0]
    return max(1, min(256, round(across))), max(1, min(256, round(down)))
