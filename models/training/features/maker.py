"""Features of frozen towers, computed once and, if wanted, kept in a directory between runs.

A cached file is named by a hash of everything that decides its content (the towers, the
preprocessing, the pictures or texts in order), so a stale one can never be taken for a fresh one.
`FeatureMaker` serves the starter's heads. `PictureMaker` serves its image tower: every picture is
decoded once, squeezed as the pair does it, and kept as pixels; what varies is drawn from that, in
the arithmetic of the device that trains. Varied pictures are what holds five million weights back
from learning 16,000 pictures by heart.

Legend: N pictures of a source, B batch, F and S features, H W sides of the tower's square.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.atomic import replace_file
from models.encoder import PreparedImage
from models.encoders.starter.description import (
    IMAGE_FEATURES,
    IMAGE_SIDE,
    PREPROCESSING,
    TEXT_FEATURES,
    TOKENIZER,
    TOWERS_SHA256,
)
from models.encoders.starter.image_tower import ImageTower, as_tensor
from models.encoders.starter.text_network import POOLED_FEATURES
from models.encoders.starter.text_tower import TextTower
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
        self.image_tower = image_tower
        self._cache = cache
        self.on_progress = on_progress or (lambda *_: None)

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
        tower = [TOWERS_SHA256, *filter(None, [self.image_tower.weights_sha256])]
        name = _digest([*tower, PREPROCESSING, str(self.image_tower.dtype), *sha256s])
        cached = self._load(f"images-{name}.npz", "features", "usable", "rejects")
        if cached is not None:
            rejects += [Reject(**entry) for entry in json.loads(str(cached["rejects"]))]
            return as_tensor(cached["features"]), cached["usable"].tolist()
        features: list[Tensor] = [torch.zeros(0, IMAGE_FEATURES)]
        usable: list[bool] = []
        refused: list[Reject] = []
        batch: list[PreparedImage] = []
        wanted = only(source, sha256s)
        for ready in prepare_rows(wanted, self.image_tower.prepare, source=source.name):
            if isinstance(ready, Reject):
                refused.append(ready)
                usable.append(False)
                continue
            usable.append(True)
            assert ready[1] is not None
            batch.append(ready[1])
            if len(batch) == IMAGE_BATCH:
                features.append(self.image_tower.features(batch).cpu())
                batch = []
                self.on_progress("pictures", len(usable), len(sha256s))
        features.append(self.image_tower.features(batch).cpu())
        self.on_progress("pictures", len(usable), len(sha256s))
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
            self.on_progress("captions", min(at + TEXT_BATCH, len(texts)), len(texts))
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


WHOLE_SHARE = 0.4
"""How often a picture is met as it is, which is how it will be embedded."""
SMALLEST_CROP = 0.45
"""Of the picture's area."""
WIDEST = 4 / 3
"""Sides of a crop to each other, before it is squeezed again."""
COLOUR = 0.25
"""How far brightness, contrast and saturation each stray from 1."""
_DRAWS = 9
_GREY = (0.299, 0.587, 0.114)

Pixels = npt.NDArray[np.uint8]
"""[N, H, W, 3]"""


