"""The pointing game: is the brightest place of a heat map where the text's picture is?

    python tests/bench/explain.py SOURCE [--model starter] [--rounds 20] [--language en]

Composes squares from the pictures of any captioned source (single things work best): four pictures
side by side, asked for each of their captions, and one picture in each corner of white. Counts how
often the brightest cell, and the brightest quarter, are the right ones; chance is one in four. The
control asks for captions of pictures that are not in the square. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.encoder import Encoder
from models.encoders.registry import load_encoder
from models.explainer import Explainer, RelevanceMap
from models.images.decode import decode_image
from models.sources import open_source
from models.sources.records import Record

Pair = tuple[Image.Image, str]
SIDE = 512


def main() -> None:
    """Play, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--language", default="en")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    encoder = load_encoder(options.model, threads=options.threads)
    assert isinstance(encoder, Explainer), "this model cannot explain"
    pairs = list(_pairs(options.source, options.language))
    rng = random.Random(0)
    cells: dict[str, list[bool]] = {"four": [], "one": [], "control": []}
    quarters: dict[str, list[bool]] = {"four": [], "one": [], "control": []}
    spans = []
    for _ in range(options.rounds):
        *shown, other = rng.sample(pairs, 5)
        asked = [("four", _square([image for image, _ in shown]), shown[q][1], q) for q in range(4)]
        asked += [("control", asked[0][1], other[1], rng.randrange(4))]
        white = Image.new("RGB", (8, 8), (255, 255, 255))
        for q in range(4):
            alone = [shown[0][0] if place == q else white for place in range(4)]
            asked.append(("one", _square(alone), shown[0][1], q))
        for kind, square, text, place in asked:
            started = time.perf_counter()
            found = _map(encoder, square, text)
            spans.append(time.perf_counter() - started)
            cells[kind].append(_cell(found) == place)
            quarters[kind].append(_quarter(found) == place)
    report = {
        "model": encoder.fingerprint.model,
        "method": encoder.explanation_method,
        "pictures": len(pairs),
        "rounds": options.rounds,
        "right_cell": {kind: round(float(np.mean(v)), 3) for kind, v in cells.items()},
        "right_quarter": {kind: round(float(np.mean(v)), 3) for kind, v in quarters.items()},
        "median_ms": round(float(np.median(spans)) * 1000, 1),
    }
    for kind in cells:
        print(f"{kind:8} cell {np.mean(cells[kind]):.2f}  quarter {np.mean(quarters[kind]):.2f}")
    print(json.dumps(report))


def _pairs(source: str, language: str) -> Iterator[Pair]:
    for row in open_source(source):
        if isinstance(row, Record) and row.image is not None and row.texts.get(language):
            yield decode_image(row.image), row.texts[language][0]


def _square(images: list[Image.Image]) -> Image.Image:
    half = SIDE // 2
    square = Image.new("RGB", (SIDE, SIDE))
    for place, image in enumerate(images):
        square.paste(image.resize((half, half)), (place % 2 * half, place // 2 * half))
    return square


def _map(encoder: Encoder, square: Image.Image, text: str) -> RelevanceMap:
    assert isinstance(encoder, Explainer)
    direction_D = encoder.embed_texts([encoder.prepare_text(text)])[0]
    return encoder.relevance_map(encoder.prepare_image(square), direction_D)


def _cell(map_HW: RelevanceMap) -> int:
    row, column = np.unravel_index(map_HW.argmax(), map_HW.shape)
    high, wide = map_HW.shape
    return 2 * int(row + 0.5 > high / 2) + int(column + 0.5 > wide / 2)


def _quarter(map_HW: RelevanceMap) -> int:
    high, wide = map_HW.shape[0] // 2, map_HW.shape[1] // 2
    means = [
        map_HW[rows, columns].mean()
        for rows in (slice(0, high), slice(-high, None))
        for columns in (slice(0, wide), slice(-wide, None))
    ]
    return int(np.argmax(means))


if __name__ == "__main__":
    main()
