"""Alignment scores remembered between runs, by content and encoder: nothing is scored twice.

One file a fingerprint, `alignment-<digest>.npz`, written beside its place and renamed. A score is
found by a 64-bit digest of the picture's sha256 and the caption, so it survives renamed files, a
new order and another source. Two of five million different pairs share a digest with a probability
of one in a million. 16 bytes a caption, in memory as on disk.

A damaged file is taken for none: scores can be computed again.
"""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from models.atomic import replace_file
from models.encoder import Fingerprint

Score = tuple[float, float]
"""(cosine of a caption and its picture, cosine of the caption and some other picture)"""

SAVE_EVERY: Final = 100_000
"""New scores between two writes: what a killed run loses at most."""
_MERGE_EVERY: Final = 50_000


class ScoreMemory:
    """Scores of one encoder. For one thread of one process; of two writers the last one stays.

    Args:
        fingerprint: of the encoder that scores.
        directory: where the file lies; None remembers for this process only.
    """

    def __init__(self, fingerprint: Fingerprint, directory: Path | None = None) -> None:
        self._digest = fingerprint.digest
        self._path = directory / f"alignment-{self._digest[:32]}.npz" if directory else None
        self._keys_M = np.zeros(0, dtype=np.uint64)
        self._scores_M2 = np.zeros((0, 2), dtype=np.float32)
        self._new: dict[int, Score] = {}
        self._unsaved = 0
        self._load()

    def __len__(self) -> int:
        self._merge()
        return len(self._keys_M)

    def get(self, image_sha256: str, caption: str) -> Score | None:
        number = _number(image_sha256, caption)
        if number in self._new:
            return self._new[number]
        at = int(np.searchsorted(self._keys_M, np.uint64(number)))
        if at < len(self._keys_M) and int(self._keys_M[at]) == number:
            return float(self._scores_M2[at, 0]), float(self._scores_M2[at, 1])
        return None

    def put(self, image_sha256: str, caption: str, score: Score) -> None:
        # as it will be read again: a run and its repetition see the same bits
        own, other = (float(np.float32(value)) for value in score)
        self._new[_number(image_sha256, caption)] = own, other
        self._unsaved += 1
        if len(self._new) >= _MERGE_EVERY:
            self._merge()
        if self._unsaved >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write what is new to disk; without a directory, nothing."""
        if self._path is None or not self._unsaved:
            return
        self._merge()
        buffer = BytesIO()
        np.savez(
            buffer,
            fingerprint=np.array(self._digest),
            keys=self._keys_M,
            scores=self._scores_M2,
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._path, buffer.getvalue())
        self._unsaved = 0

    def _merge(self) -> None:
        if not self._new:
            return
        fresh_M = np.fromiter(self._new, dtype=np.uint64, count=len(self._new))
        values_M2 = np.array(list(self._new.values()), dtype=np.float32).reshape(-1, 2)
        kept_M = ~np.isin(self._keys_M, fresh_M)
        keys_M = np.concatenate([self._keys_M[kept_M], fresh_M])
        scores_M2 = np.concatenate([self._scores_M2[kept_M], values_M2])
        order_M: npt.NDArray[np.intp] = np.argsort(keys_M)
        self._keys_M, self._scores_M2, self._new = keys_M[order_M], scores_M2[order_M], {}

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            # opened here, because np.load leaves a damaged file open
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                keys_M, scores_M2 = stored["keys"], stored["scores"]
                if str(stored["fingerprint"]) != self._digest:
                    return
        except (OSError, EOFError, KeyError, ValueError, BadZipFile):
            return
        if (
            keys_M.dtype == np.uint64
            and scores_M2.dtype == np.float32
            and keys_M.ndim == 1
            and scores_M2.shape == (len(keys_M), 2)
            and bool((keys_M[1:] > keys_M[:-1]).all())
        ):
            self._keys_M, self._scores_M2 = keys_M, scores_M2


def _number(image_sha256: str, caption: str) -> int:
    # a hash in front is of one length: no separator is needed
    text = f"{image_sha256}{caption}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
