"""One caller at a time on the device: an `Encoder` that holds a lock around `embed_*`.

Preparation stays outside the lock, so pictures are decoded in parallel with the device's work. For
the command line, which has one caller; the service batches (`service.engine.batching`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.encoder import Encoder, Fingerprint, PreparedImage, PreparedText
from models.errors import ModelError
from models.explainer import Area, Explainer, RelevanceMap, cannot_explain
from models.vectors import Vectors
from service.engine.call import Call

if TYPE_CHECKING:
    from PIL.Image import Image


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


def check_finite(vectors_BD: Vectors) -> Vectors:
    """The rows, unless one of them would compare false with everything.

    Raises:
        ModelError: NaN or infinity: it would answer with arbitrary hits and no error.
    """
    if not np.isfinite(vectors_BD).all():
        raise ModelError("the encoder pair returned NaN or infinity")
    return vectors_BD
