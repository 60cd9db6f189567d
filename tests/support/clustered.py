"""Indexes with structure to find, and none: rows around centres, for tests of ANN search.

Pictures lie around common centres; texts lie around the same centres, all shifted the same way (the
modality gap), so that texts are off the pictures' distribution as real ones are.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from indexer.filters.declared import parse_fields, values_of
from indexer.format.items import Item, NewRow
from indexer.store.writer import IndexWriter
from models.encoder import Fingerprint
from models.vectors import Vectors, unit_rows

DIM = 32
FINGERPRINT = Fingerprint("t", "t", "t", "t", "t", "t", DIM)
FIELDS = parse_fields(["rank:int,shelf:str,tags:str[]"])


def centres(count: int = 40) -> Vectors:
    return np.random.default_rng(7).standard_normal((count, DIM)).astype(np.float32)


def pictures(count: int, seed: int = 0) -> Vectors:
    rng = np.random.default_rng(seed)
    around = centres()[rng.integers(0, 40, count)]
    return unit_rows(around + 0.7 * rng.standard_normal((count, DIM)).astype(np.float32))


def texts(count: int, seed: int = 1) -> Vectors:
    rng = np.random.default_rng(seed)
    around = centres()[rng.integers(0, 40, count)]
    gap = np.zeros(DIM, dtype=np.float32)
    gap[0] = 4.0
    return unit_rows(around + gap + 0.7 * rng.standard_normal((count, DIM)).astype(np.float32))


def fill(
    path: Path,
    image_ND: Vectors,
    text_ND: Vectors,
    *,
    segments: int = 3,
    dead: frozenset[int] = frozenset(),
    start: int = 0,
) -> None:
    """Pictures p000000.. in turn over segments, the texts t000000.. in one; some pictures dead."""
    with IndexWriter(path, FINGERPRINT, fields=FIELDS if start == 0 else None) as writer:
        first = len(writer.manifest.segments)
        parts = [writer.new_segment("image") for _ in range(segments)]
        where = []
        for number, vector_D in enumerate(image_ND, start=start):
            part = parts[number % segments]
            where.append((first + number % segments, part.rows))
            attributes = {"rank": number, "shelf": f"s{number % 10}", "tags": [f"t{number % 3}"]}
            row = NewRow(
                f"r{number}",
                item("image", number, attributes),
                b"jpeg%d" % number,
                values_of(attributes, FIELDS)[0],
            )
            part.add(vector_D[None], [row])
        words = writer.new_segment("text")
        for number, vector_D in enumerate(text_ND, start=start):
            words.add(vector_D[None], [NewRow(f"w{number}", item("text", number, {}))])
        writer.commit([*parts, words], [where[number] for number in sorted(dead)])


def item(modality: str, number: int, attributes: dict[str, object]) -> Item:
    text = f"caption number {number}" if modality == "text" else None
    digest = hashlib.sha256(f"{modality}{number}".encode()).hexdigest()
    name = f"{modality[0]}{number:06}".replace("i", "p", 1)
    return Item(name, modality, f"file:///{name}", text, "en" if text else None, None,  # type: ignore[arg-type]
                "even" if number % 2 == 0 else "odd", attributes, digest)  # fmt: skip
