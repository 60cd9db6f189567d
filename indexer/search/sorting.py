"""Sorting by the values of fields instead of by closeness: which rows come first.

`indexer.search.searcher` asks a `FieldOrder` for rankings where a search's options name fields to
sort by. All rows that may be found are sorted, which are those that the filter selects and that
reach `min_score`; ANN structures have no part in it. What the query decides besides is the order of
rows whose values are equal: by fused score where words count, then cosine, then id. A missing
value comes last, whichever way the field is sorted.

A field's values are read once for each version and kept as ranks: the smallest value of all
segments has rank 0, equal ones have the same. So fields of any type sort alike, and segments
compare.

Shapes: M rows that may be found, N rows of a segment, D embedding.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from indexer.filters.dates import GRAIN_BITS
from indexer.filters.declared import BUILT_IN, Field
from indexer.filters.sql import Column
from indexer.format.entries import Modality
from indexer.format.field_table import column_values, columns_of
from indexer.format.segment import HalfVectors
from indexer.search.options import SortKey
from indexer.search.ranking import Ranked, Scanner, reaching, rescore
from indexer.search.scanners import LiveSegment
from models.errors import InputError
from models.vectors import Vectors

Ranks: TypeAlias = npt.NDArray[np.int32]

_MISSING: Final = np.iinfo(np.int32).max
_BUDGET: Final = 128 << 20
_ROWS_AT_ONCE: Final = 8192
_NUMBERS: Final[dict[str, type[np.generic]]] = {
    "int": np.int64,
    "float": np.float64,
    "bool": np.int64,
    "date": np.int64,
}


def check_sort(keys: Sequence[SortKey], fields: Sequence[Field]) -> None:
    """Refuse what an index with these declared fields cannot be sorted by.

    Raises:
        InputError: `invalid-sort`: an undeclared field (the message names the declared ones), or
            one that holds lists.
    """
    declared = {one.name: one for one in (*fields, *BUILT_IN)}
    for number, key in enumerate(keys, start=1):
        known = declared.get(key.field)
        if known is None:
            names = ", ".join(str(one) for one in declared.values() if one.type != "str[]")
            raise InputError(
                f"field {number} to sort by is not declared; declared are {names}",
                code="invalid-sort",
            )
        if known.type == "str[]":
            raise InputError(f"field {known} holds lists, which have no order", code="invalid-sort")


class FieldOrder:
    """What the values of a version's fields are ranked as. Safe to use from many threads."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._columns = columns_of(fields)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, Modality], list[Ranks]] = OrderedDict()

    def ranks(self, field: str, modality: Modality, segments: Sequence[LiveSegment]) -> list[Ranks]:
        """Ranks of a field's values in each of a modality's segments, [N]; `_MISSING` for none.

        Raises:
            IndexCorruptError: a segment's database cannot answer.
        """
        key = field, modality
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        # outside the lock: two threads may both read them, which costs time but nothing else
        found = _ranks(self._columns[field], segments)
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > 1 and _size(self._kept.values()) > _BUDGET:
                self._kept.popitem(last=False)
        return found


def _size(kept: Iterable[list[Ranks]]) -> int:
    return sum(one.nbytes for ranks in kept for one in ranks)


def _ranks(column: Column, segments: Sequence[LiveSegment]) -> list[Ranks]:
    read = [column_values(one.segment.items.query, column) for one in segments]
    places = _places([values for _, values in read], column.type)
    found = []
    for one, (rows_M, _), places_M in zip(segments, read, places, strict=True):
        ranks_N = np.full(len(one.live_N), _MISSING, dtype=np.int32)
        ranks_N[rows_M] = places_M
        found.append(ranks_N)
    return found


def _places(values: Sequence[list[Any]], kind: str) -> list[npt.NDArray[np.int64]]:
    """Of each value its place among the distinct ones of all lists."""
    ends = np.cumsum([len(some) for some in values])[:-1]
    if kind in _NUMBERS:
        whole_M = np.array([one for some in values for one in some], dtype=_NUMBERS[kind])
        if kind == "date":
            whole_M = whole_M >> GRAIN_BITS  # equal moments are equal
        _, places_M = np.unique(whole_M, return_inverse=True)
        return np.split(places_M.reshape(-1), ends)
    distinct = sorted({one for some in values for one in some})
    place = {value: number for number, value in enumerate(distinct)}
    return [np.array([place[one] for one in some], dtype=np.int64) for some in values]


