"""The use cases, shared by HTTP and the command line: search, classify, item, thumbnail, info.

Joins an encoder pair with an index, of which it knows `indexer.search.reader.IndexReader` alone.
Does not know HTTP, JSON, click, torch or FAISS; raises only the errors of `models.errors`. Safe to
call from many threads: the encoder is shared out (`service.engine.shared_encoder`), decoding is
bounded but parallel, a reader never changes.

Over an `IndexHolder` the index may be replaced at any time; `pin` gives an engine that answers from
one version, for as long as one request takes.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self, get_args

from indexer.format.manifest import check_encoder
from indexer.search.options import DEFAULTS, SearchOptions, Target
from indexer.search.reader import IndexHolder
from models.encoder import Encoder, Fingerprint, PreparedImage
from models.errors import IndexNotFoundError
from service.engine import deadline
from service.engine.calls import Steps, finish
from service.engine.classifier import Classifier
from service.engine.embeddings import Embeddings
from service.engine.explanations import Decode, Explanations, decode_here
from service.engine.label_set_store import LabelSetStore
from service.engine.label_sets import check_label_set
from service.engine.queries import (
    ClassifyAnswer,
    FilePaths,
    SearchAnswer,
    SearchQuery,
    check_id,
)
from service.engine.retrieval import DirectSearch, Retrieval
from service.engine.shared_encoder import SerialEncoder
from service.operations.timing import Stopwatch

if TYPE_CHECKING:
    from indexer.search.reader import Facet, IndexInfo, IndexReader, Item
    from service.engine.item_writer import ItemWriter

# a 50 MP picture takes about 400 MB while decoded; four of them fit a small machine
_DECODE_SLOTS = 4
DEFAULT_NAME = "default"


class Engine:
    """Use cases over one encoder pair and one index (`None`: classification only).

    Engines that share a pair share its `BatchingEncoder` (or `SerialEncoder`) and `searches`, so
    that the device still has one caller and requests to all of them share its runs.

    Attributes:
        name: how requests name the index among several; `DEFAULT_NAME` where it stands alone.
        holder: the index, if versions of it may replace each other; `pin` before searching it.
        explanations: which part of a picture answers to a text.
        classifier: zero-shot classification with this pair, and the stored label sets.
        embeddings: vectors of texts and pictures, for somebody else's index.
        writer: puts and deletes items; None where the index is only read.
        file_paths: how much is told of where files lie on this machine.

    Raises:
        EncoderMismatchError: the index holds another pair's vectors.
    """

    # of the process, not of an engine: it bounds the memory of pictures being decoded
    _decoding = threading.BoundedSemaphore(_DECODE_SLOTS)

    def __init__(
        self,
        encoder: Encoder,
        index: IndexReader | IndexHolder | None = None,
        *,
        name: str = DEFAULT_NAME,
        label_sets: LabelSetStore | None = None,
        searches: DirectSearch | None = None,
        decode: Decode | None = None,
        writer: ItemWriter | None = None,
        file_paths: FilePaths | None = None,
    ) -> None:
        self.name = name
        self.writer = writer
        self.file_paths = file_paths or FilePaths()
        self.holder = index if isinstance(index, IndexHolder) else None
        self._encoder = encoder if isinstance(encoder, SerialEncoder) else SerialEncoder(encoder)
        self._reader = None if isinstance(index, IndexHolder) else index
        self._decode = decode or decode_here
        self.explanations = Explanations(self._encoder, self._decoding, self._decode)
        self.classifier = Classifier(self._encoder, self._prepare, label_sets)
        self._retrieval = Retrieval(self._encoder, self._prepare, searches or DirectSearch())
        self.embeddings = Embeddings(self._encoder, self._prepare)
        with self.pin() as pinned:
            if pinned._reader is not None:
                check_encoder(pinned._reader.fingerprint, encoder.fingerprint)

    @contextmanager
    def pin(self) -> Iterator[Self]:
        """This engine with the version current now, which stays open until the block is left."""
        if self.holder is None:
            yield self
            return
        with self.holder.use() as reader:
            pinned = copy.copy(self)
            pinned.holder, pinned._reader = None, reader
            yield pinned

    @property
    def reader(self) -> IndexReader:
        """The index that answers.

        Raises:
            IndexNotFoundError: the engine was made without one.
        """
        assert self.holder is None, "an index that may be replaced is pinned first"
        if self._reader is None:
            raise IndexNotFoundError("no index is loaded")
        return self._reader

    @property
    def encoder(self) -> Encoder:
        """The pair, shared out among callers."""
        return self._encoder

    @property
    def fingerprint(self) -> Fingerprint:
        return self._encoder.fingerprint

    def search(self, query: SearchQuery, options: SearchOptions = DEFAULTS) -> SearchAnswer:
        """The `options.k` items closest to the query, best first, after skipping `options.offset`.

        Of `options.include` only `embedding` matters here: the hits' vectors are read, too.

        Raises:
            InvalidTextError, InvalidVectorError (also: parts that cancel out), ImageError,
            NotFoundError (query by id), InvalidFilterError, InputError (page, number of parts or a
            weight out of range), IndexNotFoundError (no index loaded).
        """
        return finish(self.search_steps(query, options))

    def search_steps(
        self, query: SearchQuery, options: SearchOptions = DEFAULTS
    ) -> Steps[SearchAnswer]:
        """`search` as steps, for who drives them on an event loop; see `only_waits`."""
        return self._retrieval.steps(self.reader, query, options)

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
        """One indexed item; of a record of texts only, the first. Raises NotFoundError."""
        return self.reader.item(check_id(item_id))

    def captions(self, item: Item) -> list[Item]:
        """The texts that belong to an image item; of a text item, those of its picture."""
        image_id = item.id if item.modality == "image" else item.image_id
        return [] if image_id is None else self.reader.captions(image_id)

    def thumbnail(self, item_id: str) -> bytes:
        """An image item's thumbnail as JPEG. Raises NotFoundError."""
        return self.reader.thumbnail(check_id(item_id))

    def index_info(self) -> IndexInfo:
        return self.reader.info()

    def facets(self) -> Sequence[Facet]:
        """What filters can ask for: the declared fields and their values."""
        return self.reader.facets()

    def warm_up(self) -> None:
        """Run both towers and a search once, so the first caller does not pay for lazy set-up."""
        from PIL import Image

        grey = self._encoder.prepare_image(Image.new("RGB", (64, 64), (128, 128, 128)))
        self._encoder.embed_images([grey])
        with self.pin() as pinned:
            self.try_out(pinned._reader)

    def try_out(self, reader: IndexReader | None) -> None:
        """A first search of an index not yet in use: what it raises keeps it from being used.

        Raises:
            EncoderMismatchError: it holds another pair's vectors.
        """
        text_1D = self._encoder.embed_texts([self._encoder.prepare_text("a photo")])
        if reader is not None:
            check_encoder(reader.fingerprint, self.fingerprint)
            for target in get_args(Target):
                reader.search(text_1D, SearchOptions(k=1, target=target))

    def _prepare(self, data: bytes, watch: Stopwatch | None = None) -> PreparedImage:
        deadline.check()
        with self._decoding:
            picture = self._decode(data)
            if watch is not None:
                watch.lap("decode")
            return self._encoder.prepare_image(picture)
