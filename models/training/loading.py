"""Samples -> tensors, decoded and augmented ahead, in order, with bounded memory.

In threads where the model trains on the CPU: Pillow lets go of the interpreter while it decodes
and resizes, and what is left holds one core for a small part of a step. In processes where a GPU
waits: 14 threads fed one no more than 600 pairs a second, for the interpreter is one. Pixels
travel as bytes and are normalised on the device. Knows no towers.

Shapes: B pairs (of this rank), L tokens, H and W pixels.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.encoder import PreparedText
from models.errors import ImageError, SourceError
from models.images.decode import decode_image
from models.sources.records import Reject
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
    processes: bool = False,
    on_reject: Callable[[Reject], None] | None = None,
) -> Iterator[Batch]:
    """Batches in the order of `plans`, the same ones whatever prepares them.

    A picture that does not decode leaves its place to the pair before it: batches must be of one
    size on all ranks, and twins are of one group, so no pair becomes its own negative.

    Args:
        plans: a sequence of samples for each batch; read from this thread.
        prepare: called in the workers; pickled once for each where they are processes.
        workers: how many.
        processes: whether they are processes, otherwise threads.
        on_reject: told of every picture that does not decode.

    Raises:
        SourceError: not one picture of a batch decodes.
    """
    if processes:
        return _from_processes(plans, prepare, workers, on_reject)
    return _from_threads(plans, prepare, workers, on_reject)


def _from_threads(
    plans: Iterable[Sequence[Sample]],
    prepare: Callable[[Sample], Item | Reject],
    workers: int,
    on_reject: Callable[[Reject], None] | None,
) -> Iterator[Batch]:
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting: deque[list[Future[Item | Reject]]] = deque()
        try:
            for plan in plans:
                waiting.append([pool.submit(prepare, sample) for sample in plan])
                if len(waiting) > AHEAD:
                    yield _assembled([one.result() for one in waiting.popleft()], on_reject)
            while waiting:
                yield _assembled([one.result() for one in waiting.popleft()], on_reject)
        finally:
            for futures in waiting:
                for future in futures:
                    future.cancel()


class _Prepared(Dataset[Item | Reject]):
    """What the samples become; a sample is its own index."""

    def __init__(self, prepare: Callable[[Sample], Item | Reject]) -> None:
        self._prepare = prepare

    def __getitem__(self, sample: Sample) -> Item | Reject:
        return self._prepare(sample)


_Piece: TypeAlias = tuple[Tensor | None, list[tuple[npt.NDArray[Any], int, str] | Reject]]
"""(pixels of those that decode, the rest of each sample)"""


def _piece(results: list[Item | Reject]) -> _Piece:
    """One tensor of pixels a piece of a batch, because tensors travel in shared memory."""
    good = [result[0] for result in results if not isinstance(result, Reject)]
    pixels_B3HW = torch.from_numpy(np.stack(good)) if good else None
    return pixels_B3HW, [one if isinstance(one, Reject) else one[1:] for one in results]


def _results(piece: _Piece) -> Iterator[Item | Reject]:
    pixels_B3HW, rest = piece
    pixels = iter(() if pixels_B3HW is None else pixels_B3HW.numpy())
    for one in rest:
        yield one if isinstance(one, Reject) else (next(pixels), *one)


def _from_processes(
    plans: Iterable[Sequence[Sample]],
    prepare: Callable[[Sample], Item | Reject],
    workers: int,
    on_reject: Callable[[Reject], None] | None,
) -> Iterator[Batch]:
    # not forked from here: this process has threads, and a GPU's driver
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    workers = min(workers, os.cpu_count() or 1)  # more of them only wait for each other
    counts: deque[int] = deque()

    def pieces() -> Iterator[Sequence[Sample]]:
        for plan in plans:
            size = -(-len(plan) // workers)
            counts.append(-(-len(plan) // size))
            yield from (plan[at : at + size] for at in range(0, len(plan), size))

    loader: DataLoader[Item | Reject] = DataLoader(
        _Prepared(prepare),
        batch_sampler=pieces(),  # type: ignore[arg-type]  # samples are its indices
        collate_fn=_piece,
        num_workers=workers,
        prefetch_factor=AHEAD,
        multiprocessing_context=context,
    )
    results: list[Item | Reject] = []
    held = 0
    for piece in loader:
        results += _results(piece)
        held += 1
        if held == counts[0]:
            counts.popleft()
            yield _assembled(results, on_reject)
            results, held = [], 0


def _assembled(
    results: Iterable[Item | Reject], on_reject: Callable[[Reject], None] | None
) -> Batch:
    items: list[Item] = []
    missing = 0
    for result in results:
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
