"""The use case of embedding texts and pictures for somebody else's index. Knows no index itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from models.encoder import PreparedImage, PreparedText
from models.errors import DiptychError
from models.vectors import Vectors
from service.engine.queries import ImageQuery, TextQuery, check_text
from service.engine.shared_encoder import SerialEncoder
from service.operations.timing import Prepare, Stopwatch


class EmbeddingError(DiptychError):
    """One of the inputs was refused, and so all are; `position` says which, `error` why."""

    def __init__(self, position: int, error: DiptychError) -> None:
        super().__init__(error.message, code=error.code, hint=error.hint)
        self.position = position
        self.error = error


@dataclass(frozen=True, slots=True)
class EmbeddingAnswer:
    """`vectors_BD`: float32, unit rows, in the order asked; `tokens` of all texts together.

    `timings`: milliseconds per stage (`decode`, `prepare`, `embed`, `total`).
    """

    vectors_BD: Vectors
    tokens: int
    truncated: bool
    timings: Mapping[str, float] = field(default_factory=dict)


class Embeddings:
    """Embeds with one pair; safe to call from many threads."""

    def __init__(self, encoder: SerialEncoder, prepare: Prepare) -> None:
        self._encoder = encoder
        self._prepare = prepare

    @property
    def dim(self) -> int:
        return self._encoder.dim

    def embed(self, inputs: Sequence[TextQuery | ImageQuery]) -> EmbeddingAnswer:
        """All inputs, one batch a tower.

        Raises:
            EmbeddingError: the first input that is refused (text, picture).
        """
        watch = Stopwatch()
        texts: dict[int, PreparedText] = {}
        images: dict[int, PreparedImage] = {}
        for position, given in enumerate(inputs):
            try:
                if isinstance(given, TextQuery):
                    texts[position] = self._encoder.prepare_text(check_text(given.text))
                else:
                    images[position] = self._prepare(given.data, watch)
            except DiptychError as error:
                raise EmbeddingError(position, error) from error
            watch.lap("prepare")
        vectors_BD = np.zeros((len(inputs), self.dim), dtype=np.float32)
        if texts:
            vectors_BD[list(texts)] = self._encoder.embed_texts(list(texts.values()))
        if images:
            vectors_BD[list(images)] = self._encoder.embed_images(list(images.values()))
        watch.lap("embed")
        return EmbeddingAnswer(
            vectors_BD,
            tokens=sum(map(_tokens, texts.values())),
            truncated=any(text.truncated for text in texts.values()),
            timings=watch.stop(),
        )


def _tokens(text: PreparedText) -> int:
    """Tokens without padding, which open_clip's tokenizers write as zeros."""
    try:
        return int(np.count_nonzero(np.asarray(text.tokens) != 0))
    except (TypeError, ValueError):  # whatever a tokenizer of another kind makes
        return 0
