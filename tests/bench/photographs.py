"""JPEGs of mixed sizes, made from the photographs inside the scikit-image wheel.

    python tests/bench/photographs.py FOLDER [--count 600]

Each picture is a random part of one of them, scaled to one of four sizes from 640 x 480 to
2048 x 1536, a third of them upright, saved at quality 90 with the usual chroma subsampling. The
same count gives the same bytes, with the same version of Pillow. What they show does not matter to
speed; how they compress does, and that is a photograph's.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import skimage
from PIL import Image

SIZES = ((640, 480), (1024, 768), (1600, 1200), (2048, 1536))
NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png",
         "motorcycle_right.png", "ihc.png", "hubble_deep_field.jpg", "retina.jpg")  # fmt: skip


def make(folder: Path, count: int) -> None:
    """Write `count` pictures; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    data = Path(skimage.__file__).parent / "data"
    whole = [Image.open(data / name).convert("RGB") for name in NAMES if (data / name).exists()]
    random_ = random.Random(0)
    for number in range(count):
        image = random_.choice(whole)
        wide, high = random_.choice(SIZES)
        if random_.random() < 1 / 3:
            wide, high = high, wide
        share = random_.uniform(0.5, 1.0)
        part = share * min(image.width / wide, image.height / high)
        width, height = int(wide * part), int(high * part)
        left, top = (
            random_.randint(0, image.width - width),
            random_.randint(0, image.height - height),
        )
        path = folder / f"{number:05}.jpg"
        if not path.exists():
            box = (left, top, left + width, top + height)
            scaled = image.resize((wide, high), Image.Resampling.BICUBIC, box=box)
            scaled.save(path, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=600)
    options = parser.parse_args()
    make(options.folder, options.count)


if __name__ == "__main__":
    main()
