"""How an index is searched: one `SearchOptions`, from every surface to the ranking code unchanged.

The request's schema, the command line and `diptych.py` make one; the engine hands it to an
`indexer.search.reader.IndexReader`, and the ranking code reads it. So a new switch is a field here,
what the ranking code does with it, and its spelling on each surface. Defaults, bounds and what
`true` stands for are spelt here alone. Imports nothing heavy: `diptych search --help` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from models.errors import InputError

if TYPE_CHECKING:
    from indexer.filters.language import Filter

Target: TypeAlias = Literal["images", "texts"]
Include: TypeAlias = Literal["attributes", "embedding", "thumbnail"]
Order: TypeAlias = Literal["asc", "desc"]

HYBRID: Final = 0.4
"""Weight of the words beside the vectors where `hybrid` is only switched on."""
NEAR_DUPLICATE: Final = 0.95
"""Cosine from which two pictures count as one unless a caller names another; measured with the
starter pair, see `indexer.search.duplicates.find_duplicates`."""
MAX_K: Final = 1000
MAX_OFFSET: Final = 10_000
"""Bounds of a page that a surface may ask for; the ranking code itself has none."""
MAX_SORT: Final = 8
"""Fields to sort by."""


@dataclass(frozen=True, slots=True)
class SortKey:
    """A field to sort by, smallest first or largest; what has no value comes last either way.

    Raises:
        InputError: `invalid-sort`: the order is neither.
    """

    field: str
    order: Order = "asc"

    def __post_init__(self) -> None:
        if not isinstance(self.field, str) or self.order not in get_args(Order):
            raise InputError("a field is sorted by as asc or desc", code="invalid-sort")


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """What is wanted of a search besides its query.

    Attributes:
        k: how many hits, at least 1.
        offset: how many of the best to skip.
        target: which modality to find.
        filter: which items may be found at all; None lets all.
        min_score: items with a lower cosine are left out before the page is cut, so that a short
            page is the last one.
        hybrid: weight, in [0, 1], of the ranking by words (BM25 over an item's text, for a picture
            over its captions) when it is fused with that by cosine; 0 for none, True for `HYBRID`.
            A query without words keeps the order by cosine.
        deduplicate: cosine, above 0 and at most 1, from which an item is a near-duplicate of a
            better one: it is left out and named by that hit, and the page is filled with the next
            best. None keeps all, True stands for `NEAR_DUPLICATE`.
        exact: use no ANN structure: compare with every item.
        effort: efSearch or nprobe of this search, at least 1; None takes what `optimize` recorded.
            Segments without an ANN structure do not need it.
        sort: fields to sort by, the first first; `"taken:desc,price"`, or a list of such texts or
            of `{"field": ..., "order": ...}`, stands for them. Everything that fits is sorted, as
            far as `filter` and `min_score` say what fits, not the k closest; cosines, or with
            `hybrid` fused scores, decide among equal values. An item then is a near-duplicate of
            one that comes before it. Sorting is exact whatever was optimized.
        include: optional parts of a hit; who makes the answer reads it, the ranking code does not.

    Raises:
        InputError: a value out of range.
    """

    k: int = 10
    offset: int = 0
    target: Target = "images"
    filter: Filter | None = None
    min_score: float | None = None
    hybrid: float = 0.0
    deduplicate: float | None = None
    exact: bool = False
    effort: int | None = None
    include: frozenset[Include] = frozenset({"attributes"})
    sort: tuple[SortKey, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "hybrid", _switched(self.hybrid, HYBRID, 0.0))
        object.__setattr__(self, "deduplicate", _switched(self.deduplicate, NEAR_DUPLICATE, None))
        object.__setattr__(self, "sort", parse_sort(self.sort))
        if self.target not in get_args(Target):
            raise InputError(f"target must be images or texts, not {self.target!r}")
        if self.k < 1 or self.offset < 0:
            raise InputError("k must be at least 1 and offset at least 0")
        if self.effort is not None and self.effort < 1:
            raise InputError("effort must be at least 1")
        if not 0.0 <= self.hybrid <= 1.0:
            raise InputError("hybrid is a weight between 0 and 1")
        if self.deduplicate is not None and not 0.0 < self.deduplicate <= 1.0:
            raise InputError("deduplicate is a cosine above 0 and at most 1")

    def check_page(self) -> None:
        """Refuse a page larger or further back than a surface may ask for.

        Raises:
            InputError: `k` above `MAX_K` or `offset` above `MAX_OFFSET`.
        """
        if self.k > MAX_K:
            raise InputError(f"k must be between 1 and {MAX_K}")
        if self.offset > MAX_OFFSET:
            raise InputError(f"offset must be between 0 and {MAX_OFFSET}")

    def ranking(self, k: int, offset: int) -> SearchOptions:
        """The same order of items, another page of it, without what only the answer's maker reads.

        Searches of equal `ranking` may run together.
        """
        return replace(self, k=k, offset=offset, include=frozenset())

    def by_cosine(self) -> SearchOptions:
        """The same, in the order of cosines alone, however low, and with every near-duplicate."""
        return replace(self, hybrid=0.0, deduplicate=None, min_score=None, sort=())


def _switched(value: object, on: float, off: float | None) -> object:
    """A number that may also be given as a switch."""
    return value if not isinstance(value, bool) else on if value else off


def parse_sort(given: object) -> tuple[SortKey, ...]:
    """Fields to sort by, as a caller may write them (`SearchOptions.sort`).

    Raises:
        InputError: `invalid-sort`: something else, more than `MAX_SORT`, or a field twice.
    """
    listed = [given] if isinstance(given, str | Mapping | SortKey) else given
    if not isinstance(listed, Sequence):
        raise InputError("sort takes a list of fields", code="invalid-sort")
    keys: list[SortKey] = []
    for one in listed:
        if isinstance(one, SortKey):
            keys.append(one)
        elif isinstance(one, str):
            pairs = [part.strip().partition(":") for part in one.split(",")]
            keys += [SortKey(name, order if colon else "asc") for name, colon, order in pairs]  # type: ignore[arg-type]
        elif isinstance(one, Mapping) and {"field"} <= set(one) <= {"field", "order"}:
            keys.append(SortKey(**one))
        else:
            raise InputError(
                'a field to sort by is "taken:desc", or {"field": "taken", "order": "desc"}',
                code="invalid-sort",
            )
    if len(keys) > MAX_SORT:
        raise InputError(f"more than {MAX_SORT} fields to sort by", code="invalid-sort")
    if len({key.field for key in keys}) < len(keys):
        raise InputError("a field to sort by is named twice", code="invalid-sort")
    return tuple(keys)


DEFAULTS: Final = SearchOptions()
