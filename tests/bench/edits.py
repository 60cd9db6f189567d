"""What changing an index costs: puts, deletes, rollback and purge, by the size of the index.

    python tests/bench/edits.py --rows 100000

Rows are random unit vectors of 512 dimensions with a caption each and a thumbnail of 2 KiB; the
model is a stand-in that costs nothing, so that only the store's own work is timed. Every figure is
one run. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from fakes import ColourEncoder, solid  # noqa: E402

from indexer.format.items import Item, NewRow  # noqa: E402
from indexer.maintain.edit import Editor, delete_items, rollback  # noqa: E402
from indexer.maintain.purge import purge  # noqa: E402
from indexer.search.relevance_file import embed_background  # noqa: E402
from indexer.store.history import history  # noqa: E402
from indexer.store.writer import IndexWriter  # noqa: E402
from models.encoder import PreparedImage, PreparedText  # noqa: E402
from models.sources.records import Record  # noqa: E402
from models.vectors import Vectors, unit_rows  # noqa: E402

DIM = 512
BLOCK = 2000


class RandomEncoder(ColourEncoder):
    def __init__(self) -> None:
        super().__init__(name="random")
        self.dim = DIM
        self._rng = np.random.default_rng(1)

    def embed_images(self, images: Sequence[PreparedImage]) -> Vectors:
        return self.rows(len(images))

    def embed_texts(self, texts: Sequence[PreparedText]) -> Vectors:
        return self.rows(len(texts))

    def rows(self, count: int) -> Vectors:
        return unit_rows(self._rng.standard_normal((count, DIM)).astype(np.float32))


def make(out: Path, rows: int, segment_rows: int, encoder: RandomEncoder) -> None:
    rng = random.Random(2)
    words = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(5000)]
    with IndexWriter(out, encoder.fingerprint) as writer:
        queries_QD = embed_background(encoder)
        assert queries_QD is not None
        writer.use_background(queries_QD, "0" * 64)
        for start in range(0, rows, segment_rows):
            images, texts = writer.new_segment("image"), writer.new_segment("text")
            for low in range(start, min(rows, start + segment_rows), BLOCK):
                keys = [
                    f"folder/picture-{i:07}.jpg"
                    for i in range(low, min(low + BLOCK, start + segment_rows))
                ]
                captions = [" ".join(rng.choices(words, k=8)) for _ in keys]
                for writing, modality in ((images, "image"), (texts, "text")):
                    new = [
                        NewRow(
                            key,
                            Item(
                                id=key if modality == "image" else f"{key}#en/0",
                                modality=modality,  # type: ignore[arg-type]
                                uri=f"file:///somewhere/{key}",
                                text=caption,
                                language="en",
                                image_id=None if modality == "image" else key,
                                label=None,
                                attributes={"n": i},
                                content_hash=f"{i:064x}",
                            ),
                            rng.randbytes(2048) if modality == "image" else None,
                        )
                        for i, (key, caption) in enumerate(zip(keys, captions, strict=True), low)
                    ]
                    writing.add(encoder.rows(len(new)), new)
            writer.commit([images, texts])


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return round(time.perf_counter() - started, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--segment-rows", type=int, default=20_000)
    options = parser.parse_args()
    encoder = RandomEncoder()
    rng = random.Random(3)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "x.index"
        seconds["make"] = timed(lambda: make(out, options.rows, options.segment_rows, encoder))
        whole = history(out)[0]
        editor = Editor(out, encoder)
        one = Record("new", "file:///new.png", solid("red"), {"en": ("a red wall",)})
        seconds["put_first"] = timed(lambda: editor.put([one]))
        other = Record("new", "file:///new.png", solid("blue"), {"en": ("a blue wall",)})
        seconds["put_replace"] = timed(lambda: editor.put([other]))
        seconds["put_unchanged"] = timed(lambda: editor.put([other]))
        keys = [f"folder/picture-{i:07}.jpg" for i in range(options.rows)]
        rng.shuffle(keys)
        seconds["delete_one"] = timed(lambda: editor.delete(keys[:1]))
        tenth = keys[: options.rows // 10]
        seconds["delete_tenth"] = timed(lambda: delete_items(out, tenth))
        seconds["rollback"] = timed(lambda: rollback(out, whole.version))
        live = history(out)[0].images
        started = time.perf_counter()
        receipt = purge(out)
        seconds["purge"] = round(time.perf_counter() - started, 3)
        assert receipt.found == []
        assert live == options.rows - len(tenth)
    result = {
        "rows": {"images": options.rows, "texts": options.rows, "dim": DIM},
        "deleted": len(tenth),
        "bytes": whole.bytes,
        "seconds": seconds,
        "purge": {"sought": receipt.sought, "bytes_after": receipt.bytes_after},
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
