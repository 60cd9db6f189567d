"""What the use cases take and give: queries, answers, and the checks every surface shares.

Plain frozen dataclasses. Knows nothing of HTTP, JSON or the command line; both surfaces build these
and read these.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote, unquote, urlsplit

import numpy as np

from models.errors import (
    DiptychError,
    InputError,
    InvalidTextError,
    InvalidVectorError,
    NotFoundError,
)
from models.vectors import Vectors, unit_rows

if TYPE_CHECKING:
    from indexer.search.options import SearchOptions
    from indexer.search.reader import Hit

MAX_TEXT_CHARS = 10_000
MAX_PARTS = 16
MAX_WEIGHT = 100.0

# float32 squares overflow above this; an embedding this large was never meant as one
_LARGEST_ENTRY = 1e19


@dataclass(frozen=True, slots=True)
class TextQuery:
    text: str


@dataclass(frozen=True, slots=True)
class ImageQuery:
    """An encoded picture, as uploaded."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ItemQuery:
    """More like an indexed item; the item itself is left out of its own hits."""

    id: str


@dataclass(frozen=True, slots=True)
class EmbeddingQuery:
    values: Sequence[float]


QueryPart: TypeAlias = TextQuery | ImageQuery | ItemQuery | EmbeddingQuery


@dataclass(frozen=True, slots=True)
class Weighted:
    """A part of a composed query; a negative weight asks for less of it."""

    part: QueryPart
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ComposedQuery:
    """Several parts at once: the weighted sum of their unit vectors, normalised once."""

    parts: tuple[Weighted, ...]


SearchQuery: TypeAlias = QueryPart | ComposedQuery


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """Hits best first.

    Attributes:
        options: what was asked for.
        relevance_K: per hit how far it stands above the index's background, 0 to 1; None where
            the index cannot tell (`service.engine.retrieval`).
        no_good_match: the best hit of the whole query does not stand above it; None likewise.
        vectors_KD: the hits' embeddings in hit order, when asked for.
        truncated: the query text was longer than the model's context and was cut.
        timings: milliseconds per stage (`prepare`, `embed`, `search`, `total`).
    """

    hits: tuple[Hit, ...]
    options: SearchOptions
    truncated: bool
    index_version: int
    model: str
    relevance_K: tuple[float, ...] | None = None
    no_good_match: bool | None = None
    vectors_KD: Vectors | None = None
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A label, or a node of a tree of labels with its path."""

    label: str
    probability: float
    path: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One picture's classes, most likely first, or the error that refused it.

    Attributes:
        parents: the inner nodes of a tree of labels, most likely first; None without a tree.
        background: how probable none of these is, where that was asked for.
        abstained: `background` reached the threshold; the predictions stay.
    """

    predictions: tuple[Prediction, ...] = ()
    error: DiptychError | None = None
    parents: tuple[Prediction, ...] | None = None
    background: float | None = None
    abstained: bool = False


