"""A record on its way into an index: `Arrival`, which the stages of a build share, and its steps.

The reader makes an `Arrival`, `prepare` decodes and tokenises (in any thread), `embed` gives
vectors, the journal and the writer take the rows. The functions are of records alone: they know no
files, no index and no threads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from indexer.filters.declared import Field, Value, values_of
from indexer.format.entries import Modality
from indexer.format.erasures import Erased, Erasures, hash_text
from indexer.format.items import Item, NewRow, Picture
from models.encoder import Encoder, PreparedImage, PreparedText, embed_each
from models.errors import DiptychError
from models.images.pictures import Seen
from models.sources.records import Record, Reject
from models.vectors import Vectors

_MAX_ID_BYTES: Final = 2048

Texts: TypeAlias = Mapping[str, tuple[str, ...]]
Step: TypeAlias = Literal["embed", "move", "restore"]
"""What is to be done: a new or changed record is embedded; the rows of one that is the same but
elsewhere are copied; an earlier build, which was killed, left the rows of a restored one."""


@dataclass(slots=True)
class ItemRow:
    """One item of a record: its picture, or one of its texts.

    Attributes:
        new: what the index stores beside the vector.
        prepared: what the tower takes.
        vector_D: float32 [D], once it is embedded.
    """

    new: NewRow
    prepared: PreparedImage | PreparedText | None = None
    vector_D: Vectors | None = None

    @property
    def modality(self) -> Modality:
        return self.new.item.modality


@dataclass(slots=True)
class Arrival:
    """A record on its way.

    Attributes:
        source: the name of its source, for rejects.
        key, uri: the record's.
        content_hash: see the function of that name.
        origin: `indexer.format.items.origin_number` of the record's.
        size: bytes that it costs while it waits.
        record, indexed: the record and its `selected_texts`, until it is prepared.
        preparation: resolved once it is prepared or refused.
        rows: its picture first, then its texts; without a vector until it is embedded.
        refused: why the whole record is left out.
        rejects: what is left out of it: texts the encoder refuses, values of the wrong type.
        erased: how many of its texts are left out because they were deleted.
    """

    source: str
    key: str
    uri: str
    content_hash: str
    origin: int | None = None
    step: Step = "embed"
    size: int = 0
    record: Record | None = None
    indexed: Texts = field(default_factory=dict)
    preparation: Future[None] | None = None
    rows: list[ItemRow] = field(default_factory=list)
    refused: Reject | None = None
    rejects: list[Reject] = field(default_factory=list)
    erased: int = 0

    def rows_of(self, modality: Modality) -> list[ItemRow]:
        return [row for row in self.rows if row.modality == modality]

    def reject(self, key: str, code: str, detail: str) -> None:
        self.rejects.append(Reject(self.source, key, code, detail))


def selected_texts(record: Record, captions: bool, languages: Sequence[str] | None) -> Texts:
    """The texts of a record that become items of their own."""
    if not captions:
        return {}
    return {
        language: texts
        for language, texts in record.texts.items()
        if languages is None or language in languages
    }


def content_hash(record: Record, indexed: Texts) -> str:
    """sha256 (hex) over what the index stores of a record: equal means nothing to do.

    It covers the picture's bytes, the texts and which of them are indexed, the label and the
    attributes, as canonical JSON; not the location, so that a moved collection stays unchanged.

    Raises:
        ValueError, TypeError, RecursionError: the attributes are not JSON.
    """
    image = None if record.image is None else hashlib.sha256(record.image).hexdigest()
    content = {
        "image": image,
        "texts": [[language, list(texts)] for language, texts in record.texts.items()],
        "indexed": list(indexed),
        "label": record.label,
        "attributes": dict(record.attributes),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check_record(record: Record) -> str | None:
    """Why a record cannot be stored at all, or None."""
    strings = [record.key, record.uri, record.label or "", *record.texts]
    strings += [text for texts in record.texts.values() for text in texts]
    try:
        for text in strings:
            text.encode()
        json.dumps(record.attributes, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return "a name or text is not valid Unicode"
    except (TypeError, ValueError, RecursionError) as error:
        return f"its attributes are not JSON: {error}"
    if not record.key or len(record.key.encode()) > _MAX_ID_BYTES:
        return f"an id has 1 to {_MAX_ID_BYTES} bytes"
    if record.image is None and not any(record.texts.values()):
        return "it has neither a picture nor a text"
    return None


def text_id(key: str, language: str, number: int) -> str:
    """The item id of a record's text."""
    return f"{key}#{language}/{number}"


def text_ids(key: str, texts: Texts) -> list[str]:
    """The item ids of all texts of a record."""
    return [
        text_id(key, language, number)
        for language, ones in texts.items()
        for number in range(len(ones))
    ]


