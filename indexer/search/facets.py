"""What values the declared fields of a version have: for a filter's controls, and for people.

Counted over living rows only, exactly, a block of values in memory at a time however many there
are. It knows segments and their field tables, nothing of vectors or filters.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import numpy as np

from indexer.filters.dates import GRAINS, YEAR, parse_date, show_date
from indexer.filters.declared import BUILT_IN, Field
from indexer.filters.sql import Column
from indexer.format.field_table import columns_of, count_present, extreme, value_counts, values_at
from indexer.format.segment import Segment
from indexer.format.version import OpenVersion
from indexer.search.reader import Facet, FacetValue

TOP_VALUES: Final = 50
_ORDERED: Final = frozenset({"int", "float", "date"})


def facets(version: OpenVersion) -> tuple[Facet, ...]:
    """Every declared field, and those built-in ones of which some living item has a value.

    Raises:
        IndexCorruptError: a segment's database cannot answer.
    """
    fields = version.manifest.declared
    columns = columns_of(fields)
    built_in = [_facet(one, columns[one.name], version) for one in BUILT_IN]
    return (
        *(_facet(one, columns[one.name], version) for one in fields),
        *(facet for facet in built_in if facet.images or facet.texts),
    )


def _facet(field: Field, column: Column, version: OpenVersion) -> Facet:
    segments = [_Living(*pair, column) for pair in zip(version.segments, version.dead, strict=True)]
    present = {"image": 0, "text": 0}
    for living in segments:
        present[living.modality] += living.present()
    images, texts = present["image"], present["text"]
    if field.type in _ORDERED:
        lows = [low for living in segments if (low := living.extreme(largest=False)) is not None]
        highs = [high for living in segments if (high := living.extreme(largest=True)) is not None]
        low, high = min(lows, default=None), max(highs, default=None)
        if field.type != "date":
            return Facet(field.name, field.type, images, texts, low=low, high=high)
        years, months = _periods(segments)
        return Facet(
            field.name,
            field.type,
            images,
            texts,
            distinct=len(years),
            values=_top(years),
            months=_top(months),
            low=None if low is None else show_date(int(low)),
            high=None if high is None else show_date(int(high)),
        )
    distinct, values = _most_frequent(segments, truth=field.type == "bool")
    return Facet(field.name, field.type, images, texts, distinct=distinct, values=values)


class _Living:
    """One segment's values of one field, its dead rows taken away."""

    def __init__(self, segment: Segment, dead: Any, column: Column) -> None:
        self.modality = segment.entry.modality
        self._query = segment.items.query
        self._column = column
        self._dead = dead
        buried = np.flatnonzero(dead).tolist()
        pairs = list(values_at(self._query, column, buried)) if buried else []
        self._gone = Counter(value for _, value in pairs)
        self._gone_rows = len({row for row, _ in pairs})

    def present(self) -> int:
        return count_present(self._query, self._column) - self._gone_rows

    def extreme(self, *, largest: bool) -> int | float | None:
        return extreme(self._query, self._column, self._dead, largest=largest)

    def counts(self) -> Iterator[tuple[Any, str, int]]:
        """(value, modality, living rows), values ascending."""
        for value, count in value_counts(self._query, self._column):
            yield value, self.modality, count - self._gone[value]


def _most_frequent(
    segments: Sequence[_Living], *, truth: bool
) -> tuple[int, tuple[FacetValue, ...]]:
    # every stream ascends by value (SQLite orders text by code point, as Python does), so equal
    # values of different segments meet without all values being held at once
    merged = heapq.merge(*(living.counts() for living in segments), key=itemgetter(0))
    distinct = 0

    def totals() -> Iterator[FacetValue]:
        nonlocal distinct
        for value, group in groupby(merged, key=itemgetter(0)):
            counts = Counter[str]()
            for _, modality, count in group:
                counts[modality] += count
            if counts.total():
                distinct += 1
                shown = bool(value) if truth else value
                yield FacetValue(shown, counts["image"], counts["text"])

    best = _top(totals())
    return distinct, best


def _top(values: Iterable[FacetValue]) -> tuple[FacetValue, ...]:
    order = heapq.nsmallest(
        TOP_VALUES, values, key=lambda one: (-one.images, -one.texts, one.value)
    )
    return tuple(order)


def _periods(segments: Sequence[_Living]) -> tuple[list[FacetValue], list[FacetValue]]:
    """Living rows by year, and by month those of which the month is known."""
    years: dict[str, Counter[str]] = {}
    months: dict[str, Counter[str]] = {}
    for living in segments:
        end, month = 0, None
        for stored, modality, count in living.counts():
            # values ascend: a month's name is found once, not for each of its moments
            if month is None or stored >= end:
                month = show_date(stored | GRAINS)[: len("2024-05")]
                _, end = parse_date(month).bounds
            years.setdefault(month[:4], Counter())[modality] += count
            if stored & GRAINS != YEAR:
                months.setdefault(month, Counter())[modality] += count
    return _values(years), _values(months)


def _values(counts: Mapping[str, Counter[str]]) -> list[FacetValue]:
    return [
        FacetValue(period, many["image"], many["text"])
        for period, many in counts.items()
        if many.total()
    ]
