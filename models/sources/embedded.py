"""A source, embedded once: picture vectors, captions with their owners, labels.

Knows encoders and sources, no metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from models.encoder import Encoder, PreparedImage
from models.sources.prepared import prepare_rows
from models.sources.records import Reject, Source
from models.vectors import Vectors

BATCH = 64


@dataclass(slots=True)
class Collected:
    """What a source held; row i of `image_ND` is picture i."""

    image_ND: Vectors
    captions: list[tuple[int, str, str]] = field(default_factory=list)
    """(picture, language, text)"""
    labels: list[str | None] = field(default_factory=list)
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
) -> Collected:
    """Embed every picture of the sources; captions and labels are kept as text.

    Records without a picture are passed over: there is nothing to retrieve.
    """
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
                collected.labels.append(record.label)
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
