"""Gold values of the starter pair: regenerate with `python tests/gold/starter_gold.py`.

A cosine matrix between a few photographs of the scikit-image wheel and a few texts, at fp32. It
pins the whole path (decoding, preprocessing, towers, tokenizer, heads): a change nobody meant
shows as a number here. Regenerate after `make starter`, and say in the commit why they moved.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import skimage

GOLD = Path(__file__).with_name("starter.json")
PHOTOGRAPHS = ["astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg"]
TEXTS = [
    "an astronaut in a space suit",
    "a man with a camera",
    "a cat",
    "a cup of coffee",
    "a rocket on the launch pad",
    "一只猫",
    "un chat",
    "Text, das von keinem der Bilder handelt",
]


def measure(precision: str = "fp32") -> tuple[np.ndarray, Any]:
    """Cosines float32 [photographs, texts], and the encoder that gave them."""
    from models.encoders.registry import load_encoder
    from models.images.decode import decode_image

    encoder = load_encoder("starter", device="cpu", precision=precision)
    folder = Path(skimage.__file__).parent / "data"
    pictures = [decode_image((folder / name).read_bytes()) for name in PHOTOGRAPHS]
    image_BD = encoder.embed_images([encoder.prepare_image(picture) for picture in pictures])
    text_BD = encoder.embed_texts([encoder.prepare_text(text) for text in TEXTS])
    return image_BD @ text_BD.T, encoder


def main() -> None:
    cosines, encoder = measure()
    gold = {
        "fingerprint": encoder.fingerprint.digest,
        "logit_scale": round(encoder.logit_scale, 4),
        "cosines": [[round(float(value), 5) for value in row] for row in cosines],
    }
    GOLD.write_text(json.dumps(gold, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