def erased_names(key: str, texts: Texts) -> Iterator[Erased]:
    """All that an erasure list may hold of the texts of a record."""
    for language, ones in texts.items():
        for number, text in enumerate(ones):
            yield text_id(key, language, number)
            yield hash_text(key, language, text)


def prepare(
    arrival: Arrival,
    encoder: Encoder,
    decode: Callable[[bytes], tuple[PreparedImage, Seen]],
    *,
    fields: Sequence[Field],
    erasures: Erasures,
) -> None:
    """Decode, preprocess and tokenise one record, whose bytes are let go.

    A record whose picture is unusable is `refused`. A text the encoder refuses is left out and
    listed in `rejects`, as is a field's value of the wrong type, which counts as missing.

    Args:
        decode: a picture as the encoder takes it, and what else is kept of it.
        fields: the filterable fields whose values to take from its attributes.
        erasures: texts that were deleted, by their ids or by what they say, are left out.
    """
    record, arrival.record = arrival.record, None
    assert record is not None
    values, problems = values_of(record.attributes, fields)
    for why in problems:
        arrival.reject(record.key, "invalid-field", why)
    if record.image is not None:
        try:
            picture = _picture(arrival, record, decode(record.image), values, erasures)
        except DiptychError as error:
            arrival.refused = Reject(arrival.source, record.key, error.code, error.message)
            return
        arrival.rows.append(picture)
    for language, texts in arrival.indexed.items():
        for number, text in enumerate(texts):
            item_id = text_id(record.key, language, number)
            if item_id in erasures or erasures.text(record.key, language, text):
                arrival.erased += 1
                continue
            try:
                tokens = encoder.prepare_text(text)
            except DiptychError as error:
                arrival.reject(item_id, error.code, error.message)
                continue
            item = Item(
                id=item_id,
                modality="text",
                uri=record.uri,
                text=text,
                language=language,
                image_id=None if record.image is None else record.key,
                label=record.label,
                attributes=record.attributes,
                content_hash=arrival.content_hash,
            )
            new = NewRow(record.key, item, values=values, origin=arrival.origin)
            arrival.rows.append(ItemRow(new, tokens))
    if record.image is not None:
        _name_texts(arrival)


def _picture(
    arrival: Arrival,
    record: Record,
    decoded: tuple[PreparedImage, Seen],
    values: tuple[Value, ...],
    erasures: Erasures,
) -> ItemRow:
    """The row of a record's picture; it carries the first text that was not deleted."""
    prepared, seen = decoded
    language, text = next(
        (
            (language, text)
            for language, texts in record.texts.items()
            for number, text in enumerate(texts)
            if text_id(record.key, language, number) not in erasures
            and not erasures.text(record.key, language, text)
        ),
        (None, None),
    )
    item = Item(
        id=record.key,
        modality="image",
        uri=record.uri,
        text=text,
        language=language,
        image_id=None,
        label=record.label,
        attributes=record.attributes,
        content_hash=arrival.content_hash,
    )
    facts = Picture(seen.width, seen.height, len(record.image or b""), seen.digest)
    new = NewRow(record.key, item, seen.thumbnail, values, picture=facts, origin=arrival.origin)
    return ItemRow(new, prepared)


def _name_texts(arrival: Arrival) -> None:
    """Note with the picture what search by words finds it by: its own text and its captions'."""
    picture, *captions = arrival.rows
    texts = [caption.new.item.text for caption in captions]
    if picture.new.item.text not in texts:
        texts.append(picture.new.item.text)
    picture.new = replace(picture.new, texts=tuple(text for text in texts if text) or None)


def embed(encoder: Encoder, batch: Sequence[Arrival], texts_at_once: int) -> None:
    """Give the rows of a batch their vectors.

    A record whose picture got no usable one is `refused`; a text that got none is left out and
    listed in `rejects`.
    """
    pictures = [row for one in batch for row in one.rows_of("image")]
    _embed_rows(encoder.embed_images, pictures)
    for one in batch:
        if any(row.vector_D is None for row in one.rows_of("image")):
            one.refused = Reject(one.source, one.key, *_NO_VECTOR)
    kept = [one for one in batch if one.refused is None]
    texts = [row for one in kept for row in one.rows_of("text")]
    for start in range(0, len(texts), texts_at_once):
        _embed_rows(encoder.embed_texts, texts[start : start + texts_at_once])
    for one in kept:
        for row in one.rows:
            if row.vector_D is None:
                one.reject(row.new.item.id, *_NO_VECTOR)
        one.rows = [row for row in one.rows if row.vector_D is not None]


_NO_VECTOR: Final = ("embedding-invalid", "the model gave it no usable vector")


def _embed_rows(tower: Callable[[Any], Vectors], rows: Sequence[ItemRow]) -> None:
    for row, vector_D in zip(rows, embed_each(tower, [row.prepared for row in rows]), strict=True):
        row.vector_D, row.prepared = vector_D, None
