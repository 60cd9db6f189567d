"""Whole sources of pictures classified: read, embedded, judged, and label sets learnt from them.

`diptych classify` is made of it, and so is whatever else classifies more than a request holds.
Judging is `service.engine.classifier`'s; where judged pictures go is `service.engine.sorter`'s.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from models.encoder import Encoder, PreparedImage
from models.errors import ImageError, InvalidLabelsError
from models.images.decode import ImageLimits, decode_image
from models.labels.calibration import Calibration, calibrate, calibrate_each
from models.sources import is_source, open_source
from models.sources.embedded import prepare_rows
from models.sources.files import file_uri
from models.sources.records import Plan, Record, Reject, Row, Source, folder_of
from models.vectors import Vectors
from service.engine.classifier import Classifier
from service.engine.label_set_store import LabelSetStore
from service.engine.label_sets import LabelSet
from service.engine.queries import ImageResult

_BATCH: Final = 32

Advance: TypeAlias = Callable[[int], object]
"""Called with how many pictures have been read since the last call."""


def _unseen(_: int) -> None:
    """For whoever shows no progress."""


class FileSource(Source):
    """A picture named by itself; a missing one is a reject, not the end of the run."""

    kind = "file"

    def __init__(self, name: str) -> None:
        self.name = name

    def count(self) -> int:
        return 1

    def plan(self) -> Plan:
        try:
            size = Path(self.name).stat().st_size
        except OSError:
            size = 0
        return Plan(rows=1, pictures=1, picture_bytes=size, source_bytes=size, exact=True)

    def __iter__(self) -> Iterator[Row]:
        # one byte more than allowed is enough for the decoder to refuse it
        limit = ImageLimits().max_bytes + 1
        path = Path(self.name)
        try:
            if not path.is_file():
                # a FIFO would block for ever
                yield Reject(self.name, self.name, "image-unreadable", "not a file")
                return
            with path.open("rb") as file:
                data = file.read(limit)
        except OSError as error:
            detail = f"cannot be read: {error.strerror}"
            yield Reject(self.name, self.name, "image-unreadable", detail)
            return
        absolute = os.path.abspath(self.name)  # noqa: PTH100  # without following links
        yield Record(self.name, file_uri(os.fsencode(absolute)), data)


def open_pictures(specs: Sequence[str], label_field: str | None = None) -> list[Source]:
    """A source for each name: a picture's file, a folder, shards or a manifest.

    Raises:
        SourceError: shards or a manifest that cannot be opened.
    """
    return [
        open_source(spec, label_field=label_field) if is_source(spec) else FileSource(spec)
        for spec in specs
    ]


def label_of(record: Record) -> str | None:
    """The class a source gives a picture: its label, or the name of the folder it is in."""
    if record.label is not None:
        return record.label.strip()
    return folder_of(record.key)


@dataclass(frozen=True, slots=True)
class EmbeddedPicture:
    """One picture of a source, embedded, or the error that refused it.

    Attributes:
        name: what people call it: its path where it has one of its own.
        vector_D: its unit vector, float32.
    """

    name: str
    record: Record | None = None
    vector_D: Vectors | None = None
    error: ImageError | None = None


@dataclass(slots=True)
class LabelledPictures:
    """Embedded pictures with the labels their sources give them.

    Attributes:
        refused: (picture, why) of those that cannot be read or have no label.
    """

    vectors: list[Vectors] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def require(self) -> None:
        """Raises InvalidLabelsError: there is not one."""
        if not self.labels:
            raise InvalidLabelsError("the source has no labelled pictures")


class SourceClassifier:
    """Classifies every picture of sources with one encoder pair.

    Attributes:
        classifier: judges the vectors, and has the stored label sets.
    """

    def __init__(self, encoder: Encoder, store: LabelSetStore | None = None) -> None:
        self.encoder = encoder
        self.classifier = Classifier(
            encoder, lambda data, _=None: encoder.prepare_image(decode_image(data)), store
        )

    def classify(
        self,
        sources: Sequence[Source],
        label_set: LabelSet,
        *,
        top_k: int | None = None,
        level: int | None = None,
        advance: Advance = _unseen,
    ) -> Iterator[tuple[EmbeddedPicture, ImageResult]]:
        """Every picture of the sources in order, judged; one that is refused carries its error.

        Args:
            top_k, level: as `Classifier.classify`.

        Raises:
            InputError, LabelSetError: see `Classifier.check`.
        """
        for batch in self.embedded(sources, advance):
            vectors = [picture.vector_D for picture in batch if picture.vector_D is not None]
            results: Iterator[ImageResult] = iter(())
            if vectors:
                results = iter(
                    self.classifier.results(np.stack(vectors), label_set, top_k=top_k, level=level)
                )
            for picture in batch:
                judged = picture.error is None
                yield picture, next(results) if judged else ImageResult(error=picture.error)

    def with_examples(
        self,
        label_set: LabelSet,
        sources: Sequence[Source],
        shots: int | None = None,
        *,
        advance: Advance = _unseen,
    ) -> LabelSet:
        """The label set with the first `shots` pictures of each of its labels in the sources.

        Raises:
            InvalidLabelsError: not one picture has one of the labels.
        """
        position = {label: at for at, label in enumerate(label_set.labels)}
        rows: list[Vectors] = []
        targets: list[int] = []
        taken: Counter[int] = Counter()
        for batch in self.embedded(sources, advance):
            for picture in batch:
                if picture.record is None or picture.vector_D is None:
                    continue
                at = position.get(label_of(picture.record) or "")
                if at is not None and (shots is None or taken[at] < shots):
                    taken[at] += 1
                    targets.append(at)
                    rows.append(picture.vector_D)
        if not rows:
            raise InvalidLabelsError(
                "no example picture has one of the labels",
                hint="name the field they are in with --label-field, or put them in folders",
            )
        return self.classifier.with_vectors(label_set, np.stack(rows), targets)

    def labelled(
        self, sources: Sequence[Source], *, advance: Advance = _unseen
    ) -> LabelledPictures:
        """The pictures of the sources that can be read and have a label."""
        found = LabelledPictures()
        for batch in self.embedded(sources, advance):
            for picture in batch:
                label = None if picture.record is None else label_of(picture.record)
                if picture.vector_D is None or label is None:
                    why = picture.error.message if picture.error else "no label; see --label-field"
                    found.refused.append((picture.name, why))
                else:
                    found.vectors.append(picture.vector_D)
                    found.labels.append(label)
        return found

    def calibrate(
        self, label_set: LabelSet, pictures: LabelledPictures
    ) -> tuple[Calibration, LabelSet, int]:
        """Find the temperature, and the offset of labels judged one by one -> (what they are worth,
        the label set with them, pictures left out because their label is none of the set's). The
        set's own stay where they are no worse.

        Raises:
            InvalidLabelsError: too few pictures, or none.
            InputError, LabelSetError: see `Classifier.check`.
        """
        pictures.require()
        plain = replace(label_set, temperature=None, offset=None)
        self.classifier.check(plain)
        position = plain.positions()
        known = [at for at, label in enumerate(pictures.labels) if label in position]
        vectors_BD = np.stack(pictures.vectors)[known]
        targets = [position[pictures.labels[at]] for at in known]
        current = label_set.temperature or 1.0
        if plain.multi_label:
            margins_BC = self.classifier.margins(vectors_BD, plain)
            both = current, label_set.offset or 0.0
            result = calibrate_each(margins_BC, targets, current=both)
        else:
            logits_BC = self.classifier.logits(vectors_BD, plain)
            result = calibrate(logits_BC, targets, current=current)
        left_out = len(pictures.labels) - len(known)
        calibrated = replace(plain, temperature=result.temperature, offset=result.offset)
        return result, calibrated, left_out

    def embedded(
        self, sources: Sequence[Source], advance: Advance = _unseen
    ) -> Iterator[list[EmbeddedPicture]]:
        """Every picture of the sources in order, a batch at a time; records of text only are left
        out."""
        waiting: list[tuple[EmbeddedPicture, PreparedImage | None]] = []
        for source in sources:
            for ready in prepare_rows(source, self.encoder.prepare_image, source=source.name):
                if isinstance(ready, Reject):
                    error = ImageError(ready.detail, code=ready.code)
                    waiting.append((EmbeddedPicture(_shown(source, ready.key), error=error), None))
                elif ready[1] is not None:
                    waiting.append(
                        (EmbeddedPicture(_shown(source, ready[0].key), ready[0]), ready[1])
                    )
                if len(waiting) == _BATCH:
                    yield self._embed(waiting)
                    advance(len(waiting))
                    waiting = []
        if waiting:
            yield self._embed(waiting)
            advance(len(waiting))

    def _embed(
        self, waiting: Sequence[tuple[EmbeddedPicture, PreparedImage | None]]
    ) -> list[EmbeddedPicture]:
        prepared = [image for _, image in waiting if image is not None]
        rows = iter(self.encoder.embed_images(prepared))
        return [
            picture if image is None else replace(picture, vector_D=next(rows))
            for picture, image in waiting
        ]


def _shown(source: Source, key: str) -> str:
    return str(Path(source.name) / key) if source.keys_are_paths else key
