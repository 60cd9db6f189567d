"""The use cases, shared by HTTP and the command line: search, classify, item, thumbnail, info.

Holds an encoder pair and an opened snapshot and joins them. Does not know HTTP, JSON, click, torch
or FAISS; raises only the errors of `models.errors`. Safe to call from many threads: the encoder
shares the device out (`service.engine.batching`, or one at a time `service.engine.serial`),
decoding is bounded but parallel, a snapshot is read-only.

Over a `SnapshotHolder` the index may be replaced at any time; `pin` gives an engine that answers
from one version, for as long as one request takes.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np

from indexer.format.manifest import check_encoder
from indexer.search.holder import SnapshotHolder
from models.encoder import Encoder, Fingerprint, PreparedImage, PreparedText
from models.errors import IndexNotFoundError, InvalidTextError, NotFoundError
from models.vectors import Vectors, weighted_sum
from service.engine import deadline
from service.engine.call import Call
from service.engine.classifier import Classifier
from service.engine.embedding import Embeddings
from service.engine.explanations import Decode, Explanations, decode_here
from service.engine.item_writer import ItemWriter
from service.engine.judgement import judge, query_kind
from service.engine.label_set_store import LabelSetStore
from service.engine.label_sets import check_label_set
from service.engine.queries import (
    MAX_PARTS,
    MAX_TEXT_CHARS,
    ClassifyAnswer,
    ComposedQuery,
    EmbeddingQuery,
    ImageQuery,
    ItemQuery,
    Manner,
    SearchAnswer,
    SearchQuery,
    Target,
    TextQuery,
    Weighted,
    check_embedding,
    check_page,
    check_parts,
    check_text,
    storable,
    words_of,
)
from service.engine.searches import Ask, DirectSearch
from service.engine.serial import SerialEncoder
from service.engine.steps import Steps, finish
from service.operations.timing import Stopwatch

if TYPE_CHECKING:
    from indexer.filters.language import Filter
    from indexer.search.facets import Facet
    from indexer.search.snapshot import Hit, IndexInfo, Item, Snapshot

# a 50 MP picture takes about 400 MB while decoded; four of them fit a small machine
_DECODE_SLOTS = 4
# of a text that is tokenised on the event loop: a third of a millisecond with the starter
_SHORT_TEXT = 500
DEFAULT_NAME = "default"
_PLAIN = Manner()


class Engine:
    """Use cases over one encoder pair and one snapshot (`None`: classification only).

    Engines that share a pair share its `BatchingEncoder` (or `SerialEncoder`) and `searches`, so
    that the device still has one caller and requests to all of them share its runs.

    Attributes:
        name: how requests name the index among several; `DEFAULT_NAME` where it stands alone.
        holder: the index, if versions of it may replace each other; `pin` before searching it.
        explanations: which part of a picture answers to a text.
        classifier: zero-shot classification with this pair, and the stored label sets.
        embeddings: vectors of texts and pictures, for somebody else's index.
        writer: puts and deletes items; None where the index is only read.

    Raises:
        EncoderMismatchError: the index holds another pair's vectors.
    """

    # of the process, not of an engine: it bounds the memory of pictures being decoded
    _decoding = threading.BoundedSemaphore(_DECODE_SLOTS)

    def __init__(
        self,
        encoder: Encoder,
        snapshot: Snapshot | SnapshotHolder | None = None,
        *,
        name: str = DEFAULT_NAME,
        label_sets: LabelSetStore | None = None,
        searches: DirectSearch | None = None,
        decode: Decode | None = None,
        writer: ItemWriter | None = None,
    ) -> None:
        self.name = name
        self.writer = writer
        self._searches = searches or DirectSearch()
        self.holder = snapshot if isinstance(snapshot, SnapshotHolder) else None
        self._encoder = encoder if isinstance(encoder, SerialEncoder) else SerialEncoder(encoder)
        self._snapshot = None if isinstance(snapshot, SnapshotHolder) else snapshot
        self._decode = decode or decode_here
        self.explanations = Explanations(self._encoder, self._decoding, self._decode)
        self.classifier = Classifier(self._encoder, self._prepare, label_sets)
        self.embeddings = Embeddings(self._encoder, self._prepare)
        with self.pin() as pinned:
            if pinned._snapshot is not None:
                check_encoder(pinned._snapshot.fingerprint, encoder.fingerprint)

    @contextmanager
    def pin(self) -> Iterator[Self]:
        """This engine with the version current now, which stays open until the block is left."""
        if self.holder is None:
            yield self
            return
        with self.holder.use() as snapshot:
            pinned = copy.copy(self)
            pinned.holder, pinned._snapshot = None, snapshot
            yield pinned

    @property
    def snapshot(self) -> Snapshot:
        """The opened index.

        Raises:
            IndexNotFoundError: the engine was made without one.
        """
        assert self.holder is None, "an index that may be replaced is pinned first"
        if self._snapshot is None:
            raise IndexNotFoundError("no index is loaded")
        return self._snapshot

    @property
    def encoder(self) -> Encoder:
        """The pair, shared out among callers."""
        return self._encoder

    @property
    def fingerprint(self) -> Fingerprint:
        return self._encoder.fingerprint

    def search(
        self,
        query: SearchQuery,
        *,
        target: Target = "images",
        k: int = 10,
        offset: int = 0,
        filter: Filter | None = None,
        min_score: float | None = None,
        include_vectors: bool = False,
        manner: Manner = _PLAIN,
    ) -> SearchAnswer:
        """The `k` items of `target` closest to the query, best first, after skipping `offset`.

        Args:
            filter: which items may be found at all.
            min_score: drop hits whose cosine is lower.
            include_vectors: also return the hits' embeddings.
            manner: how to search: words too, near-duplicates left out, exactly.

        Raises:
            InvalidTextError, InvalidVectorError (also: parts that cancel out), ImageError,
            NotFoundError (query by id), InvalidFilterError, InputError (k, offset, number of parts
            or a weight out of range), IndexNotFoundError (no index loaded).
        """
        return finish(
            self.search_steps(
                query,
                target=target,
                k=k,
                offset=offset,
                filter=filter,
                min_score=min_score,
                include_vectors=include_vectors,
                manner=manner,
            )
        )

    def search_steps(
        self,
        query: SearchQuery,
        *,
        target: Target = "images",
        k: int = 10,
        offset: int = 0,
        filter: Filter | None = None,
        min_score: float | None = None,
        include_vectors: bool = False,
        manner: Manner = _PLAIN,
    ) -> Steps[SearchAnswer]:
        """`search` as steps, for who drives them on an event loop; see `only_waits`."""
        check_page(k, offset)
        snapshot = self.snapshot
        if filter is not None:
            snapshot.check_filter(filter)  # before anything is embedded
        watch = Stopwatch()
        parts = check_parts(query)
        query_1D, truncated = yield from self._query_vector(parts, watch)
        # an item is its own nearest neighbour wherever the page starts, so drop it first
        own = [snapshot.item(part.part.id) for part in parts if isinstance(part.part, ItemQuery)]

        words = words_of(parts)

        def page(k: int, offset: int, manner: Manner) -> Steps[list[Hit]]:
            # with room for the query's own items, which are dropped
            more, skip = (offset + k + len(own), 0) if own else (k, offset)
            ask = Ask(snapshot, more, skip, target, filter, manner)
            call = self._searches.submit(ask, query_1D, words)
            found: list[Hit] = yield call
            watch.lap("search", waited=call.waited)
            if not own:
                return found
            return [hit for hit in found if hit.item not in own][offset : offset + k]

        found = yield from page(k, offset, manner)
        hits = tuple(hit for hit in found if min_score is None or hit.score >= min_score)
        best = found[:1]
        # a later page is judged by the query's best hit too, and so is one that words have ordered
        if offset or manner.hybrid:
            alone = replace(manner, hybrid=0.0, deduplicate=None)
            best = yield from page(1, 0, alone)
        judgement = judge(
            snapshot, query_1D, best, hits, kind=query_kind(parts, own), target=target
        )
        vectors_KD = self._vectors(hits) if include_vectors else None
        watch.lap("meta")
        return SearchAnswer(
            hits=hits,
            k=k,
            offset=offset,
            target=target,
            truncated=truncated,
            index_version=snapshot.version,
            model=self.fingerprint.model,
            relevance_K=judgement.relevance_K,
            no_good_match=judgement.no_good_match,
            vectors_KD=vectors_KD,
            timings=watch.stop(),
        )

    def classify(
        self,
        images: Sequence[bytes],
        labels: Sequence[str],
        *,
        templates: Sequence[str] | None = None,
        template_set: str | None = None,
        multi_label: bool = False,
        top_k: int | None = None,
    ) -> ClassifyAnswer:
        """Score every picture against labels of the caller's; `classifier` can do more.

        A picture that cannot be decoded carries its error in its own result; the others answer.
        Probabilities are softmax over the labels, or one sigmoid per label for `multi_label`.

        Args:
            images: encoded pictures.
            labels: 2 (1 with `multi_label`) to 1000 distinct names.
            templates: prompts in which `{}` or `{c}` stands for the label.
            template_set: the name of a list in `models.labels.prompts.TEMPLATE_SETS` instead.
            top_k: keep only the most likely labels.

        Raises:
            InvalidLabelsError: labels, templates or the template set.
        """
        label_set = check_label_set(
            labels, templates=templates, template_set=template_set, multi_label=multi_label
        )
        return self.classifier.classify(images, label_set, top_k=top_k)

    def item(self, item_id: str) -> Item:
        """One indexed item. Raises NotFoundError."""
        return self.snapshot.item(_check_id(item_id))

    def captions(self, item: Item) -> list[Item]:
        """The texts that belong to an image item; of a text item, those of its picture."""
        image_id = item.id if item.modality == "image" else item.image_id
        return [] if image_id is None else self.snapshot.captions(image_id)

    def thumbnail(self, item_id: str) -> bytes:
        """An image item's thumbnail as JPEG. Raises NotFoundError."""
        return self.snapshot.thumbnail(_check_id(item_id))

    def index_info(self) -> IndexInfo:
        return self.snapshot.info()

    def facets(self) -> Sequence[Facet]:
        """What filters can ask for: the declared fields and their values."""
        return self.snapshot.facets()

    def warm_up(self) -> None:
        """Run both towers and a search once, so the first caller does not pay for lazy set-up."""
        from PIL import Image

        grey = self._encoder.prepare_image(Image.new("RGB", (64, 64), (128, 128, 128)))
        self._encoder.embed_images([grey])
        with self.pin() as pinned:
            self.try_out(pinned._snapshot)

    def try_out(self, snapshot: Snapshot | None) -> None:
        """A first search of an index not yet in use: what it raises keeps it from being used.

        Raises:
            EncoderMismatchError: it holds another pair's vectors.
        """
        text_1D = self._encoder.embed_texts([self._encoder.prepare_text("a photo")])
        if snapshot is not None:
            check_encoder(snapshot.fingerprint, self.fingerprint)
            snapshot.search(text_1D, 1, target="images")
            snapshot.search(text_1D, 1, target="texts")

    def _prepare(self, data: bytes, watch: Stopwatch | None = None) -> PreparedImage:
        deadline.check()
        with self._decoding:
            picture = self._decode(data)
            if watch is not None:
                watch.lap("decode")
            return self._encoder.prepare_image(picture)

    def _query_vector(
        self, parts: Sequence[Weighted], watch: Stopwatch
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
                    vectors[position] = self.snapshot.vector(_check_id(item_id))
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

    def _vectors(self, hits: Sequence[Hit]) -> Vectors:
        if not hits:
            return np.zeros((0, self._encoder.dim), dtype=np.float32)
        return np.stack([self.snapshot.vector(hit.item.id) for hit in hits])


def only_waits(query: SearchQuery) -> bool:
    """Whether a search for this is so little work besides waiting that an event loop can do it."""
    parts = query.parts if isinstance(query, ComposedQuery) else (Weighted(query),)
    return len(parts) <= MAX_PARTS and all(
        isinstance(weighted.part, EmbeddingQuery)
        or (isinstance(weighted.part, TextQuery) and len(weighted.part.text) <= _SHORT_TEXT)
        for weighted in parts
    )


def _check_id(item_id: str) -> str:
    """The id, if a store could hold it; anything else is no item's id."""
    if len(item_id) > MAX_TEXT_CHARS:
        raise NotFoundError("no item has this id")
    if not storable(item_id):
        raise InvalidTextError("the id holds NUL or a lone surrogate, which is not valid Unicode")
    return item_id
