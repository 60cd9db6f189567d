"""Micro-batching: an `Encoder` whose callers share the runs of each tower.

Each tower has a queue of its own. A picture takes longer than a text, and with one queue for both
a text search would wait behind every batch of pictures; apart they can run side by side, because
neither holds Python's lock while it multiplies. How much that gains on a given machine, a GPU
least of all, has not been measured. A pair of which both towers are in use at once never has two
callers in one tower, which is what `models.encoder.Encoder` asks for.

The cost of a text is its tokens, because the starter's time is proportional to them; that of a
picture is 1, because every prepared picture has the model's own size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import numpy as np

from models.encoder import Encoder, PreparedImage, PreparedText
from models.errors import ModelError
from models.explainer import RelevanceMap
from models.vectors import Vectors
from service.engine.batch_queue import BatchQueue, QueueLimits
from service.engine.call import Call
from service.engine.serial import SerialEncoder, check_finite

P = TypeVar("P")

# 64 texts of a CLIP pair; the starter takes tens of milliseconds for so many
TEXT_LIMITS: Final = QueueLimits(batch=64 * 77, waiting=64 * 77 * 64)
# beyond 16 pictures a batch only gets longer, not faster by the picture
IMAGE_LIMITS: Final = QueueLimits(batch=16, waiting=1024)
_CHUNK: Final = 64


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
