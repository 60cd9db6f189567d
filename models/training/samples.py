"""Samples -> tensors: decoded, cropped and tokenised ahead, in order, with bounded memory.

In threads where the model trains on the CPU: Pillow lets go of the interpreter while it decodes
and resizes, and what is left holds one core for a small part of a step. In processes where a GPU
waits: 14 threads fed one no more than 600 pairs a second, for the interpreter is one. Pixels
travel as bytes and are normalised on the device. Called by `models.training.open_clip`; knows no
towers.

A picture is met as a random crop and, if asked, mirrored and in other colours, in the size and the
interpolation of the pair's own preprocessing. Every draw comes from the sample's own generator, so
that it depends neither on threads nor on what was drawn before. Pictures are never mirrored unless
asked, because captions speak of left and right and pictures hold letters; asked to, a picture whose
captions name a side is left as it is.

Disturbed captions are wrong although their words are right: negatives that word order decides. Two
words of a caption change places ("a horse eats grass", "a grass eats horse"), after Yuksekgonul et
al. 2023 (NegCLIP), who swap words of one part of speech; no tagger is asked here, only words that
carry little meaning are left alone. A text without spaces has its characters swapped.

Shapes: B pairs (of this rank), L tokens, H and W pixels.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.encoder import PreparedText
from models.errors import ImageError, SourceError
from models.images.decode import decode_image
from models.sources.records import Reject
from models.training.data import Sample
from models.training.pair import Batch

Pixels = npt.NDArray[np.uint8]
"""uint8 [3, H, W]"""

AHEAD = 2
"""Batches whose pictures are being decoded while a step runs."""

Item: TypeAlias = tuple[Pixels, npt.NDArray[Any], tuple[int, ...], str]
"""(pixels, tokens [1 + N, L]: the caption's, then those of its disturbed ones; groups, key)"""


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
        return pixels, tokens, sample.groups(text), sample.key


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


_Piece: TypeAlias = tuple[
    Tensor | None, list[tuple[npt.NDArray[Any], tuple[int, ...], str] | Reject]
]
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
    widest = max(len(groups) for *_, groups, _ in items)
    tokens_BNL = torch.from_numpy(np.stack([tokens for _, tokens, *_ in items]))
    return Batch(
        image_BX=torch.from_numpy(np.stack([pixels for pixels, *_ in items])),
        text_MX=tokens_BNL[:, 0].contiguous(),
        group_B=torch.tensor(
            [(*groups, *groups[-1:] * (widest - len(groups))) for *_, groups, _ in items]
        ),
        keys=tuple(key for *_, key in items),
        hard_HX=tokens_BNL[:, 1:].flatten(0, 1) if tokens_BNL.shape[1] > 1 else None,
    )


_RATIO: Final = (3 / 4, 4 / 3)
_TRIES: Final = 10
_SIDES: Final = re.compile(
    r"\b(left|right|links|rechts|gauche|droite?|izquierd[ao]|derech[ao]|esquerd[ao]|direit[ao]|"
    r"sinistr[ao]|destr[ao])\b|左|右|왼|오른|лев|прав",
    re.IGNORECASE,
)
_INTERPOLATION: Final = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
_Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What may happen to a picture.

    Attributes:
        crop: smallest and largest share of the picture's area that is kept. CLIP and open_clip
            crop mildly, (0.9, 1): a caption describes the whole picture.
        flip: mirror half of the pictures whose captions name no side.
        colour: brightness, contrast and saturation each change by a factor within 1 +- this.
    """

    crop: tuple[float, float] = (0.9, 1.0)
    flip: bool = False
    colour: float = 0.0


class Augmenter:
    """Draws training pixels for one pair's preprocessing."""

    def __init__(self, preprocess: Mapping[str, Any], augmentation: Augmentation) -> None:
        height, width = preprocess["size"]
        self._size = (int(width), int(height))
        self._resample = _INTERPOLATION.get(preprocess["interpolation"], Image.Resampling.BICUBIC)
        self._mode = preprocess["resize_mode"]
        self._fill = preprocess["fill_color"]
        self._augmentation = augmentation

    def __call__(self, picture: Image.Image, texts: Iterable[str], random: Random) -> Pixels:
        """An upright RGB picture -> uint8 [3, H, W]."""
        box = self._box(*picture.size, random)
        if self._mode == "longest":
            picture = _letterbox(picture.crop(_whole(box)), self._size, self._resample, self._fill)
        else:
            # what the pyramid step skips is below a grey level, and it saves most of the time
            picture = picture.resize(self._size, self._resample, box=box, reducing_gap=3.0)
        wanted = self._augmentation
        # drawn whatever the captions say, so that a caption does not move the draws after it
        if wanted.flip and random.random() < 0.5 and not names_a_side(texts):
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if wanted.colour:
            for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                factor = 1 + wanted.colour * (2 * random.random() - 1)
                picture = kind(picture).enhance(factor)
        return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))

    def _box(self, width: int, height: int, random: Random) -> _Box:
        if self._mode == "squash":
            # such a pair sees whole pictures pressed into a square: the crop keeps their shape
            return _same_shape(width, height, self._augmentation.crop, random)
        return random_box(width, height, self._augmentation.crop, random)


