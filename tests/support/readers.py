"""A second `IndexReader`, in memory and by loops, so that nothing leans on what a snapshot is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from indexer.filters.language import Filter
from indexer.search.options import DEFAULTS, SearchOptions, SortKey, Target
from indexer.search.reader import Facet, Hit, IndexInfo, IndexReader, Item, QueryKind
from models.encoder import Fingerprint
from models.errors import InputError, InvalidFilterError, NotFoundError
from models.vectors import Vectors, unit_rows

_MODALITY = {"images": "image", "texts": "text"}


@dataclass(frozen=True, eq=False)
class MemoryReader:
    """What an index tells, in dicts: no fields to filter by, no words, every search exact.

    Attributes:
        items: by number, those of one place in the order of the set.
        vectors: unit rows, by (modality, id).
    """

    version: int
    fingerprint: Fingerprint
    items: dict[int, Item]
    vectors: dict[tuple[str, str], Vectors]
    thumbnails: dict[str, bytes]
    about: IndexInfo
    judge: Callable[..., list[float] | None]
    fields: Sequence[Facet] = ()
    asked: list[SearchOptions] = field(default_factory=list)

    def info(self) -> IndexInfo:
        return self.about

    def facets(self) -> Sequence[Facet]:
        return self.fields

    def check_filter(self, wanted: Filter) -> None:
        raise InvalidFilterError("this index declares no fields")

    def check_sort(self, keys: Sequence[SortKey]) -> None:
        raise InputError("this index declares no fields", code="invalid-sort")

    def search(
        self,
        queries_QD: Vectors,
        options: SearchOptions = DEFAULTS,
        texts: Sequence[str | None] | None = None,
    ) -> list[list[Hit]]:
        self.asked.append(options)
        if options.filter is not None:
            self.check_filter(options.filter)
        if options.hybrid:
            raise InputError("this index knows no words", code="no-words")
        return [self._hits(query_D, options) for query_D in unit_rows(queries_QD)]

    def _hits(self, query_D: Vectors, options: SearchOptions) -> list[Hit]:
        modality = _MODALITY[options.target]
        ranked = sorted(
            (-float(np.float32(self.vectors[modality, item.id] @ query_D)), item.id, item)
            for item in self.items.values()
            if item.modality == modality
        )
        floor = -1.0 if options.min_score is None else options.min_score
        ranked = [one for one in ranked if -one[0] >= floor]
        kept: list[tuple[float, Item, list[str]]] = []
        for negative, item_id, item in ranked:
            own_D = self.vectors[modality, item_id]
            near = [
                others
                for _, better, others in kept
                if options.deduplicate is not None
                and own_D @ self.vectors[modality, better.id] >= options.deduplicate
            ]
            if near:
                near[0].append(item_id)
            else:
                kept.append((-negative, item, []))
        page = kept[options.offset : options.offset + options.k]
        return [Hit(item, score, duplicates=tuple(others)) for score, item, others in page]

    def relevance(
        self, query_D: Vectors, scores_K: Sequence[float], *, kind: QueryKind, target: Target
    ) -> list[float] | None:
        return self.judge(query_D, scores_K, kind=kind, target=target)

    def item(self, item_id: str) -> Item:
        for modality in ("image", "text"):
            for item in self.items.values():
                if (item.modality, item.id) == (modality, item_id):
                    return item
        for item in self.captions(item_id):
            if item.image_id is None:
                return item
        raise NotFoundError("no such item")

    def vector(self, item_id: str) -> Vectors:
        item = self.item(item_id)
        return self.vectors[item.modality, item.id]

    def thumbnail(self, item_id: str) -> bytes:
        if item_id not in self.thumbnails:
            raise NotFoundError("no thumbnail")
        return self.thumbnails[item_id]

    def captions(self, image_id: str) -> list[Item]:
        return [
            item
            for item in self.items.values()
            if item.image_id == image_id
            or (item.image_id is None and item.id.startswith(f"{image_id}#"))
        ]

    def number(self, item: Item) -> int:
        for number, known in self.items.items():
            if known == item:
                return number
        raise NotFoundError("no such item")

    def numbered(self, number: int) -> Item:
        if number not in self.items:
            raise NotFoundError("no such number")
        return self.items[number]


def in_memory(reader: IndexReader) -> MemoryReader:
    """All that a reader of a small index tells, found out by asking it."""
    items: dict[int, Item] = {}
    total = reader.info().images + reader.info().texts
    number = 0
    while len(items) < total:
        try:
            items[number] = reader.numbered(number)
        except NotFoundError:
            assert number < 10_000, "an index this full of holes is none of ours"
        number += 1
    thumbnails = {}
    for item in items.values():
        try:
            thumbnails[item.id] = reader.thumbnail(item.id)
        except NotFoundError:
            assert item.modality == "text"
    return MemoryReader(
        version=reader.version,
        fingerprint=reader.fingerprint,
        items=items,
        vectors={(item.modality, item.id): reader.vector(item.id) for item in items.values()},
        thumbnails=thumbnails,
        about=reader.info(),
        judge=reader.relevance,
        fields=reader.facets(),
    )


class MemoryHolder:
    """An `IndexHolder` of memory readers: `refresh` takes up the one in `newest`."""

    def __init__(self, reader: MemoryReader) -> None:
        self.newest = reader
        self._reader = reader

    @property
    def version(self) -> int:
        return self._reader.version

    @contextmanager
    def use(self) -> Iterator[MemoryReader]:
        yield self._reader

    def refresh(self) -> bool:
        swapped = self._reader is not self.newest
        self._reader = self.newest
        return swapped
