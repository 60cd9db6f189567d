"""What every reader yields: `Record` for a usable row, `Reject` for one that is not.

Readers look at names, sizes and text; they never decode pictures (that is `models.images`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

UNDETERMINED = "und"
"""BCP 47's tag for a text whose language the source does not tell."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image-text record of a source.

    Attributes:
        key: unique and stable within the source; becomes the item id.
        uri: where the picture can be found again (`file:` URI; `#member` for a shard's member).
        image: the encoded picture, or None for a record of text only.
        texts: captions by language tag, in source order; `und` where the language is unknown.
        label: the class, where the source has one.
        attributes: every other field of the record, JSON-compatible.
    """

    key: str
    uri: str
    image: bytes | None
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reject:
    """One record that was refused: where it came from, a stable code, and a line for people."""

    source: str
    key: str
    code: str
    detail: str

    def to_dict(self) -> dict[str, str]:
        return {"source": self.source, "key": self.key, "code": self.code, "detail": self.detail}


Row: TypeAlias = Record | Reject


class Source(Protocol):
    """A stream of rows in a stable order; iterating twice gives the same rows."""

    @property
    def name(self) -> str:
        """What the user typed."""
        ...

    @property
    def kind(self) -> str:
        """`folder`, `tar` or `jsonl`."""
        ...

    def count(self) -> int | None:
        """How many rows to expect, if cheap to know; for progress bars only."""
        ...

    def __iter__(self) -> Iterator[Row]: ...
