"""An encoder whose right answers are known by construction.

Each of `COLOURS` owns one basis vector. A solid picture of a colour and a text that names the
colour share it, so every ranking, cosine and class in a test can be written down beforehand.
Mixed pictures and texts land between, in proportion. Everything else points away, to one further
basis vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from models.encoder import Fingerprint, PreparedImage, PreparedText
from models.explainer import Area, RelevanceMap, seen_area, to_unit_range
from models.vectors import Vectors, unit_rows

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
CHINESE = {"红": "red", "绿": "green", "蓝": "blue", "黄": "yellow", "白": "white", "黑": "black"}
_NAMES = list(COLOURS)
_RGB = np.array(list(COLOURS.values()), dtype=np.float32)
_CONTEXT = 64


class ColourEncoder:
    """A deterministic `Encoder`: D = number of colours + 1 ("anything else")."""

    def __init__(self, *, name: str = "colours", logit_bias: float | None = None) -> None:
        self._name = name
        self.logit_scale = 20.0
        self.logit_bias = logit_bias
        self.dim = len(COLOURS) + 1
        self.images_embedded = 0
        self.texts_embedded = 0

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            model=self._name,
            architecture="colour-histogram",
            weights_sha256=f"{self._name}-weights",
            preprocessing="nearest-16x16",
            tokenizer="colour-names",
            activation="none",
            dim=self.dim,
        )

    def prepare_image(self, image: Image.Image) -> PreparedImage:
        return np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.NEAREST))

    def prepare_text(self, text: str) -> PreparedText:
        words = text.lower().replace(",", " ").replace(".", " ").split()
        for character, name in CHINESE.items():
            words += [name] * text.count(character)
        return PreparedText(words[:_CONTEXT], truncated=len(words) > _CONTEXT)

    def embed_images(self, images: Sequence[PreparedImage]) -> Vectors:
        self.images_embedded += len(images)
        if not images:
            return np.zeros((0, self.dim), dtype=np.float32)
        rows = []
        for pixels in images:
            flat = np.asarray(pixels, dtype=np.float32).reshape(-1, 3)
            distance = np.linalg.norm(flat[:, None, :] - _RGB[None], axis=2)
            counts = np.bincount(distance.argmin(axis=1), minlength=self.dim).astype(np.float32)
            rows.append(counts)
        return unit_rows(np.stack(rows))

    def embed_texts(self, texts: Sequence[PreparedText]) -> Vectors:
        self.texts_embedded += len(texts)
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        rows = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.tokens:
                if word in COLOURS:
                    row[_NAMES.index(word)] += 1.0
            if not row.any():
                row[-1] = 1.0
        return unit_rows(rows)

    # -- models.explainer.Explainer: a cell of 4 x 4 pixels answers by how much of a colour it holds

    explanation_method = "local-head"

    def explained_area(self, width: int, height: int) -> Area:
        return seen_area(width, height, resize="squash")

    def relevance_map(self, image: PreparedImage, direction_D: Vectors) -> RelevanceMap:
        cells = np.asarray(image).reshape(4, 4, 4, 4, 3).swapaxes(1, 2).reshape(16, 4, 4, 3)
        embedded = self.images_embedded
        scores = self.embed_images(list(cells)) @ direction_D
        self.images_embedded = embedded
        return to_unit_range(scores.reshape(4, 4))


def solid(colour: str, *, size: tuple[int, int] = (32, 32), fmt: str = "PNG") -> bytes:
    """A solid picture of a named colour, encoded."""
    return encode(Image.new("RGB", size, COLOURS[colour]), fmt=fmt)


def halves(left: str, right: str, *, size: tuple[int, int] = (32, 32)) -> bytes:
    """A picture whose left half is one colour and right half another, as PNG."""
    picture = Image.new("RGB", size, COLOURS[left])
    picture.paste(COLOURS[right], (size[0] // 2, 0, size[0], size[1]))
    return encode(picture)


def encode(picture: Image.Image, *, fmt: str = "PNG") -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format=fmt)
    return buffer.getvalue()
