"""The use case of searching: from a query's parts to hits, and whether any of them fits well.

`Retrieval.steps` embeds the query, searches and judges; `Engine.search` and the HTTP resources
drive it. Where many search at once, searches that ask the same of the same version share a run
(`BatchedSearch`): FAISS reads the rows once for all of them, which is what a large index spends its
time on. The numbers of relevance are the index's (`indexer.search.relevance`); what kind of query
it was and what the answer says is decided here.

Shapes: P parts, Q queries, K hits, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from models.encoder import PreparedImage, PreparedText
from models.vectors import Vectors, weighted_sum
from service.engine.batch_queue import BatchQueue, QueueLimits
from service.engine.calls import Call, Steps
from service.engine.queries import (
    MAX_PARTS,
    ComposedQuery,
    EmbeddingQuery,
    ImageQuery,
    ItemQuery,
    SearchAnswer,
    SearchQuery,
    TextQuery,
    Weighted,
    check_embedding,
    check_id,
    check_parts,
    check_text,
    words_of,
)
from service.engine.shared_encoder import SerialEncoder
from service.operations.timing import Prepare, Stopwatch

if TYPE_CHECKING:
    from indexer.search.options import SearchOptions, Target
    from indexer.search.reader import Hit, IndexReader, Item, QueryKind

GATE: Final = 0.5
"""`no_good_match` when the best hit is not above it; 95 of 100 background queries are not."""
# at 64 queries FAISS's own scan falls behind (tests/bench/search_exact.py)
SEARCH_LIMITS: Final = QueueLimits(batch=32, waiting=4096)
_NAMED: Final = 10
"""Hits by cosine and words among which one may hold the query's very words."""
# of a text that is tokenised on the event loop: a third of a millisecond with the starter
_SHORT_TEXT: Final = 500


class Retrieval:
    """Searches with one pair, in whatever index. Safe to call from many threads."""

    def __init__(self, encoder: SerialEncoder, prepare: Prepare, runs: DirectSearch) -> None:
        self._encoder = encoder
        self._prepare = prepare
        self._runs = runs

    def steps(
        self, reader: IndexReader, query: SearchQuery, options: SearchOptions
    ) -> Steps[SearchAnswer]:
        """As `service.engine.engine.Engine.search`, where it is described."""
        options.check_page()
        if options.filter is not None:
            reader.check_filter(options.filter)  # before anything is embedded
        if options.sort:
            reader.check_sort(options.sort)
        watch = Stopwatch()
        parts = check_parts(query)
        query_1D, truncated = yield from self._query_vector(reader, parts, watch)
        # an item is its own nearest neighbour wherever the page starts, so drop it first
        own = [reader.item(part.part.id) for part in parts if isinstance(part.part, ItemQuery)]
        words = words_of(parts)

        def page(k: int, offset: int, options: SearchOptions) -> Steps[list[Hit]]:
            # with room for the query's own items, which are dropped
            more, skip = (offset + k + len(own), 0) if own else (k, offset)
            call = self._runs.submit(Ask(reader, options.ranking(more, skip)), query_1D, words)
            found: list[Hit] = yield call
            watch.lap("search", waited=call.waited)
            if not own:
                return found
            return [hit for hit in found if hit.item not in own][offset : offset + k]

        hits = tuple((yield from page(options.k, options.offset, options)))
        best: Sequence[Hit] = hits[:1]
        # a later page is judged by the query's best hit too, and so is one that words or fields
        # have ordered, and one that is empty because nothing reaches `min_score`
        if options.offset or options.hybrid or options.sort or not hits:
            best = yield from page(1, 0, options.by_cosine())
        judgement = judge(
            reader, query_1D, best, hits, kind=query_kind(parts, own), target=options.target
        )
        misfit = judgement.no_good_match
        if misfit and options.hybrid and words is not None:
            # what the words themselves name is no misfit, whatever the model makes of them
            front = yield from page(_NAMED, 0, options)
            misfit = not any(is_named(reader, words, hit.item) for hit in front)
        vectors_KD = None
        if "embedding" in options.include:
            rows = [reader.vector(hit.item.id) for hit in hits]
            vectors_KD = np.array(rows, dtype=np.float32).reshape(len(rows), self._encoder.dim)
        watch.lap("meta")
        return SearchAnswer(
            hits=hits,
            options=options,
            truncated=truncated,
            index_version=reader.version,
            model=self._encoder.fingerprint.model,
            relevance_K=judgement.relevance_K,
            no_good_match=misfit,
            vectors_KD=vectors_KD,
            timings=watch.stop(),
        )

    def _query_vector(
        self, reader: IndexReader, parts: Sequence[Weighted], watch: Stopwatch
    ) -> Steps[tuple[Vectors, bool]]:
        """The query as a unit row [1, D], and whether a text of it was cut."""
        texts: dict[int, PreparedText] = {}
        images: dict[int, PreparedImage] = {}
        vectors: dict[int, Vectors] = {}
        for position, weighted in enumerate(parts):
            match weighted.part:
                case TextQuery(text):
                    texts[position] = self._encoder.prepare_text(check_text(text))
                case ImageQuery(data):
                    watch.lap("prepare")
                    images[position] = self._prepare(data, watch)
                case ItemQuery(item_id):
                    vectors[position] = reader.vector(check_id(item_id))
                case EmbeddingQuery(values):
                    vectors[position] = check_embedding(values, self._encoder.dim)[0]
        watch.lap("prepare")
        # one call a tower, however many parts, and both on their way before either is waited for
        calls: list[tuple[Iterable[int], Call[Vectors]]] = []
        if texts:
            calls.append((texts, self._encoder.submit_texts(list(texts.values()))))
        if images:
            calls.append((images, self._encoder.submit_images(list(images.values()))))
        for positions, call in calls:
            vectors |= zip(positions, (yield call), strict=True)
        watch.lap("embed", waited=max((call.waited for _, call in calls), default=0.0))
        vectors_PD = np.stack([vectors[position] for position in range(len(parts))])
        query_1D = weighted_sum(vectors_PD, [weighted.weight for weighted in parts])
        return query_1D, any(text.truncated for text in texts.values())


