"""The device half of indexing: a batch into vectors, without one bad item spoiling the rest.

It knows encoders and their `embed_*` functions, nothing of records or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexer.format.manifest import check_encoder
from models.encoder import Encoder, Fingerprint
from models.errors import InvalidVectorError
from models.vectors import Vectors


def embed_each(embed: Callable[[Any], Vectors], prepared: Sequence[Any]) -> list[Vectors | None]:
    """Embed a batch; None for each item whose vector is unusable, without losing the others."""
    if not prepared:
        return []
    try:
        vectors_BD = embed(prepared)
    except InvalidVectorError:
        if len(prepared) == 1:
            return [None]
        return [vector for one in prepared for vector in embed_each(embed, [one])]
    assert len(vectors_BD) == len(prepared)
    squares_B = np.einsum("bd,bd->b", vectors_BD, vectors_BD, dtype=np.float64)
    # NaN and infinity fail the comparison too
    good_B = np.abs(squares_B - 1.0) < 0.01
    return [row if good else None for row, good in zip(vectors_BD, good_B, strict=True)]


@dataclass(frozen=True, slots=True)
class DeferredEncoder:
    """An encoder pair that is loaded only if something has to be embedded.

    Attributes:
        fingerprint: what an existing index says it was built with.
        load: loads the pair; called at most once by a build, from its own thread.
    """

    fingerprint: Fingerprint
    load: Callable[[], Encoder]

    def encoder(self) -> Encoder:
        """Load it.

        Raises:
            EncoderMismatchError: it is not the pair of that fingerprint.
            ModelError: as `load`.
        """
        encoder = self.load()
        check_encoder(self.fingerprint, encoder.fingerprint)
        return encoder
