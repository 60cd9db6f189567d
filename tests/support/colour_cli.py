"""Run `diptych` with the colour encoder in place of a real model; a driver for process tests.

    python tests/support/colour_cli.py index build pictures --out photos.index

`COLOUR_NAME` names the encoder (another name is another fingerprint), `COLOUR_DELAY` seconds are
slept for every batch of pictures, and `COLOUR_LOG` names a file to which every embedded picture
adds a byte, so that a test can count what a killed process did. With `COLOUR_WAIT` a picture waits,
after its byte, until that file is there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from fakes import ColourEncoder  # noqa: E402

from models.encoder import PreparedImage  # noqa: E402
from models.encoders import registry  # noqa: E402
from models.vectors import Vectors  # noqa: E402
from service.cli.main import main  # noqa: E402


class WatchedEncoder(ColourEncoder):
    def embed_images(self, images: Sequence[PreparedImage]) -> Vectors:
        time.sleep(float(os.environ.get("COLOUR_DELAY", "0")))
        if log := os.environ.get("COLOUR_LOG"):
            with Path(log).open("ab") as stream:
                stream.write(b"." * len(images))
        if go := os.environ.get("COLOUR_WAIT"):
            while not Path(go).exists():
                time.sleep(0.01)
        return super().embed_images(images)


def load_encoder(model: str = "colours", **options: object) -> WatchedEncoder:
    name = model if model.startswith("colours") else os.environ.get("COLOUR_NAME", "colours")
    return WatchedEncoder(name=name)


if __name__ == "__main__":
    registry.load_encoder = load_encoder
    main()
