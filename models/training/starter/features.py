"""Tower features of pictures and captions, computed once and, if wanted, kept in a directory.

A cached file is named by a hash of everything that decides its content (the towers, the
preprocessing, the pictures or texts in order), so a stale one can never be taken for a fresh one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from models.encoder import PreparedImage
from models.encoders.starter.text_network import POOLED_FEATURES
from models.encoders.starter.towers import (
    IMAGE_FEATURES,
    PREPROCESSING,
    TEXT_FEATURES,
    TOKENIZER,
    TOWERS_SHA256,
    ImageTower,
    TextTower,
    as_tensor,
)
from models.sources.embedded import prepare_rows
from models.sources.records import Record, Reject, Row, Source

IMAGE_BATCH = 32
TEXT_BATCH = 256

OnFeatures = Callable[[str, int, int], None]
"""(`pictures` or `captions`, done, total)"""


class FeatureMaker:
    """Both towers, with a memory.

    Args:
        image_tower: computes picture features.
        text_tower: computes caption features.
        cache: a directory to keep features in between runs; None keeps nothing.
        on_progress: called after every batch.
    """

    def __init__(
        self,
        image_tower: ImageTower,
        text_tower: TextTower,
        *,
        cache: Path | None = None,
        on_progress: OnFeatures | None = None,
    ) -> None:
        self.text_tower = text_tower
        self.network = text_tower.trainable()
        """The text tower's network; its last layers may be changed between calls of `texts`."""
        self._image_tower = image_tower
        self._cache = cache
        self._on_progress = on_progress or (lambda *_: None)

    def images(
        self, source: Source, sha256s: Sequence[str], rejects: list[Reject]
    ) -> tuple[Tensor, list[bool]]:
        """Features of the source's captioned pictures, in order.

        Args:
            source: read again; only pictures whose hash is the next of `sha256s` are used.
            sha256s: of the encoded pictures that are wanted.
            rejects: pictures that do not decode are added here.

        Returns:
            float32 [n, F] of the n usable pictures, and for each hash whether it is usable.
        """
        tower = [TOWERS_SHA256, *filter(None, [self._image_tower.weights_sha256])]
        name = _digest([*tower, PREPROCESSING, str(self._image_tower.dtype), *sha256s])
        cached = self._load(f"images-{name}.npz", "features", "usable", "rejects")
        if cached is not None:
            rejects += [Reject(**entry) for entry in json.loads(str(cached["rejects"]))]
            return as_tensor(cached["features"]), cached["usable"].tolist()
        features: list[Tensor] = [torch.zeros(0, IMAGE_FEATURES)]
        usable: list[bool] = []
        refused: list[Reject] = []
        batch: list[PreparedImage] = []
        wanted = only(source, sha256s)
        for ready in prepare_rows(wanted, self._image_tower.prepare, source=source.name):
            if isinstance(ready, Reject):
                refused.append(ready)
                usable.append(False)
                continue
            usable.append(True)
            assert ready[1] is not None
            batch.append(ready[1])
            if len(batch) == IMAGE_BATCH:
                features.append(self._image_tower.features(batch).cpu())
                batch = []
                self._on_progress("pictures", len(usable), len(sha256s))
        features.append(self._image_tower.features(batch).cpu())
        self._on_progress("pictures", len(usable), len(sha256s))
        # a source that changed between the two readings yields fewer pictures than it announced
        usable += [False] * (len(sha256s) - len(usable))
        image_NF = torch.cat(features)
        rejects += refused
        self._save(
            f"images-{name}.npz",
            features=image_NF.numpy(),
            usable=np.array(usable, dtype=bool),
            # remembered too, so that a second run reports what the first one did
            rejects=np.array(json.dumps([reject.to_dict() for reject in refused])),
        )
        return image_NF, usable

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Sentence features, float32 [m, S], unit rows."""
        pooled_MP = self.pools(texts)
        rows = [torch.zeros(0, TEXT_FEATURES)]
        with torch.no_grad():
            for part_BP in torch.split(pooled_MP, TEXT_BATCH):
                rows.append(self.network.sentence_of(part_BP.float()))
        return torch.cat(rows)

    def pools(self, texts: Sequence[str]) -> Tensor:
        """What the sentence encoder's last layers read, float16 [m, P + 1]; the root comes last.

        In torch's batches this takes a fifth of the time of the package's numpy, which is better
        at single queries.
        """
        tuned = filter(None, [self.text_tower.weights_sha256])
        name = _digest(["pools", TOWERS_SHA256, *tuned, TOKENIZER, *texts])
        cached = self._load(f"texts-{name}.npz", "pools")
        if cached is not None:
            return torch.from_numpy(cached["pools"])
        rows = [torch.zeros(0, POOLED_FEATURES + 1, dtype=torch.float16)]
        for at in range(0, len(texts), TEXT_BATCH):
            prepared = [self.text_tower.prepare(text) for text in texts[at : at + TEXT_BATCH]]
            with torch.no_grad():
                pooled_BP, root_B = self.network.pool([text.tokens for text in prepared])
            rows.append(torch.cat([pooled_BP, root_B[:, None]], dim=1).half())
            self._on_progress("captions", min(at + TEXT_BATCH, len(texts)), len(texts))
        pooled_MP = torch.cat(rows)
        self._save(f"texts-{name}.npz", pools=pooled_MP.numpy())
        return pooled_MP

    def _load(self, name: str, *keys: str) -> dict[str, np.ndarray] | None:
        """What is remembered under a name; None when there is nothing, or it is damaged."""
        if self._cache is None:
            return None
        try:
            # opened here, because np.load leaves a damaged file open
            with (
                (self._cache / name).open("rb") as file,
                np.load(file, allow_pickle=False) as stored,
            ):
                return {key: stored[key] for key in keys}
        except (OSError, EOFError, KeyError, ValueError, BadZipFile):
            return None

    def _save(self, name: str, **arrays: np.ndarray) -> None:
        if self._cache is None:
            return
        self._cache.mkdir(parents=True, exist_ok=True)
        scratch = self._cache / f".{name}.partial"
        with scratch.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        scratch.replace(self._cache / name)


def only(source: Source, sha256s: Sequence[str]) -> Iterator[Row]:
    """The records whose picture is the next wanted one; rejects were counted in the first pass."""
    wanted = iter(sha256s)
    following = next(wanted, None)
    for row in source:
        if following is None:
            return
        if not isinstance(row, Record) or row.image is None or not row.texts:
            continue
        if hashlib.sha256(row.image).hexdigest() == following:
            yield row
            following = next(wanted, None)


def _digest(parts: Sequence[str]) -> str:
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode()
        # the length in front keeps ["ab", "c"] apart from ["a", "bc"]
        hasher.update(len(data).to_bytes(8) + data)
    return hasher.hexdigest()[:32]
