"""Samples -> tensors, decoded and augmented ahead in threads, in order, with bounded memory.

Threads, not processes: Pillow lets go of the interpreter while it decodes and resizes, and what is
left holds one core for a small part of a step. Pixels travel as bytes and are normalised on the
device. Knows no towers.

Shapes: B pairs (of this rank), L tokens, H and W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.data.records import Reject
from models.encoder import PreparedText
from models.errors import ImageError, SourceError
from models.images.decode import decode_image
from models.training.augment import Augmenter, Pixels
from models.training.disturbed import disturbed
from models.training.mixing import Sample

AHEAD = 2
"""Batches whose pictures are being decoded while a step runs."""

Item: TypeAlias = tuple[Pixels, npt.NDArray[Any], int, str]
"""(pixels, tokens [1 + N, L]: the caption's, then those of its disturbed ones; group, key)"""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step of one rank takes.

    Attributes:
        image_B3HW: uint8, not yet normalised.
        text_BL: int64 token ids.
        group_B: int64; pairs of one group are not each other's negatives.
        hard_HL: int64 token ids of disturbed captions, equally many a pair; None without any.
        keys: which records these are, to be named when something is wrong with them.
    """

    image_B3HW: Tensor
    text_BL: Tensor
    group_B: Tensor
    keys: tuple[str, ...]
    hard_HL: Tensor | None = None


class Preparer:
    """A sample -> its pixels and tokens; called from any number of threads."""

    def __init__(
        self,
        augmenter: Augmenter,
        tokenize: Callable[[str], PreparedText],
        *,
        hard_negatives: int = 0,
    ) -> None:
        self._augment = augmenter
        self._tokenize = tokenize
        self._hard_negatives = hard_negatives

    def __call__(self, sample: Sample) -> Item | Reject:
        random = sample.drawn.generator()
        text = sample.choose(random)
        try:
            picture = decode_image(sample.image)
        except ImageError as error:
            return Reject("training data", sample.key, error.code, error.message)
        pixels = self._augment(picture, sample.all_texts(), random)
        texts = [text, *(disturbed(text, random) for _ in range(self._hard_negatives))]
        tokens = np.stack([self._tokenize(one).tokens for one in texts])
        return pixels, tokens, sample.group, sample.key


def load_batches(
    plans: Iterable[Sequence[Sample]],
    prepare: Callable[[Sample], Item | Reject],
    *,
    workers: int,
    on_reject: Callable[[Reject], None] | None = None,
) -> Iterator[Batch]:
    """Batches in the order of `plans`.

    A picture that does not decode leaves its place to the pair before it: batches must be of one
    size on all ranks, and twins are of one group, so no pair becomes its own negative.

    Raises:
        SourceError: not one picture of a batch decodes.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting: deque[list[Future[Item | Reject]]] = deque()
        try:
            for plan in plans:
                waiting.append([pool.submit(prepare, sample) for sample in plan])
                if len(waiting) > AHEAD:
                    yield _assembled(waiting.popleft(), on_reject)
            while waiting:
                yield _assembled(waiting.popleft(), on_reject)
        finally:
            for futures in waiting:
                for future in futures:
                    future.cancel()


def _assembled(
    futures: Sequence[Future[Item | Reject]], on_reject: Callable[[Reject], None] | None
) -> Batch:
    items: list[Item] = []
    missing = 0
    for future in futures:
        result = future.result()
        if isinstance(result, Reject):
            missing += 1
            if on_reject is not None:
                on_reject(result)
        else:
            items.append(result)
    if not items:
        raise SourceError(
            f"none of the {missing} pictures of a batch can be decoded",
            code="no-usable-pictures",
            hint="look at the data: diptych index build --plan, or one of the files by hand",
        )
    for at in range(missing):
        items.append(items[at % len(items)])
    tokens_BNL = torch.from_numpy(np.stack([tokens for _, tokens, *_ in items]))
    return Batch(
        image_B3HW=torch.from_numpy(np.stack([pixels for pixels, *_ in items])),
        text_BL=tokens_BNL[:, 0].contiguous(),
        group_B=torch.tensor([group for *_, group, _ in items]),
        keys=tuple(key for *_, key in items),
        hard_HL=tokens_BNL[:, 1:].flatten(0, 1) if tokens_BNL.shape[1] > 1 else None,
    )
