"""Rows of a source made ready for a model: decoded ahead in threads, or embedded whole.

`prepare_rows` serves whoever trains or measures on pictures, `collect` whoever needs all vectors of
a source at once. It knows the decoder and encoders, no metric. Pillow releases the interpreter lock
while it decodes and resizes, so threads are enough.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from PIL.Image import Image

from models.encoder import Encoder, PreparedImage
from models.errors import ImageError
from models.images.decode import decode_image
from models.sources.fields import group_of
from models.sources.records import Record, Reject, Row, Source, folder_of
from models.vectors import Vectors

BATCH = 64

Ready: TypeAlias = tuple[Record, PreparedImage | None]
"""A record and its prepared picture; None for a record of text only."""


def prepare_rows(
    rows: Iterable[Row],
    prepare: Callable[[Image], PreparedImage],
    *,
    source: str,
    workers: int = 2,
    ahead: int = 64,
) -> Iterator[Ready | Reject]:
    """Decode and prepare the pictures of `rows`; at most `ahead` wait in memory.

    A picture that is refused becomes a `Reject` in its place.
    """

    def work(row: Row) -> Ready | Reject:
        if isinstance(row, Reject):
            return row
        if row.image is None:
            return row, None
        try:
            return row, prepare(decode_image(row.image))
        except ImageError as error:
            return Reject(source, row.key, error.code, error.message)

    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Ready | Reject]] = deque()
        try:
            for row in rows:
                waiting.append(pool.submit(work, row))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@dataclass(slots=True)
class Collected:
    """What a source held; row i of `image_ND` is picture i."""

    image_ND: Vectors
    captions: list[tuple[int, str, str]] = field(default_factory=list)
    """(picture, language, text)"""
    labels: list[str | None] = field(default_factory=list)
    contents: list[int] = field(default_factory=list)
    """A number for the bytes of each picture (see `group_of`); empty where nobody knows."""
    rejects: list[Reject] = field(default_factory=list)

    def languages(self) -> list[str]:
        return sorted({language for _, language, _ in self.captions})

    def of_language(self, language: str | None) -> tuple[list[str], list[int]]:
        """(texts, owners) of one language, or of all together for None."""
        chosen = [(text, owner) for owner, tag, text in self.captions if language in (None, tag)]
        return [text for text, _ in chosen], [owner for _, owner in chosen]


def collect(
    sources: Sequence[Source],
    encoder: Encoder,
    *,
    on_picture: Callable[[], object] | None = None,
    class_folders: bool = True,
) -> Collected:
    """Embed every picture of the sources; captions and labels are kept as text.

    Records without a picture are passed over: there is nothing to retrieve.

    Args:
        class_folders: where no record at all has a label, and pictures lie in two folders or more,
            the folders' names are the labels.
    """
    folders: list[str | None] = []
    vectors: list[Vectors] = []
    collected = Collected(np.zeros((0, encoder.dim), dtype=np.float32))

    def pictures() -> Iterator[PreparedImage]:
        for source in sources:
            for ready in prepare_rows(source, encoder.prepare_image, source=source.name):
                if on_picture is not None:
                    on_picture()
                if isinstance(ready, Reject):
                    collected.rejects.append(ready)
                    continue
                record, picture = ready
                if picture is None:
                    continue
                owner = len(collected.labels)
                assert record.image is not None
                collected.labels.append(record.label)
                folders.append(folder_of(record.key))
                collected.contents.append(group_of(record.image))
                collected.captions += [
                    (owner, language, text)
                    for language, texts in record.texts.items()
                    for text in texts
                ]
                yield picture

    batch: list[PreparedImage] = []
    for picture in pictures():
        batch.append(picture)
        if len(batch) == BATCH:
            vectors.append(encoder.embed_images(batch))
            batch = []
    if batch:
        vectors.append(encoder.embed_images(batch))
    if class_folders and not any(collected.labels) and len(set(folders) - {None}) > 1:
        collected.labels = folders
    if vectors:
        collected.image_ND = np.concatenate(vectors)
    return collected


def embed_texts(encoder: Encoder, texts: Sequence[str]) -> Vectors:
    """float32 [N, D], in batches."""
    rows = [np.zeros((0, encoder.dim), dtype=np.float32)]
    for at in range(0, len(texts), BATCH):
        prepared = [encoder.prepare_text(text) for text in texts[at : at + BATCH]]
        rows.append(encoder.embed_texts(prepared))
    return np.concatenate(rows)