def varied(pixels_BHW3: Tensor, generator: torch.Generator) -> Tensor:
    """Some of the pictures as they are, crops of the others, all mirrored at random.

    Args:
        pixels_BHW3: uint8, on any device.
        generator: of the CPU, so that a seed means the same draws everywhere.

    Returns:
        float32 [B, 3, H, W] in [0, 255], on the same device, in channels_last order.
    """
    device = pixels_BHW3.device
    draw_B = torch.rand(_DRAWS, len(pixels_BHW3), generator=generator).to(device).unbind()
    is_whole_B = draw_B[0] < WHOLE_SHARE
    area_B = SMALLEST_CROP + (1 - SMALLEST_CROP) * draw_B[1]
    ratio_B = torch.exp((2 * draw_B[2] - 1) * math.log(WIDEST))
    width_B = (area_B * ratio_B).sqrt().clamp(max=1).masked_fill(is_whole_B, 1.0)
    height_B = (area_B / ratio_B).sqrt().clamp(max=1).masked_fill(is_whole_B, 1.0)
    mirror_B = torch.where(draw_B[3] < 0.5, -1.0, 1.0)
    zero_B = torch.zeros_like(width_B)
    # in units of half a side; a whole picture is sampled exactly where its pixels are
    rows = [
        torch.stack([width_B * mirror_B, zero_B, (1 - width_B) * (2 * draw_B[4] - 1)], dim=1),
        torch.stack([zero_B, height_B, (1 - height_B) * (2 * draw_B[5] - 1)], dim=1),
    ]
    pixels_B3HW = pixels_BHW3.permute(0, 3, 1, 2).float()
    grid = functional.affine_grid(
        torch.stack(rows, dim=1), list(pixels_B3HW.shape), align_corners=False
    )
    x = functional.grid_sample(
        pixels_B3HW, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    factor_B = [
        (1 + COLOUR * (2 * draw - 1)).masked_fill(is_whole_B, 1.0)[:, None, None, None]
        for draw in draw_B[6:]
    ]
    x = x * factor_B[0]
    mean_B = x.mean(dim=(1, 2, 3), keepdim=True)
    x = mean_B + (x - mean_B) * factor_B[1]
    grey_B1HW = sum(share * x[:, at : at + 1] for at, share in enumerate(_GREY))
    x = grey_B1HW + (x - grey_B1HW) * factor_B[2]
    return x.clamp(0, 255).contiguous(memory_format=torch.channels_last)


class PictureBank:
    """The pixels of all pictures; one is known by its row, counted over all sources.

    Args:
        device: where batches go. Memory of a GPU holds the pixels too; for the CPU they stay in
            the files they came from.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._sources: list[Tensor] = []
        self._starts: list[int] = [0]

    def add(self, pixels_NHW3: Pixels) -> Tensor:
        """The pixels of a source -> the rows of its pictures, int64 [N]."""
        start = self._starts[-1]
        kept = torch.from_numpy(pixels_NHW3)
        self._sources.append(kept if self.device.type == "cpu" else kept.to(self.device))
        self._starts.append(start + len(kept))
        return torch.arange(start, self._starts[-1])

    def whole(self, row_B: Tensor) -> Tensor:
        """The pictures as they are embedded: uint8 [B, H, W, 3] on the bank's device."""
        source_B = np.searchsorted(self._starts, row_B.numpy(), side="right") - 1
        found = [
            self._sources[source][row - self._starts[source]]
            for source, row in zip(source_B.tolist(), row_B.tolist(), strict=True)
        ]
        return torch.stack(found)

    def draw(self, row_B: Tensor, generator: torch.Generator) -> Tensor:
        """See `varied`."""
        return varied(self.whole(row_B), generator)


class PictureMaker(FeatureMaker):
    """A maker whose pictures arrive as the tower's features and, last, their row in `bank`.

    Args:
        image_tower: its device is where the bank serves.
        cache: of pixels and captions; needed here, because pixels are many: 200 kB a picture.
    """

    def __init__(
        self,
        image_tower: ImageTower,
        text_tower: TextTower,
        *,
        cache: Path,
        on_progress: OnFeatures | None = None,
    ) -> None:
        super().__init__(image_tower, text_tower, cache=cache, on_progress=on_progress)
        self.bank = PictureBank(image_tower.device)
        self._folder = cache

    def images(
        self, source: Source, sha256s: Sequence[str], rejects: list[Reject]
    ) -> tuple[Tensor, list[bool]]:
        """See `FeatureMaker.images`; the rows are float32 [n, F + 1]."""
        told = hashlib.sha256("\n".join([PREPROCESSING, *sha256s]).encode()).hexdigest()
        path = self._folder / f"pixels-{told[:32]}.npy"
        if not path.is_file():
            self._decode(source, sha256s, path)
        beside = json.loads(path.with_suffix(".json").read_text())
        rejects += [Reject(**entry) for entry in beside["rejects"]]
        # copy-on-write: torch wants memory that it could write to
        pixels_NHW3: Pixels = np.load(path, mmap_mode="c")
        row_N = self.bank.add(pixels_NHW3)
        features = [torch.zeros(0, IMAGE_FEATURES)]
        for at in range(0, len(pixels_NHW3), IMAGE_BATCH):
            features.append(
                self.image_tower.features(list(pixels_NHW3[at : at + IMAGE_BATCH])).cpu()
            )
            self.on_progress("features", at + len(features[-1]), len(pixels_NHW3))
        return torch.cat([torch.cat(features), row_N[:, None].float()], dim=1), beside["usable"]

    def _decode(self, source: Source, sha256s: Sequence[str], path: Path) -> None:
        pixels: list[Pixels] = []
        usable: list[bool] = []
        refused: list[Reject] = []
        wanted = only(source, sha256s)
        for ready in prepare_rows(wanted, self.image_tower.prepare, source=source.name):
            usable.append(not isinstance(ready, Reject))
            if isinstance(ready, Reject):
                refused.append(ready)
                continue
            assert ready[1] is not None
            pixels.append(np.asarray(ready[1], np.uint8))
            self.on_progress("pictures", len(usable), len(sha256s))
        usable += [False] * (len(sha256s) - len(usable))
        self._folder.mkdir(parents=True, exist_ok=True)
        beside = {"usable": usable, "rejects": [reject.to_dict() for reject in refused]}
        replace_file(path.with_suffix(".json"), json.dumps(beside).encode())
        scratch = path.with_suffix(".partial")
        with scratch.open("wb") as file:
            np.save(file, np.array(pixels, np.uint8).reshape(-1, IMAGE_SIDE, IMAGE_SIDE, 3))
        scratch.replace(path)