def names_a_side(texts: Iterable[str]) -> bool:
    """Whether any of the captions speaks of left or right.

    Example:
        >>> names_a_side(["a man on the left"]), names_a_side(["a bright leftover"])
        (True, False)
    """
    return any(_SIDES.search(text) for text in texts)


def random_box(width: int, height: int, area: tuple[float, float], random: Random) -> _Box:
    """(left, top, right, bottom) of a crop as in Szegedy et al. 2015, as torchvision draws it.

    The share of the area is uniform, the logarithm of the aspect ratio too; after ten boxes that
    leave the picture, the largest central one of the nearest allowed ratio.
    """
    low, high = (math.log(ratio) for ratio in _RATIO)
    for _ in range(_TRIES):
        wanted = width * height * random.uniform(*area)
        ratio = math.exp(random.uniform(low, high))
        w, h = math.sqrt(wanted * ratio), math.sqrt(wanted / ratio)
        if w <= width and h <= height:
            left, top = random.uniform(0, width - w), random.uniform(0, height - h)
            return left, top, left + w, top + h
    w = min(width, height * _RATIO[1])
    h = min(height, width / _RATIO[0])
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def _same_shape(width: int, height: int, area: tuple[float, float], random: Random) -> _Box:
    share = math.sqrt(random.uniform(*area))
    w, h = width * share, height * share
    left, top = random.uniform(0, width - w), random.uniform(0, height - h)
    return left, top, left + w, top + h


def _whole(box: _Box) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(value) for value in box)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _letterbox(
    picture: Image.Image, size: tuple[int, int], resample: Image.Resampling, fill: Any
) -> Image.Image:
    """The whole picture within `size`, centred, the rest filled."""
    share = min(size[0] / picture.width, size[1] / picture.height)
    inner = (max(1, round(picture.width * share)), max(1, round(picture.height * share)))
    colour = tuple(fill) if isinstance(fill, list | tuple) else (int(fill),) * 3
    canvas = Image.new("RGB", size, colour)
    resized = picture.resize(inner, resample)
    canvas.paste(resized, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return canvas


_WORD: Final = re.compile(r"\w+")
_LIGHT: Final = frozenset({
    "a", "an", "the", "and", "or", "of", "in", "on", "at", "to", "with", "by", "for", "from",
    "is", "are", "was", "were", "be", "it", "its", "this", "that", "there", "der", "die",
    "das", "ein", "eine", "und", "im", "am", "auf", "mit", "le", "la", "les", "un", "une",
    "et", "de", "du", "des", "el", "los", "las", "una", "y", "en", "con", "il", "lo", "i",
    "gli", "e", "di", "da",
})  # fmt: skip
_SWAPS: Final = 8


def disturbed(text: str, random: Random) -> str:
    """A text other than `text`, of its own words; empty where it has too few.

    Example:
        >>> disturbed("a horse eats", Random(0))
        'a eats horse'
        >>> disturbed("x", Random(0))
        ''
    """
    found = list(_WORD.finditer(text))
    heavy = [match.span() for match in found if match[0].lower() not in _LIGHT]
    if len({text[slice(*span)].lower() for span in heavy}) < 2:
        heavy = [match.span() for match in found]
    if len(found) < 2:
        heavy = [(at, at + 1) for at, letter in enumerate(text) if letter.isalnum()]
    for _ in range(_SWAPS):
        if len(heavy) < 2:
            break
        (a, b), (c, d) = sorted(random.sample(heavy, 2))
        changed = text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:]
        if changed.lower() != text.lower():
            return changed
    # an empty caption is a harmless negative; the caption itself would be a wrong one
    return ""
