"""What an index answers, whoever answers: the questions of an `IndexReader` and their results.

The use cases of `service.engine` and `diptych.py` ask these and nothing else, so they cannot tell
whether one opened version on this machine answers (`indexer.search.snapshot.Snapshot`) or somebody
who asks several. Nothing here is a file, a row, a search structure or a database.

Shapes: Q queries, K hits, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from indexer.filters.declared import FieldType
from indexer.filters.language import Filter
from indexer.format.items import Item
from indexer.search.options import SearchOptions, SortKey, Target
from models.encoder import Fingerprint
from models.vectors import Vectors

__all__ = [
    "Facet",
    "FacetValue",
    "Hit",
    "IndexHolder",
    "IndexInfo",
    "IndexReader",
    "Item",
    "QueryKind",
    "Target",
]

QueryKind: TypeAlias = Literal["text", "image", "mixed"]
"""What a query was made of, which decides what its hits are judged against."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A search result.

    Attributes:
        score: the cosine between item and query, in [-1, 1], whatever decided the order.
        fused: what decided it in hybrid search (`indexer.search.ranking`), otherwise None.
        duplicates: ids of the near-duplicates that this hit stands for, best first.
    """

    item: Item
    score: float
    fused: float | None = None
    duplicates: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.item.id

    @property
    def uri(self) -> str:
        return self.item.uri

    @property
    def text(self) -> str | None:
        return self.item.text


@dataclass(frozen=True, slots=True)
class FacetValue:
    """A value, and how many living pictures and texts have it."""

    value: str | bool
    images: int
    texts: int


@dataclass(frozen=True, slots=True)
class Facet:
    """A field's values.

    Attributes:
        images, texts: how many living items have a value at all.
        distinct: how many different values there are, of dates how many years; None for numbers.
        values: the most frequent, by pictures, then texts, then value; of dates the years, as
            filters take them; None for numbers.
        months: of dates the most frequent months, likewise; None for others.
        low, high: the range of a number or of dates (ISO 8601, as far as known); None for others,
            and where no item has a value.
    """

    name: str
    type: FieldType
    images: int
    texts: int
    distinct: int | None = None
    values: tuple[FacetValue, ...] | None = None
    low: int | float | str | None = None
    high: int | float | str | None = None
    months: tuple[FacetValue, ...] | None = None


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What an index is; `bytes` counts the files of this version, `created` dates it (ISO 8601).

    Attributes:
        relevance: per target what hits are judged against: rows measured, queries, kinds; None:
            nothing.
        degraded: search structures that are damaged; their segments are searched exactly, which
            is slower.
        structures: ANN structures: the target, rows, and what `indexer.format.entries.AnnEntry`
            says.
        wordless: segments of format 1, which lack what hybrid search needs.
    """

    version: int
    uuid: str
    created: str
    writer: str
    model: str
    fingerprint: str
    dim: int
    images: int
    texts: int
    segments: int
    tombstones: int
    bytes: int
    sources: list[dict[str, str]]
    fields: list[dict[str, str]]
    relevance: dict[str, Any] | None = None
    degraded: list[str] = field(default_factory=list)
    structures: list[dict[str, Any]] = field(default_factory=list)
    wordless: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class IndexReader(Protocol):
    """One version of an index, which never changes. Safe to use from several threads.

    It embeds nothing: queries come as vectors, and `fingerprint` tells whether they belong.
    """

    @property
    def version(self) -> int: ...

    @property
    def fingerprint(self) -> Fingerprint:
        """The encoder pair whose vectors the index holds."""
        ...

    def info(self) -> IndexInfo: ...

    def facets(self) -> Sequence[Facet]:
        """The values of the filterable fields."""
        ...

    def check_filter(self, wanted: Filter) -> None:
        """Refuse a filter that this index cannot answer.

        Raises:
            InvalidFilterError: an undeclared field, or a test or value that is not for its type.
        """
        ...

    def check_sort(self, keys: Sequence[SortKey]) -> None:
        """Refuse fields that this index cannot be sorted by.

        Raises:
            InputError: `invalid-sort`: an undeclared field, or one that holds lists.
        """
        ...

    def search(
        self,
        queries_QD: Vectors,
        options: SearchOptions = ...,
        texts: Sequence[str | None] | None = None,
    ) -> list[list[Hit]]:
        """The `options.k` best live items of each query after skipping `options.offset`.

        Exactly the best, except in segments with an ANN structure (`diptych index optimize`): of
        those nearly all of the best, at the recall recorded in the manifest.

        Ordered by score (the cosine, to float32) falling, then by id, so that pages of one version
        neither overlap nor leave anything out; with `options.hybrid` by `Hit.fused`; with
        `options.sort` by the values of fields, of everything that fits. Fewer than k come back only
        where fewer exist or `options.min_score` lets fewer through.

        Args:
            queries_QD: [Q, D] of any length but zero; they are scaled to unit length.
            texts: each query as words, for `options.hybrid`; None for a query that has none.

        Raises:
            InputError: hybrid search without `texts`; `no-words`: of an index that has segments of
                format 1.
            InvalidFilterError: as `check_filter`; InputError: as `check_sort`.
            InvalidVectorError: wrong shape or dimension, NaN, infinity, or a zero vector.
        """
        ...

    def relevance(
        self, query_D: Vectors, scores_K: Sequence[float], *, kind: QueryKind, target: Target
    ) -> list[float] | None:
        """How far hits of these scores stand above this index's background, each in (0, 1).

        One half is the gate below which nothing fits well; see `indexer.search.relevance`.

        Args:
            query_D: the query, a unit vector [D].
            scores_K: cosines of hits of `target`.

        Returns:
            One number per score, never falling as the score rises; None where the index keeps no
            background, or too few items to judge by.
        """
        ...

    def item(self, item_id: str) -> Item:
        """The live item of an id; where a picture and a text share it, the picture.

        The id of a record that has texts only, which no item has, stands for the first of them,
        here and in `vector`.

        Raises:
            NotFoundError: no live item has it.
        """
        ...

    def vector(self, item_id: str) -> Vectors:
        """The stored embedding, float32 [D], unit length.

        Raises:
            NotFoundError: no live item has this id.
        """
        ...

    def thumbnail(self, item_id: str) -> bytes:
        """The picture's thumbnail as JPEG.

        Raises:
            NotFoundError: no live item has this id, or none was stored for it.
        """
        ...

    def captions(self, image_id: str) -> list[Item]:
        """The live texts of a picture, or of a record of texts only, in source order; or none."""
        ...

    def number(self, item: Item) -> int:
        """A live item's number, for protocols that know no other ids.

        It is the item's own in this version. Adding and deleting move no number, merging segments
        moves all; so one means something together with the version, and not beyond it.

        Raises:
            NotFoundError: this version has no such item.
        """
        ...

    def numbered(self, number: int) -> Item:
        """The live item of a number.

        Raises:
            NotFoundError: out of range, or deleted.
        """
        ...


@runtime_checkable
class IndexHolder(Protocol):
    """An index whose versions replace each other while others search it."""

    @property
    def version(self) -> int:
        """The version that `use` hands out now."""
        ...

    def use(self) -> AbstractContextManager[IndexReader]:
        """The current version, open at least until the block is left."""
        ...

    def refresh(self) -> bool:
        """Take up a newer version, if there is one -> whether it was.

        Raises:
            DiptychError: the newer one cannot be used; the one held before keeps serving.
        """
        ...
