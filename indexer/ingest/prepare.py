"""The CPU half of indexing: one source record to what the encoder takes, or why not.

Pure functions of a record, safe in any thread. They know no files and no index.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from indexer.filters.declared import Field, Value, values_of
from indexer.format.erasures import Erasures
from indexer.format.items import Item, Picture
from models.encoder import Encoder, PreparedImage, PreparedText
from models.errors import DiptychError
from models.images.pictures import Seen
from models.sources.records import Record, Reject

_MAX_ID_BYTES: Final = 2048
_NONE: Final = Erasures()

Texts = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class PreparedCaption:
    """A text item to come and its tokens."""

    item: Item
    tokens: PreparedText


@dataclass(slots=True)
class Prepared:
    """A record ready to embed; `item` and `picture` are None where it has only texts."""

    source: str
    record: str
    content_hash: str
    item: Item | None = None
    picture: PreparedImage | None = None
    facts: Picture | None = None
    thumbnail: bytes | None = None
    captions: list[PreparedCaption] = field(default_factory=list)
    values: tuple[Value, ...] = ()
    rejects: list[Reject] = field(default_factory=list)
    erased: int = 0
    """Texts left out because they were deleted."""

    def texts(self) -> tuple[str, ...]:
        """What the index stores of the picture's texts: its own and its captions', each once."""
        assert self.item is not None
        found = [caption.item.text for caption in self.captions]
        if self.item.text not in found:
            found.append(self.item.text)
        return tuple(text for text in found if text)


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


def prepare(
    record: Record,
    *,
    source: str,
    digest: str,
    indexed: Texts,
    encoder: Encoder,
    decode: Callable[[bytes], tuple[PreparedImage, Seen]],
    fields: Sequence[Field] = (),
    erasures: Erasures = _NONE,
) -> Prepared | Reject:
    """Decode, preprocess and tokenise one record.

    Args:
        source: name of its source, for rejects.
        digest: its `content_hash`.
        indexed: its `selected_texts`.
        decode: a picture as the encoder takes it, and what else is kept of it.
        fields: the filterable fields whose values to take from its attributes.
        erasures: texts whose item ids are among these are left out.

    Returns:
        What to embed, or a `Reject` of the whole record when its picture is unusable. A caption
        the encoder refuses is left out and listed in `rejects`, as is a field's value of the wrong
        type, which counts as missing.
    """
    prepared = Prepared(source, record.key, digest)
    prepared.values, problems = values_of(record.attributes, fields)
    prepared.rejects += [Reject(source, record.key, "invalid-field", why) for why in problems]
    if record.image is not None:
        try:
            prepared.picture, seen = decode(record.image)
            prepared.facts = Picture(seen.width, seen.height, len(record.image), seen.digest)
            prepared.thumbnail = seen.thumbnail
        except DiptychError as error:
            return Reject(source, record.key, error.code, error.message)
        first = next(
            (
                (tag, text)
                for tag, texts in record.texts.items()
                for number, text in enumerate(texts)
                if text_id(record.key, tag, number) not in erasures
            ),
            None,
        )
        prepared.item = Item(
            id=record.key,
            modality="image",
            uri=record.uri,
            text=first[1] if first else None,
            language=first[0] if first else None,
            image_id=None,
            label=record.label,
            attributes=record.attributes,
            content_hash=digest,
        )
    for language, texts in indexed.items():
        for number, text in enumerate(texts):
            item_id = text_id(record.key, language, number)
            if item_id in erasures:
                prepared.erased += 1
                continue
            try:
                tokens = encoder.prepare_text(text)
            except DiptychError as error:
                prepared.rejects.append(Reject(source, item_id, error.code, error.message))
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
                content_hash=digest,
            )
            prepared.captions.append(PreparedCaption(item, tokens))
    return prepared