def only_waits(query: SearchQuery) -> bool:
    """Whether a search for this is so little work besides waiting that an event loop can do it."""
    parts = query.parts if isinstance(query, ComposedQuery) else (Weighted(query),)
    return len(parts) <= MAX_PARTS and all(
        isinstance(weighted.part, EmbeddingQuery)
        or (isinstance(weighted.part, TextQuery) and len(weighted.part.text) <= _SHORT_TEXT)
        for weighted in parts
    )


# -- judging the hits -----------------------------------------------------------------------------


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


def is_named(reader: IndexReader, words: str, item: Item) -> bool:
    """Whether the words themselves are in the item's texts, or are its file's name."""
    from indexer.format.word_table import file_name, names

    captions = reader.captions(item.id) if item.modality == "image" else []
    texts = [one.text for one in (item, *captions) if one.text]
    name = file_name(item.uri, item.id) if item.modality == "image" else ""
    return names(words, texts, name)


def judge(
    reader: IndexReader,
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
    found = reader.relevance(query_1D[0], scores, kind=kind, target=target)
    if found is None:
        return Judgement()
    return Judgement(tuple(found[1:]), found[0] <= GATE)


# -- runs of searches -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """What searches must have in common to run together, so that each gets what it would alone.

    Filters were checked against the index before, so that those which compare equal are equal.
    """

    reader: IndexReader
    options: SearchOptions

    def __call__(self, queries_QD: Vectors, words_Q: Sequence[str | None]) -> list[list[Hit]]:
        return self.reader.search(queries_QD, self.options, words_Q)


_Payload: TypeAlias = tuple[Ask, Vectors, str | None]


class DirectSearch:
    """Every search runs in its caller's thread, at once."""

    def submit(self, ask: Ask, query_1D: Vectors, words: str | None = None) -> Call[list[Hit]]:
        """The hits of one query, float32 [1, D]; errors as `IndexReader.search`, in the call."""
        return Call.at_once(lambda: ask(query_1D, [words])[0])


class BatchedSearch(DirectSearch):
    """One thread searches for all callers, of any number of indexes.

    A second one would only take turns with it: FAISS spreads the queries of a run over the cores.
    """

    def __init__(self, limits: QueueLimits = SEARCH_LIMITS) -> None:
        self._queue: BatchQueue[_Payload, list[Hit]] = BatchQueue("search", _run, limits)

    def submit(self, ask: Ask, query_1D: Vectors, words: str | None = None) -> Call[list[Hit]]:
        """As `DirectSearch`, and OverloadedError or DeadlineError as `BatchQueue.submit`."""
        # the reader is the caller's, and may be closed once it has left
        return self._queue.submit((ask, query_1D, words), key=ask, must_end=True)

    def stop(self, timeout: float | None = None) -> bool:
        """Finish what waits, refuse what comes -> whether it ended in time."""
        return self._queue.stop(timeout)


def _run(payloads: Sequence[_Payload]) -> Sequence[list[Hit] | Exception]:
    ask = payloads[0][0]
    queries_QD = np.concatenate([query_1D for _, query_1D, _ in payloads])
    return ask(queries_QD, [words for _, _, words in payloads])