@dataclass(frozen=True, slots=True)
class ClassifyAnswer:
    """One result per picture, in the order given; timings as in `SearchAnswer`.

    Attributes:
        label_set: the stored label set's name, if one was used.
        offset: logits above its zero at which a label judged alone is as likely as not.
        abstain: the threshold on `background`, or None where it was not judged.
        warnings: what makes the labels hard to answer by, for people to read.
    """

    results: tuple[ImageResult, ...]
    multi_label: bool
    model: str
    label_set: str | None = None
    temperature: float = 1.0
    offset: float = 0.0
    abstain: float | None = None
    warnings: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FilePaths:
    """How much callers are told of where files lie on this machine.

    Attributes:
        everything: paths are told as the index has them.
        roots: otherwise, the folder that paths are told relative to, in all its spellings; what
            lies elsewhere is not told, and without a root nothing is.
    """

    everything: bool = True
    roots: tuple[str, ...] = ()

    @classmethod
    def below(cls, folder: Path) -> FilePaths:
        """Relative to a folder, which an index may know by its own name or through links."""
        spelt = dict.fromkeys((os.path.abspath(folder), os.path.realpath(folder)))  # noqa: PTH100
        return cls(everything=False, roots=tuple(one.rstrip("/") for one in spelt))

    def told(self, uri: str) -> str | None:
        """A place as a caller is told it: an address on the web always, a file's as allowed.

        Of a `file:` URI the part below a root, escaped as it was; of a bare path likewise bare.
        """
        parts = urlsplit(uri)
        local = parts.scheme in ("", "file") or uri[1:3] in (":\\", ":/")
        if self.everything or not uri or not local:
            return uri or None
        # what was imported has bare paths, in which nothing is escaped
        path = unquote(parts.path) if parts.scheme == "file" else uri
        steps = path.split("/")
        if ".." in steps or "\\" in path:
            return None
        if parts.scheme == "" and steps[0]:  # relative to something nobody knows
            return uri
        for root in self.roots:
            if path.startswith(root + "/"):
                below = path[len(root) + 1 :]
                if parts.scheme != "file":
                    return below
                return quote(below) + (f"#{parts.fragment}" if parts.fragment else "")
        return None


def storable(text: str) -> bool:
    """Whether the text is valid Unicode without NUL: no lone surrogates to choke on later."""
    if "\0" in text:
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_text(text: str) -> str:
    """The text, if it can be searched for.

    Raises:
        InvalidTextError: empty or blank, over `MAX_TEXT_CHARS`, NUL, or not valid Unicode.
    """
    if not text.strip():
        raise InvalidTextError("the text is empty")
    if len(text) > MAX_TEXT_CHARS:
        raise InvalidTextError(
            f"the text has {len(text)} characters; the limit is {MAX_TEXT_CHARS}"
        )
    if not storable(text):
        raise InvalidTextError("the text holds NUL or a lone surrogate, which is not valid Unicode")
    return text


def check_id(item_id: str) -> str:
    """The id, if a store could hold it; anything else is no item's id."""
    if len(item_id) > MAX_TEXT_CHARS:
        raise NotFoundError("no item has this id")
    if not storable(item_id):
        raise InvalidTextError("the id holds NUL or a lone surrogate, which is not valid Unicode")
    return item_id


def check_embedding(values: Sequence[float], dim: int) -> Vectors:
    """A caller's embedding as one unit row, float32 [1, D].

    Raises:
        InvalidVectorError: not `dim` finite numbers, zero, or an entry above 1e19.
    """
    if len(values) != dim:
        raise InvalidVectorError(f"the embedding has {len(values)} dimensions, the index has {dim}")
    try:
        wide_D = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InvalidVectorError("the embedding must be a list of numbers") from None
    if (np.abs(wide_D) > _LARGEST_ENTRY).any() and np.isfinite(wide_D).all():
        raise InvalidVectorError(f"an entry of the embedding is larger than {_LARGEST_ENTRY:g}")
    return unit_rows(wide_D[None])


def words_of(parts: Sequence[Weighted]) -> str | None:
    """The texts that a query asks for, as one; None where it has none.

    What it asks less of is not among them: search by words knows no less.
    """
    texts = [one.part.text for one in parts if isinstance(one.part, TextQuery) and one.weight > 0]
    return " ".join(texts) or None


def check_parts(query: SearchQuery) -> tuple[Weighted, ...]:
    """The parts of a query, one for a query that is not composed.

    Raises:
        InputError: not 1 to `MAX_PARTS` parts, or a weight that is zero, not finite or larger than
            `MAX_WEIGHT` either way.
    """
    parts = query.parts if isinstance(query, ComposedQuery) else (Weighted(query),)
    if not 1 <= len(parts) <= MAX_PARTS:
        raise InputError(f"a query has 1 to {MAX_PARTS} parts, not {len(parts)}")
    for part in parts:
        if not 0.0 < abs(part.weight) <= MAX_WEIGHT:  # false for NaN too
            raise InputError(f"a weight lies between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}, not zero")
    return parts
