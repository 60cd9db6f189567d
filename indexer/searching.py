"""Search in one version of an index: from query vectors to a page of hits.

    Searcher.search    checks the request, chooses what scans each segment, merges and orders
    Hit                one result

Each segment proposes rows (`indexer.vector_index`, `indexer.selection`), `indexer.ranking` scores
them again, and here they are put in order, by score and then id, and cut to the page. It knows
segments and which of their rows live; not how versions are opened, nor who asks.

Shapes: Q queries, K hits, D embedding, N rows, M some rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from indexer.filters import Filter, check_filter
from indexer.items import Item
from indexer.manifest import Modality
from indexer.ranking import Candidates, Scanner, candidates
from indexer.segment import Segment
from indexer.selection import Part, Selections
from indexer.vector_index import ExactIndex
from indexer.version import OpenVersion
from models.errors import InputError, InvalidVectorError
from models.vectors import Vectors, unit_rows

Target = Literal["images", "texts"]
_MODALITY: Final[dict[Target, Modality]] = {"images": "image", "texts": "text"}


@dataclass(frozen=True, slots=True)
class Hit:
    """A search result: the item, and the cosine between it and the query, in [-1, 1]."""

    item: Item
    score: float


class Searcher:
    """The searchable parts of an open version. Safe to use from several threads."""

    def __init__(self, version: OpenVersion, live: Sequence[npt.NDArray[np.bool_]]) -> None:
        """`live` tells per segment, bool [N], which rows may be found."""
        self._manifest = version.manifest
        self._selections = Selections(version.manifest.declared)
        self._parts: dict[Modality, list[Part]] = {"image": [], "text": []}
        for segment, live_N in zip(version.segments, live, strict=True):
            part = Part(segment, live_N, ExactIndex(segment.vectors_ND, live_N))
            self._parts[segment.entry.modality].append(part)

    def search(
        self,
        queries_QD: Vectors,
        k: int,
        *,
        target: Target = "images",
        offset: int = 0,
        filter: Filter | None = None,
    ) -> list[list[Hit]]:
        """As `indexer.snapshot.Snapshot.search`, where it is described."""
        if target not in _MODALITY:
            raise InputError(f"target must be images or texts, not {target!r}")
        if k < 1 or offset < 0:
            raise InputError("k must be at least 1 and offset at least 0")
        queries_QD = self._checked(queries_QD)
        parts = self._parts[_MODALITY[target]]
        scanners: list[Scanner] = [part.index for part in parts]
        if filter is not None:
            check_filter(filter, self._manifest.declared)
            scanners = self._selections.scanners(filter, parts)
        keep = min(offset + k, sum(scanner.live for scanner in scanners))
        if keep <= offset or not len(queries_QD):
            return [[] for _ in queries_QD]
        segments = [part.segment for part in parts]
        vectors = [segment.vectors_ND for segment in segments]
        found = candidates(scanners, vectors, queries_QD, keep)
        return [_hits(segments, one, offset, keep) for one in found]

    def _checked(self, queries_QD: Vectors) -> Vectors:
        queries_QD = unit_rows(queries_QD)
        dim = self._manifest.dim
        if queries_QD.shape[1] != dim:
            raise InvalidVectorError(
                f"a query has {queries_QD.shape[1]} dimensions, the index has {dim}"
            )
        return queries_QD


def _hits(segments: Sequence[Segment], found: Candidates, offset: int, keep: int) -> list[Hit]:
    """Sort one query's candidates by score, then id, and load the items of the page."""
    names = np.empty(len(found.rows), dtype=object)
    for position, segment in enumerate(segments):
        (where,) = np.nonzero(found.segments == position)
        if len(where):
            ids = segment.items.ids(found.rows[where].tolist())
            names[where] = [ids[int(row)] for row in found.rows[where]]
    order = sorted(range(len(names)), key=lambda i: (-float(found.scores[i]), names[i]))
    page = order[offset:keep]
    items: dict[tuple[int, int], Item] = {}
    for position, segment in enumerate(segments):
        rows = [int(found.rows[i]) for i in page if found.segments[i] == position]
        if rows:
            loaded = segment.items.items(rows)
            items.update({(position, row): item for row, item in loaded.items()})
    return [
        Hit(
            items[int(found.segments[i]), int(found.rows[i])],
            # a rounded row may be a hair longer than 1
            score=max(-1.0, min(1.0, float(found.scores[i]))),
        )
        for i in page
    ]
