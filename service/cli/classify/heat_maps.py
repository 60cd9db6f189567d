"""`diptych classify --explain DIR`: one heat map per picture, of its most likely label."""

from __future__ import annotations

import threading
from pathlib import Path

import click

from models.encoder import Encoder
from models.sources.records import Record
from service.cli.classify.inputs import member_name, own_file
from service.engine.classifier import Classifier
from service.engine.explanations import Explanations, direction_of
from service.engine.label_sets import LabelSet
from service.engine.queries import ImageResult
from service.engine.shared_encoder import SerialEncoder
from service.engine.sorter import numbered, safe_name


class HeatMaps:
    """Draws into a folder, which is made; existing heat maps of the same name are replaced.

    Raises:
        ModelError: code `cannot-explain`, before anything is made.
    """

    def __init__(
        self, directory: Path, encoder: Encoder, classifier: Classifier, label_set: LabelSet
    ) -> None:
        self._explanations = Explanations(SerialEncoder(encoder), threading.BoundedSemaphore(1))
        self._explanations.require()
        self._directory = directory
        self._label_set = label_set
        self._class_CD = classifier.class_directions(label_set)
        self._taken: set[str] = set()
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise click.UsageError(f"cannot make {directory}: {error.strerror}") from error

    def draw(self, record: Record, result: ImageResult) -> str:
        """Draw one picture's top label -> the path of the PNG."""
        assert record.image is not None, "only pictures are classified"
        assert result.predictions, "a picture that was judged has a most likely label"
        direction_D = direction_of(result.predictions[0], self._label_set, self._class_CD)
        found = self._explanations.explain_direction(record.image, direction_D)
        path = self._directory / self._free(record)
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_bytes(found.png)
            partial.replace(path)
        except OSError as error:
            raise click.UsageError(f"cannot write {path}: {error.strerror}") from error
        return str(path)

    def _free(self, record: Record) -> str:
        """`stem.png`, or `stem-2.png` where this run has drawn another picture of that name."""
        own = own_file(record)
        stem = safe_name(Path(member_name(record) if own is None else own.name).stem)
        number = 1
        while numbered(f"{stem}.png", number).casefold() in self._taken:
            number += 1
        name = numbered(f"{stem}.png", number)
        self._taken.add(name.casefold())
        return name
