"""One encoder pair shared out among callers: one at a time, or batched.

`SerialEncoder` holds a lock around `embed_*`. It serves the command line, which has one caller, and
lives below every engine. The service makes a `BatchingEncoder`, whose callers share the runs of
each tower.

There each tower has a queue of its own. A picture takes longer than a text, and with one queue for
both a text search would wait behind every batch of pictures; apart they can run side by side,
because neither holds Python's lock while it multiplies. How much that gains on a given machine, a
GPU least of all, has not been measured. A pair of which both towers are in use at once never has
two callers in one tower, which is what `models.encoder.Encoder` asks for.

The cost of a text is its tokens, because the starter's time is proportional to them; that of a
picture is 1, because every prepared picture has the model's own size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from models.encoder import Encoder, Fingerprint, PreparedImage, PreparedText
from models.errors import ModelError
from models.explainer import Area, Explainer, RelevanceMap, cannot_explain
from models.vectors import Vectors
from service.engine.batch_queue import BatchQueue, QueueLimits
from service.engine.calls import Call

if TYPE_CHECKING:
    from PIL.Image import Image

P = TypeVar("P")

# 64 texts of a CLIP pair; the starter takes tens of milliseconds for so many
TEXT_LIMITS: Final = QueueLimits(batch=64 * 77, waiting=64 * 77 * 64)
# beyond 16 pictures a batch only gets longer, not faster by the picture
IMAGE_LIMITS: Final = QueueLimits(batch=16, waiting=1024)
_CHUNK: Final = 64


class SerialEncoder:
    """Delegates to an encoder pair; safe to call from any number of threads."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> Fingerprint:
        return self._encoder.fingerprint

    @property
    def dim(self) -> int:
        return self._encoder.dim

    @property
    def logit_scale(self) -> float:
        return self._encoder.logit_scale

    @property
    def logit_bias(self) -> float | None:
        return self._encoder.logit_bias

    def prepare_image(self, image: Image) -> PreparedImage:
        return self._encoder.prepare_image(image)

    def prepare_text(self, text: str) -> PreparedText:
        return self._encoder.prepare_text(text)

    def embed_images(self, images: Sequence[PreparedImage]) -> Vectors:
        with self._lock:
            return check_finite(self._encoder.embed_images(images))

    def embed_texts(self, texts: Sequence[PreparedText]) -> Vectors:
        with self._lock:
            return check_finite(self._encoder.embed_texts(texts))

    def submit_images(self, images: Sequence[PreparedImage]) -> Call[Vectors]:
        """`embed_images`, done when it returns; its error is in the call."""
        return Call.at_once(lambda: self.embed_images(images))

    def submit_texts(self, texts: Sequence[PreparedText]) -> Call[Vectors]:
        """`embed_texts`, likewise."""
        return Call.at_once(lambda: self.embed_texts(texts))

    @property
    def explanation_method(self) -> str | None:
        """How the pair explains its answers (`models.explainer`); None if it cannot."""
        try:
            return self._explainer().explanation_method
        except ModelError:
            return None

    def explained_area(self, width: int, height: int) -> Area:
        """See `models.explainer.Explainer`. Raises ModelError, code `cannot-explain`."""
        return self._explainer().explained_area(width, height)

    def relevance_map(self, image: PreparedImage, direction_D: Vectors) -> RelevanceMap:
        """See `models.explainer.Explainer`. Raises ModelError, code `cannot-explain`."""
        explainer = self._explainer()
        with self._lock:
            return explainer.relevance_map(image, direction_D)

    def _explainer(self) -> Explainer:
        if not isinstance(self._encoder, Explainer):
            raise cannot_explain("it has no method")
        return self._encoder


class BatchingEncoder(SerialEncoder):
    """As `SerialEncoder`, several callers at a time; `stop` it."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        texts: QueueLimits = TEXT_LIMITS,
        images: QueueLimits = IMAGE_LIMITS,
    ) -> None:
        super().__init__(encoder)
        self._texts: BatchQueue[Sequence[PreparedText], Vectors] = BatchQueue(
            "text", lambda calls: _together(encoder.embed_texts, calls), texts
        )
        self._images: BatchQueue[Sequence[PreparedImage], Vectors] = BatchQueue(
            "image", lambda calls: _together(encoder.embed_images, calls), images
        )
        self._image_chunk = images.batch

    def submit_texts(self, texts: Sequence[PreparedText]) -> Call[Vectors]:
        """Queue the few texts of one request -> their rows, float32 [B, D].

        Raises:
            OverloadedError, DeadlineError: as `BatchQueue.submit`.
        """
        return self._texts.submit(texts, cost=sum(map(_tokens, texts)), items=len(texts))

    def submit_images(self, images: Sequence[PreparedImage]) -> Call[Vectors]:
        """As `submit_texts`, of pictures."""
        return self._images.submit(images, cost=len(images), items=len(images))

    def embed_texts(self, texts: Sequence[PreparedText]) -> Vectors:
        """As `Encoder`; waits. Many texts go a chunk at a time, and others between the chunks.

        Raises:
            OverloadedError, DeadlineError: as `BatchQueue.submit`.
            ModelError: the pair failed, or returned NaN or infinity.
        """
        return self._chunked(texts, _CHUNK, self.submit_texts)

    def embed_images(self, images: Sequence[PreparedImage]) -> Vectors:
        """As `embed_texts`, of pictures."""
        return self._chunked(images, self._image_chunk, self.submit_images)

    def stop(self, timeout: float | None = None) -> bool:
        """Finish what waits, refuse what comes -> whether all ended in time."""
        ended = [queue.stop(timeout) for queue in (self._texts, self._images)]
        return all(ended)

    def relevance_map(self, image: PreparedImage, direction_D: Vectors) -> RelevanceMap:
        """See `models.explainer.Explainer`. Raises ModelError, code `cannot-explain`."""
        explainer = self._explainer()
        # a map may need both towers
        with self._images.turn, self._texts.turn:
            return explainer.relevance_map(image, direction_D)

    def _chunked(
        self, items: Sequence[P], size: int, submit: Callable[[Sequence[P]], Call[Vectors]]
    ) -> Vectors:
        if not items:
            return np.zeros((0, self.dim), dtype=np.float32)
        rows = [
            submit(items[start : start + size]).result() for start in range(0, len(items), size)
        ]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _together(
    embed: Callable[[Sequence[P]], Vectors], calls: Sequence[Sequence[P]]
) -> list[Vectors | Exception]:
    """One run of a tower for several callers -> the rows of each, or why it gets none."""
    items = [item for call in calls for item in call]
    vectors_BD = embed(items)
    if len(vectors_BD) != len(items):
        raise ModelError(f"the encoder pair returned {len(vectors_BD)} rows for {len(items)} items")
    answers: list[Vectors | Exception] = []
    start = 0
    for call in calls:
        try:
            answers.append(check_finite(vectors_BD[start : start + len(call)]))
        except ModelError as error:
            answers.append(error)
        start += len(call)
    return answers


def _tokens(text: PreparedText) -> int:
    try:
        return len(text.tokens)
    except TypeError:  # whatever a tokenizer of another kind makes
        return 77


def check_finite(vectors_BD: Vectors) -> Vectors:
    """The rows, unless one of them would compare false with everything.

    Raises:
        ModelError: NaN or infinity: it would answer with arbitrary hits and no error.
    """
    if not np.isfinite(vectors_BD).all():
        raise ModelError("the encoder pair returned NaN or infinity")
    return vectors_BD
