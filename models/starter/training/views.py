"""What the image tower's last layers read: of every picture as it is, and of crops of it.

Training the last layers needs the map in front of them again and again, and it never changes: each
view of a picture goes through the layers before it once, and is kept, 34 kB in fp16. Crops drawn
ahead are few, but they are what holds a million weights back from learning 6,000 pictures by heart.

Legend: N pictures of a source, V views, B batch, C H W the map (208, 9, 9), F image features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image
from torch import Tensor

from models.data.decoding import prepare_rows
from models.data.records import Reject, Source
from models.encoder import PreparedImage
from models.files import replace_file
from models.starter.image_tail import MAP_CHANNELS, MAP_SIDE, ImageTail, before_tail, in_pieces
from models.starter.towers import (
    IMAGE_FEATURES,
    IMAGE_SIDE,
    PREPROCESSING,
    TOWERS_SHA256,
    ImageTower,
    TextTower,
)
from models.starter.training.features import IMAGE_BATCH, FeatureMaker, OnFeatures, only
from models.training.augment import Augmentation, Augmenter

CROP = Augmentation(crop=(0.45, 1.0), flip=True, colour=0.25)
WHOLE_SHARE = 0.4
"""How often a picture is met as it is, which is how it will be embedded."""

Maps = npt.NDArray[np.float16]
"""[N, H, W, C]"""


@dataclass(frozen=True, slots=True)
class _View:
    """One view of a source's usable pictures, and which those are."""

    maps: Maps
    usable: list[bool]
    rejects: list[Reject]


class ViewBank:
    """The views of all pictures; a picture is known by its row, counted over all sources."""

    def __init__(self) -> None:
        self._sources: list[list[Maps]] = []
        self._starts: list[int] = [0]

    def add(self, views: Sequence[Maps]) -> Tensor:
        """Views of a source's pictures, the whole ones first -> their rows [N]."""
        start = self._starts[-1]
        self._sources.append(list(views))
        self._starts.append(start + len(views[0]))
        return torch.arange(start, self._starts[-1])

    def draw(self, row_B: Tensor, generator: torch.Generator) -> Tensor:
        """A view of each, mirrored or not -> float32 [B, C, H, W]."""
        chance_B3 = torch.rand(len(row_B), 3, generator=generator).tolist()
        maps = []
        for row, (whole, which, mirrored) in zip(row_B.tolist(), chance_B3, strict=True):
            views, at = self._find(row)
            crops = len(views) - 1
            view = views[0 if whole < WHOLE_SHARE or not crops else 1 + int(which * crops)][at]
            # nearly what the mirrored picture gives; crops were mirrored as pixels already
            maps.append(view[:, ::-1] if mirrored < 0.5 else view)
        return _as_maps(maps)

    def whole(self, row_B: Tensor) -> Tensor:
        """The pictures as they are, float32 [B, C, H, W]."""
        found = [self._find(row) for row in row_B.tolist()]
        return _as_maps([views[0][at] for views, at in found])

    def _find(self, row: int) -> tuple[list[Maps], int]:
        source = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._sources[source], row - self._starts[source]


class ViewMaker(FeatureMaker):
    """A maker whose pictures arrive as the tower's features and, last, their row in `bank`.

    Args:
        crops: how many crops of each picture of a source to keep.
        cache: here it is needed: maps of ten thousand pictures are read from files as drawn.
    """

    def __init__(
        self,
        image_tower: ImageTower,
        text_tower: TextTower,
        *,
        crops: Callable[[Source], int],
        cache: Path,
        on_progress: OnFeatures | None = None,
    ) -> None:
        super().__init__(image_tower, text_tower, cache=cache, on_progress=on_progress)
        self.bank = ViewBank()
        self._tower = image_tower
        self._tail = ImageTail(image_tower.trainable())
        self._crops = crops
        self._folder = cache

    def images(
        self, source: Source, sha256s: Sequence[str], rejects: list[Reject]
    ) -> tuple[Tensor, list[bool]]:
        """See `FeatureMaker.images`; the rows are float32 [n, F + 1]."""
        views = [self._view(source, sha256s, view) for view in range(1 + self._crops(source))]
        whole = views[0]
        rejects += whole.rejects
        row_N = self.bank.add([view.maps for view in views])
        features = [torch.zeros(0, IMAGE_FEATURES)]
        for row_B in torch.split(row_N, IMAGE_BATCH):
            features.append(in_pieces(self._tail, self.bank.whole(row_B)))
        return torch.cat([torch.cat(features), row_N[:, None].float()], dim=1), whole.usable

    def _view(self, source: Source, sha256s: Sequence[str], view: int) -> _View:
        told = [TOWERS_SHA256, PREPROCESSING, str(self._tower.dtype), repr(CROP), *sha256s]
        name = hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]
        path = self._folder / f"maps-{name}-{view}.npy"
        if not path.is_file():
            self._make(source, sha256s, view, path)
        beside = json.loads(path.with_suffix(".json").read_text())
        rejects = [Reject(**entry) for entry in beside["rejects"]]
        return _View(np.load(path, mmap_mode="r"), beside["usable"], rejects)

    def _make(self, source: Source, sha256s: Sequence[str], view: int, path: Path) -> None:
        pixels = self._tower.prepare if not view else _Cropper(view)
        maps = [np.zeros((0, MAP_SIDE, MAP_SIDE, MAP_CHANNELS), np.float16)]
        batch: list[PreparedImage] = []
        usable: list[bool] = []
        refused: list[Reject] = []

        def run() -> None:
            if batch:
                map_BCHW = self._tower.run(batch, before_tail).cpu()
                maps.append(map_BCHW.permute(0, 2, 3, 1).half().numpy())
                batch.clear()
            self._on_progress(f"pictures, view {view}", len(usable), len(sha256s))

        # one decoder: the crops are drawn in the order of the pictures
        for ready in prepare_rows(only(source, sha256s), pixels, source=source.name, workers=1):
            usable.append(not isinstance(ready, Reject))
            if isinstance(ready, Reject):
                refused.append(ready)
                continue
            assert ready[1] is not None
            batch.append(ready[1])
            if len(batch) == IMAGE_BATCH:
                run()
        run()
        usable += [False] * (len(sha256s) - len(usable))
        self._folder.mkdir(parents=True, exist_ok=True)
        beside = {"usable": usable, "rejects": [reject.to_dict() for reject in refused]}
        replace_file(path.with_suffix(".json"), json.dumps(beside).encode())
        scratch = path.with_suffix(".partial")
        with scratch.open("wb") as file:
            np.save(file, np.concatenate(maps))
        scratch.replace(path)


class _Cropper:
    """Draws the crops of one view, picture after picture."""

    def __init__(self, view: int) -> None:
        self._augmenter = Augmenter(_PREPROCESS, CROP)
        self._draws = Random(view)  # noqa: S311  repeatable is the point

    def __call__(self, image: Image) -> PreparedImage:
        # no captions: in those at hand the sides of a picture are not told apart
        pixels_3HW = self._augmenter(image, (), self._draws)
        return np.ascontiguousarray(pixels_3HW.transpose(1, 2, 0))


_PREPROCESS = {
    "size": (IMAGE_SIDE, IMAGE_SIDE),
    "interpolation": "bicubic",
    "resize_mode": "squash",
    "fill_color": 0,
}


def _as_maps(maps: Sequence[Maps]) -> Tensor:
    # a permuted view of BHWC memory is channels_last, which the convolutions want
    return torch.from_numpy(np.stack(maps)).float().permute(0, 3, 1, 2)
