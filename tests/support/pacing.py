"""`diptych serve` as a process of its own, with encoders whose speed is set, not measured."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import serving
from fakes import ColourEncoder

from models.encoder import Fingerprint, PreparedText
from models.vectors import Vectors, unit_rows

COMMAND = """
import sys
import models.encoders.registry
from pacing import PacedEncoder, WideEncoder

took = float(sys.argv.pop(1))
models.encoders.registry.load_encoder = lambda model="starter", **_: (
    WideEncoder() if model == WideEncoder.model else PacedEncoder(took, name=model)
)
from service.cli.main import main
main()
"""


class PacedEncoder(ColourEncoder):
    """The colour encoder, taking `took` seconds for each text or picture; sleeping, not working."""

    def __init__(self, took: float, *, name: str = "colours") -> None:
        super().__init__(name=name)
        self._took = took

    def embed_texts(self, texts: Sequence[PreparedText]) -> Vectors:
        time.sleep(self._took * len(texts))
        return super().embed_texts(texts)

    def embed_images(self, images: Sequence[Any]) -> Vectors:
        time.sleep(self._took * len(images))
        return super().embed_images(images)


class WideEncoder(ColourEncoder):
    """Any text to some direction of 512 dimensions: for indexes of random vectors."""

    model = "wide"

    def __init__(self) -> None:
        super().__init__(name=self.model)
        self.dim = 512

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self.model, "random", "none", "none", "none", "none", self.dim)

    def embed_texts(self, texts: Sequence[PreparedText]) -> Vectors:
        return self._some([" ".join(text.tokens) for text in texts])

    def embed_images(self, images: Sequence[Any]) -> Vectors:
        return self._some([np.asarray(image).tobytes().hex() for image in images])

    def _some(self, names: Sequence[str]) -> Vectors:
        if not names:
            return np.zeros((0, self.dim), dtype=np.float32)
        seeds = [int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) for name in names]
        rows = [np.random.default_rng(seed).standard_normal(self.dim) for seed in seeds]
        return unit_rows(np.stack(rows))


@contextmanager
def paced_server(
    index: Path, log: Path, took: float, *more: str, core: int | None = None
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A running `diptych serve` and what it announced; `core`: the only one it may use."""
    serve = ["serve", "--index", str(index), "--port", "0", "--json", *more]
    command = [sys.executable, "-c", COMMAND, str(took), *serve]
    with serving.announced(command, log, serving.environment(), core=core) as found:
        yield found
