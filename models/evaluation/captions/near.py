"""Groups of near-duplicate pictures of a set, by embedding, in memory that stays flat.

The vectors wait in an unnamed temporary file, float16, and every pair is compared
(`models.near_duplicates`): a minute for 100,000 pictures, hours for a million. Of each group the
first picture of the set is the one to keep.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.errors import InputError
from models.near_duplicates import HalfVectors, stars
from models.vectors import Vectors


@dataclass(frozen=True, slots=True)
class NearGroup:
    """The key to keep, and (key, cosine, the same bytes) of those close to it."""

    keep: str
    others: tuple[tuple[str, float, bool], ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "keep": self.keep,
            "others": [
                {"key": key, "cosine": round(min(cosine, 1.0), 6), "same_bytes": same}
                for key, cosine, same in self.others
            ],
        }


class NearDuplicates:
    """Collects pictures, then groups them; close it, or use it as a context."""

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self._keys: list[tuple[str, str]] = []

    def __enter__(self) -> NearDuplicates:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def add(self, key: str, sha256: str, vector_D: Vectors) -> None:
        self._keys.append((key, sha256))
        self._file.write(vector_D.astype(np.float16).tobytes())

    def groups(
        self,
        threshold: float,
        *,
        on_progress: Callable[[int, int], None] = lambda *_: None,
    ) -> Iterator[NearGroup]:
        """Groups of two pictures and more, in the order of the set.

        Raises:
            InputError: the threshold is out of range.
        """
        if not 0.0 < threshold <= 1.0:
            raise InputError("the threshold is a cosine above 0 and at most 1")
        if not self._keys:
            return
        self._file.flush()
        rows = len(self._keys)
        vectors_ND: HalfVectors = np.memmap(
            self._file, dtype=np.float16, mode="r", shape=(rows, self._dim)
        )
        places_R2 = np.stack([np.zeros(rows, dtype=np.int64), np.arange(rows)], axis=1)
        for kept, others in stars([vectors_ND], places_R2, threshold, on_progress):
            key, sha256 = self._keys[kept]
            ordered = sorted(others, key=lambda one: (-one[1], one[0]))
            yield NearGroup(
                key,
                tuple(
                    (self._keys[at][0], cosine, self._keys[at][1] == sha256)
                    for at, cosine in ordered
                ),
            )
