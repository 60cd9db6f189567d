"""Recall of a pair that is being trained, on exactly the pixels and tokens that search will use.

Pictures of a small validation set are prepared once and kept; a large one is read again each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.encoder import PreparedImage, PreparedText
from models.encoders.open_clip.assembly import transform
from models.metrics import retrieval_recall
from models.sources.embedded import Ready, prepare_rows
from models.sources.records import Reject, Source
from models.training.pair import TrainablePair

Recall: TypeAlias = dict[str, dict[str, float]]
"""{language: {`image_retrieval_recall@1`: ..., ...}}"""

KEPT_BYTES: Final = 1024**3
_BATCH: Final = 64
_KS: Final = (1, 5, 10)


class Validation:
    """Captioned pictures to measure a pair on, again and again.

    Args:
        sources: held back from training.
        pair: whose preprocessing and tokenizer are used; its weights are those it has when asked.
        device: where the pair is.
    """

    def __init__(
        self, sources: Sequence[Source], pair: TrainablePair, device: torch.device
    ) -> None:
        self._sources = sources
        self._pair = pair
        self._device = device
        self._transform: Any = transform(pair.preprocess_cfg)
        self._kept: list[PreparedImage] | None = []
        self._captions: list[tuple[int, str, PreparedText]] = []
        self.rejects: list[Reject] = []
        self.pictures = 0
        size = 0
        for picture in self._read():
            self.pictures += 1
            size += picture.nbytes
            if self._kept is not None:
                self._kept.append(picture)
                if size > KEPT_BYTES:
                    self._kept = None

    @property
    def languages(self) -> list[str]:
        return sorted({language for _, language, _ in self._captions})

    @torch.inference_mode()
    def measure(self) -> Recall:
        """Recall@1/5/10 both ways, for each language on the pictures that have captions in it."""
        with _evaluating(self._pair.module):
            image_ND = self._embed(iter(self._kept or self._read()), self._image_rows)
            result = {}
            for language in self.languages:
                rows = [(owner, text) for owner, tag, text in self._captions if tag == language]
                kept = sorted({owner for owner, _ in rows})
                position = {owner: at for at, owner in enumerate(kept)}
                text_MD = self._embed((text.tokens for _, text in rows), self._text_rows)
                owners = [position[owner] for owner, _ in rows]
                result[language] = {
                    **retrieval_recall(image_ND[kept], text_MD, owners, _KS),
                    "pictures": float(len(kept)),
                    "texts": float(len(rows)),
                }
        return result

    def _read(self) -> Iterator[PreparedImage]:
        """The pictures in order; the first time, captions and rejects are noted too."""
        first, owner = not self._captions, 0
        for source in self._sources:
            for ready in prepare_rows(source, self._prepare, source=source.name):
                if isinstance(ready, Reject):
                    if first:
                        self.rejects.append(ready)
                    continue
                picture = ready[1]
                if picture is None or not ready[0].texts:
                    continue
                if first:
                    self._note(owner, ready)
                owner += 1
                yield picture

    def _note(self, owner: int, ready: Ready) -> None:
        for language, texts in ready[0].texts.items():
            for text in texts:
                self._captions.append((owner, language, self._pair.tokenizer(text)))

    def _prepare(self, image: Any) -> PreparedImage:
        pixels: npt.NDArray[np.float32] = self._transform(image).numpy()
        return pixels

    def _embed(
        self, rows: Iterator[Any], encode: Callable[[Tensor], Tensor]
    ) -> npt.NDArray[np.float32]:
        found: list[npt.NDArray[np.float32]] = []
        batch: list[Any] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _BATCH:
                found.append(encode(torch.from_numpy(np.stack(batch))).cpu().numpy())
                batch = []
        if batch:
            found.append(encode(torch.from_numpy(np.stack(batch))).cpu().numpy())
        return np.concatenate(found)

    def _image_rows(self, image_B3HW: Tensor) -> Tensor:
        return self._pair.image_rows(image_B3HW.to(self._device))

    def _text_rows(self, text_BL: Tensor) -> Tensor:
        return self._pair.text_rows(text_BL.to(self._device))


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    was = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was)


def score(recall: Mapping[str, Mapping[str, float]]) -> tuple[float, float]:
    """How good a pair is, to compare moments of a run: mean R@1, and where equal, mean recall.

    Means over both ways, all languages and, the second one, all k.
    """
    rows = [
        (name, value)
        for metrics in recall.values()
        for name, value in metrics.items()
        if "recall@" in name
    ]
    first = [value for name, value in rows if name.endswith("@1")]
    return sum(first) / len(first), sum(value for _, value in rows) / len(rows)
