"""Relevance of an answer's hits, and whether nothing in the index fits the query well.

The numbers are the index's (`indexer.search.background`); this decides what kind of query it was
and what the answer says. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from models.vectors import Vectors
from service.engine.queries import EmbeddingQuery, TextQuery, Weighted

if TYPE_CHECKING:
    from indexer.search.background import QueryKind
    from indexer.search.snapshot import Hit, Item, Snapshot
    from service.engine.queries import Target

GATE: Final = 0.5
"""`no_good_match` when the best hit is not above it; 95 of 100 background queries are not."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Relevance per hit, and whether the query's best hit stays at or below the gate.

    Both None where the index cannot judge: no background, too few items, nothing found, or a query
    with a bare embedding in it, which may be anything.
    """

    relevance_K: tuple[float, ...] | None = None
    no_good_match: bool | None = None


def query_kind(parts: Sequence[Weighted], own: Sequence[Item]) -> QueryKind | None:
    """What a query was made of; `own` are the indexed items among its parts."""
    if any(isinstance(weighted.part, EmbeddingQuery) for weighted in parts):
        return None
    words = sum(isinstance(weighted.part, TextQuery) for weighted in parts)
    words += sum(item.modality == "text" for item in own)
    if words == len(parts):
        return "text"
    return "mixed" if words else "image"


def judge(
    snapshot: Snapshot,
    query_1D: Vectors,
    best: Sequence[Hit],
    hits: Sequence[Hit],
    *,
    kind: QueryKind | None,
    target: Target,
) -> Judgement:
    """Judge the hits of a page; `best` holds the query's best hit, on whatever page, if any."""
    if kind is None or not best:
        return Judgement()
    scores = [best[0].score, *(hit.score for hit in hits)]
    found = snapshot.relevance(query_1D[0], scores, kind=kind, target=target)
    if found is None:
        return Judgement()
    return Judgement(tuple(found[1:]), found[0] <= GATE)