def sort_rows(
    keys: Sequence[tuple[SortKey, Sequence[Ranks]]],
    segments: Sequence[LiveSegment],
    scanners: Sequence[Scanner],
    query_D: Vectors,
    depth: int,
    *,
    floor: float | None = None,
    fused: Ranked | None = None,
    named: bool = False,
) -> Ranked:
    """The first `depth` rows by the values of fields.

    Args:
        keys: each field, and the ranks of its values in every segment; the first decides.
        scanners: one per segment, of the rows that may be found.
        query_D: float32 [D], a unit vector.
        floor: the lowest cosine of a row that may be found.
        fused: a ranking that decides among equal values, before the cosine does.
        named: whether all ids are wanted, not only those that decide a tie.
    """
    vectors = [one.segment.vectors_ND for one in segments]
    found = [
        scanner.rows() if floor is None else _above(scanner, vectors[number], query_D, floor)
        for number, scanner in enumerate(scanners)
    ]
    segments_M = np.repeat(np.arange(len(found)), [len(rows_M) for rows_M in found])
    rows_M = np.concatenate([*found, np.zeros(0, dtype=np.int64)])
    key_M: list[npt.NDArray[Any]] = [_signed(key, ranks, found) for key, ranks in keys]
    # the first key alone rules most out, which makes the rest cheap
    chosen_M = _first(key_M[:1], depth)
    chosen_M = chosen_M[_first([one[chosen_M] for one in key_M], depth)]
    segments_M, rows_M = segments_M[chosen_M], rows_M[chosen_M]
    group_M = _groups([one[chosen_M] for one in key_M])
    scores_M = np.zeros(len(rows_M), dtype=np.float32)
    for number, vectors_ND in enumerate(vectors):
        (where,) = np.nonzero(segments_M == number)
        scores_M[where] = _scores(vectors_ND, rows_M[where], query_D)
    fused_M = None if fused is None else _looked_up(fused, segments_M, rows_M)
    deciding: list[npt.NDArray[Any]] = [
        group_M,
        *([] if fused_M is None else [-fused_M]),
        -scores_M,
    ]
    chosen_M = _first(deciding, depth)
    rows = Ranked(
        segments_M[chosen_M],
        rows_M[chosen_M],
        scores_M[chosen_M],
        [""] * len(chosen_M),
        None if fused_M is None else fused_M[chosen_M],
    )
    return _by_id(rows, _groups([one[chosen_M] for one in deciding]), segments, named).take(
        range(min(depth, len(rows)))
    )


def _signed(key: SortKey, ranks: Sequence[Ranks], found: Sequence[npt.NDArray[np.int64]]) -> Ranks:
    """Smaller is earlier, int32 [M]."""
    ranks_M: Ranks = np.concatenate(
        [np.zeros(0, dtype=np.int32), *(one[rows] for one, rows in zip(ranks, found, strict=True))]
    )
    if key.order == "asc":
        return ranks_M
    return np.where(ranks_M == _MISSING, ranks_M, -ranks_M)


def _first(keys: Sequence[npt.NDArray[Any]], depth: int) -> npt.NDArray[np.int64]:
    """Places of the `depth` first by the keys, and of all that tie with the last, in order."""
    if len(keys) == 1 and len(keys[0]) > depth:
        [one] = keys
        (places,) = np.nonzero(one <= np.partition(one, depth - 1)[depth - 1])
        return places[np.argsort(one[places], kind="stable")]
    order = np.lexsort(tuple(reversed(keys)))
    if len(order) <= depth:
        return order
    groups = _groups([one[order] for one in keys])
    return order[: int(np.searchsorted(groups, groups[depth - 1], side="right"))]


def _groups(keys: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """Of rows in order a number that grows where a key changes, int64 [M]."""
    changed = np.zeros(len(keys[0]), dtype=np.bool_)
    for one in keys:
        changed[1:] |= one[1:] != one[:-1]
    return np.cumsum(changed)


def _above(
    scanner: Scanner, vectors_ND: HalfVectors, query_D: Vectors, floor: float
) -> npt.NDArray[np.int64]:
    """The rows whose cosine reaches a floor, ascending."""
    if not scanner.live:
        return np.zeros(0, dtype=np.int64)
    # FAISS rounds otherwise than `rescore`, whose word counts: see `indexer.search.ranking`
    error = 4.0 * (len(query_D) + 2) * 2.0**-24
    _, rows_M = scanner.above(query_D, floor - error)
    rows_M = np.sort(rows_M)
    return rows_M[reaching(_scores(vectors_ND, rows_M, query_D), floor)]


def _scores(
    vectors_ND: HalfVectors, rows_M: npt.NDArray[np.int64], query_D: Vectors
) -> npt.NDArray[np.float32]:
    """As `rescore`, of however many rows."""
    scores_M = np.zeros(len(rows_M), dtype=np.float32)
    for start in range(0, len(rows_M), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        scores_M[part] = rescore(vectors_ND[rows_M[part]], query_D)
    return scores_M


def _looked_up(
    fused: Ranked, segments_M: npt.NDArray[np.int64], rows_M: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The fused score of each row, 0 of those that were not fused."""
    assert fused.fused_M is not None
    fused_places = zip(fused.segments_M.tolist(), fused.rows_M.tolist(), strict=True)
    known = dict(zip(fused_places, fused.fused_M.tolist(), strict=True))
    places = zip(segments_M.tolist(), rows_M.tolist(), strict=True)
    return np.array([known.get(place, 0.0) for place in places], dtype=np.float64)


def _by_id(
    rows: Ranked, group_M: npt.NDArray[np.int64], segments: Sequence[LiveSegment], named: bool
) -> Ranked:
    """The same rows, those of a group by their ids."""
    counts = np.bincount(group_M, minlength=1)
    asked = np.ones(len(rows), dtype=np.bool_) if named else counts[group_M] > 1
    names = list(rows.ids)
    for position in np.unique(rows.segments_M[asked]).tolist():
        (where,) = np.nonzero(asked & (rows.segments_M == position))
        ids = segments[position].segment.items.ids(rows.rows_M[where].tolist())
        for place in where.tolist():
            names[place] = ids[int(rows.rows_M[place])]
    groups = group_M.tolist()
    order = sorted(range(len(names)), key=lambda place: (groups[place], names[place]))
    return Ranked(rows.segments_M, rows.rows_M, rows.scores_M, names, rows.fused_M).take(order)
