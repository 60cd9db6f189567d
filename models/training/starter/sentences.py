"""Long captions cut into sentences, because a query is one sentence at most.

Textbooks describe a figure in a paragraph and end it with credits; a sentence encoder makes one
blurred point of that. Knows nothing of features or training.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from models.sources.records import Record, Row, SourceWrapper

_CREDIT = re.compile(
    r"\s*\((?:credit|attribution|photo|crédito|źródło)\b[^()]*(?:\([^()]*\)[^()]*)*\)?",
    re.IGNORECASE,
)
_END = re.compile(r"(?<=[.!?])\s+(?=[^\W\d_a-z])")
_LEAST, _MOST = 2, 40
"""Words in a sentence; shorter and longer ones are left out."""
_PER_CAPTION = 3
"""Later sentences speak of details."""


def sentences(caption: str) -> list[str]:
    """The first sentences without credits; the first words where no sentence is of usable length.

    Example:
        >>> sentences("A dog runs. It is brown. (credit: A. Nonymous)")
        ['A dog runs.', 'It is brown.']
    """
    found = [one.strip() for one in _END.split(_CREDIT.sub("", caption))]
    usable = [one for one in found if _LEAST <= len(one.split()) <= _MOST]
    return usable[:_PER_CAPTION] or [" ".join(caption.split()[:_MOST])]


class InSentences(SourceWrapper):
    """A source whose captions are sentences. Rejects pass through."""

    def __iter__(self) -> Iterator[Row]:
        for row in self.source:
            if isinstance(row, Record) and row.texts:
                texts = {
                    language: tuple(one for caption in captions for one in sentences(caption))
                    for language, captions in row.texts.items()
                }
                yield replace(row, texts=texts)
            else:
                yield row
