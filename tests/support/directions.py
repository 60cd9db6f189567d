"""A fake encoder pair in which every picture content and every word has a direction of its own."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from fakes import ColourEncoder, encode
from PIL import Image

from models.encoder import PreparedImage, PreparedText
from models.vectors import Vectors, unit_rows

WORDS = [f"w{i}" for i in range(6)]
DIM = 9


class HashEncoder(ColourEncoder):
    """A direction of its own for every picture content and word; equal content, equal direction."""

    def embed_images(self, images: Sequence[PreparedImage]) -> Vectors:
        if not images:
            return np.zeros((0, DIM), dtype=np.float32)
        self.images_embedded += len(images)
        return np.stack([direction(int(np.asarray(image)[0, 0, 0])) for image in images])

    def embed_texts(self, texts: Sequence[PreparedText]) -> Vectors:
        if not texts:
            return np.zeros((0, DIM), dtype=np.float32)
        words = [text.tokens[0] for text in texts]
        self.texts_embedded += sum(word in WORDS for word in words)  # not the background's
        return np.stack([direction(1000 + _number(word)) for word in words])


def _number(word: str) -> int:
    return WORDS.index(word) if word in WORDS else zlib.crc32(word.encode())


def direction(seed: int) -> Vectors:
    row: Vectors = unit_rows(np.random.default_rng(seed).standard_normal((1, DIM)))[0]
    return row


def picture(shade: int) -> bytes:
    return encode(Image.new("RGB", (4, 4), (shade, 0, 0)))
