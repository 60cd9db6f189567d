"""A batch of prepared records into rows to store, and what was refused of it on the way.

It knows prepared records and an encoder, nothing of sources, segments or commits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from indexer.format.segment import NewRow
from indexer.ingest.prepare import Prepared, PreparedCaption
from models.encoder import Encoder, embed_each
from models.sources.records import Reject
from models.vectors import Vectors

Rows: TypeAlias = list[tuple[Vectors, NewRow]]
"""Vectors [D] and what they are of."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Rows to store, the records they are of, and the records that got no vector."""

    images: Rows
    texts: Rows
    kept: list[Prepared]
    refused: list[Reject]


def embed_batch(encoder: Encoder, batch: list[Prepared], texts_at_once: int) -> Embedded:
    """Embed pictures and captions; a caption without a vector is listed in its record's rejects."""
    pictures = [one for one in batch if one.picture is not None]
    vectors = embed_each(encoder.embed_images, [one.picture for one in pictures])
    images: Rows = []
    refused: dict[str, Reject] = {}
    for one, vector_D in zip(pictures, vectors, strict=True):
        if vector_D is None:
            refused[one.record] = _no_vector(one, one.record)
            continue
        assert one.item is not None
        new = NewRow(one.record, one.item, one.thumbnail, one.values, one.texts(), one.facts)
        images.append((vector_D, new))
    kept = [one for one in batch if one.record not in refused]
    texts = _embed_captions(encoder, kept, texts_at_once)
    return Embedded(images, texts, kept, list(refused.values()))


def _embed_captions(encoder: Encoder, batch: list[Prepared], at_once: int) -> Rows:
    captions: list[tuple[Prepared, PreparedCaption]] = [
        (one, caption) for one in batch for caption in one.captions
    ]
    rows: Rows = []
    for start in range(0, len(captions), at_once):
        part = captions[start : start + at_once]
        vectors = embed_each(encoder.embed_texts, [caption.tokens for _, caption in part])
        for (one, caption), vector_D in zip(part, vectors, strict=True):
            if vector_D is None:
                one.rejects.append(_no_vector(one, caption.item.id))
            else:
                rows.append((vector_D, NewRow(one.record, caption.item, values=one.values)))
    return rows


def _no_vector(one: Prepared, key: str) -> Reject:
    return Reject(one.source, key, "embedding-invalid", "the model gave it no usable vector")
