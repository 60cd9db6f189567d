"""Every caption of a source scored by how well it fits its picture, and the scores remembered.

The score is the cosine of the two. LAION cut its pairs by this number (Schuhmann et al. 2022,
arXiv:2210.08402, section 3). Beside it stands the cosine of the caption with a picture of another
record, drawn at random: what a wrong caption of this set scores, which
`models.evaluation.captions.mixture` compares with. Margins against other pictures (centred,
standardised, CSLS) told right from wrong captions no better on Flickr8k (docs/LOG.md), so there are
none.

Streams: a batch of pictures at a time. Knows encoders and sources, not what the scores are for.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from models.atomic import replace_file
from models.encoder import Encoder, Fingerprint, PreparedImage
from models.sources.embedded import embed_texts, prepare_rows
from models.sources.records import Record, Reject, Row, Source
from models.vectors import Vectors

Score = tuple[float, float]
"""(cosine of a caption and its picture, cosine of the caption and some other picture)"""

SAVE_EVERY: Final = 100_000
"""New scores between two writes: what a killed run loses at most."""
_MERGE_EVERY: Final = 50_000


class ScoreMemory:
    """Scores of one encoder remembered between runs, by content: nothing is scored twice.

    One file a fingerprint, `alignment-<digest>.npz`, written beside its place and renamed. A score
    is found by a 64-bit digest of the picture's sha256 and the caption, so it survives renamed
    files, a new order and another source. Two of five million different pairs share a digest with a
    probability of one in a million. 16 bytes a caption, in memory as on disk. A damaged file is
    taken for none: scores can be computed again.

    For one thread of one process; of two writers the last one stays.

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


_BATCH: Final = 64
_WAITING: Final = 4096
"""Records kept in order while a batch fills, where most are known already."""
_OTHERS: Final = 256


@dataclass(frozen=True, slots=True)
class CaptionScore:
    """One caption; `other` is NaN where there is no other picture to compare with."""

    language: str
    text: str
    score: float
    other: float


@dataclass(slots=True)
class Scored:
    """A record with its captions' scores, in the record's order; `vector_D` if it was wanted."""

    key: str
    uri: str
    sha256: str
    captions: list[CaptionScore] = field(default_factory=list)
    vector_D: Vectors | None = None


@dataclass(slots=True)
class _Waiting:
    record: Record
    sha256: str
    known: dict[str, Score]


def score_pairs(
    source: Source,
    encoder: Encoder,
    memory: ScoreMemory,
    *,
    vectors: bool = False,
    on_picture: Callable[[], object] | None = None,
) -> Iterator[Scored | Reject]:
    """Score the captioned pictures of a source, in its order; records without one half are left
    out. The memory is written to disk when the source is through, and in between.

    Args:
        source: read once.
        encoder: the pair that judges; it should not have been trained on these very captions.
        memory: pairs it knows are not embedded again.
        vectors: embed every picture, also where all scores are known, and hand its vector out.
        on_picture: called after every record with a picture.
    """
    scorer = _Scorer(encoder, memory, vectors)
    for row in prepare_rows(scorer.ahead(source), encoder.prepare_image, source=source.name):
        one = scorer.waiting.popleft()
        if on_picture is not None and one is not None:
            on_picture()
        if isinstance(row, Reject):
            yield from scorer.add(row)
        else:
            assert one is not None
            yield from scorer.add(one, row[1])
    yield from scorer.flush()
    memory.save()


class _Scorer:
    """Batches in the making."""

    def __init__(self, encoder: Encoder, memory: ScoreMemory, vectors: bool) -> None:
        self.waiting: deque[_Waiting | None] = deque()
        """One entry for each row that is being decoded; None for a reject."""
        self._encoder = encoder
        self._memory = memory
        self._vectors = vectors
        self._ready: list[tuple[_Waiting | Reject, int | None]] = []
        self._batch: list[PreparedImage] = []
        self._others = _Others(encoder.dim)

    def ahead(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Rows to decode; a record of which all is known goes along without its picture."""
        for row in rows:
            if isinstance(row, Reject):
                self.waiting.append(None)
                yield row
            elif row.image is not None and row.texts:
                sha256 = hashlib.sha256(row.image).hexdigest()
                known: dict[str, Score] = {}
                for text in {text for texts in row.texts.values() for text in texts}:
                    score = self._memory.get(sha256, text)
                    if score is not None:
                        known[text] = score
                complete = all(text in known for texts in row.texts.values() for text in texts)
                blank = replace(row, image=None)
                self.waiting.append(_Waiting(blank, sha256, known))
                yield row if self._vectors or not complete else blank

    def add(
        self, one: _Waiting | Reject, picture: PreparedImage | None = None
    ) -> Iterator[Scored | Reject]:
        if picture is not None:
            self._batch.append(picture)
        self._ready.append((one, None if picture is None else len(self._batch) - 1))
        if len(self._batch) >= _BATCH or len(self._ready) >= _WAITING:
            yield from self.flush()

    def flush(self) -> Iterator[Scored | Reject]:
        """Everything that waits, in order."""
        ready, batch = self._ready, self._batch
        self._ready, self._batch = [], []
        if not ready:
            return
        image_BD = self._encoder.embed_images(batch)
        for one, row in ready:
            if row is not None and isinstance(one, _Waiting):
                self._others.add(one.sha256, image_BD[row])
        missing = [
            (one, row, text)
            for one, row in ready
            if row is not None and isinstance(one, _Waiting)
            for text in dict.fromkeys(text for texts in one.record.texts.values() for text in texts)
            if text not in one.known
        ]
        text_MD = embed_texts(self._encoder, [text for _, _, text in missing])
        for (one, row, text), text_D in zip(missing, text_MD, strict=True):
            own = float(image_BD[row] @ text_D)
            score = own, self._others.cosine(one.sha256, text_D)
            self._memory.put(one.sha256, text, score)
            one.known[text] = float(np.float32(own)), float(np.float32(score[1]))
        for one, row in ready:
            if isinstance(one, Reject):
                yield one
                continue
            captions = [
                CaptionScore(language, text, *one.known[text])
                for language, texts in one.record.texts.items()
                for text in texts
            ]
            vector_D = image_BD[row] if self._vectors and row is not None else None
            yield Scored(one.record.key, one.record.uri, one.sha256, captions, vector_D)


class _Others:
    """Pictures of other records to hold captions against: a random sample of those seen so far."""

    def __init__(self, dim: int) -> None:
        self._random = np.random.default_rng(0)
        self._sha256s: list[str] = []
        self._vector_RD = np.zeros((_OTHERS, dim), dtype=np.float32)
        self._seen = 0

    def add(self, sha256: str, vector_D: Vectors) -> None:
        """Vitter 1985, algorithm R: every picture so far has the same chance to be in it."""
        self._seen += 1
        if len(self._sha256s) < _OTHERS:
            self._sha256s.append(sha256)
            self._vector_RD[len(self._sha256s) - 1] = vector_D
            return
        at = int(self._random.integers(self._seen))
        if at < _OTHERS:
            self._sha256s[at] = sha256
            self._vector_RD[at] = vector_D

    def cosine(self, sha256: str, text_D: Vectors) -> float:
        """With a picture of other content; NaN where there is none."""
        start = int(self._random.integers(max(1, len(self._sha256s))))
        for step in range(len(self._sha256s)):
            at = (start + step) % len(self._sha256s)
            if self._sha256s[at] != sha256:
                return float(self._vector_RD[at] @ text_D)
        return float("nan")
