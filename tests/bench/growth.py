"""What an index costs as it grows: puts into a large one, and one that was made by single puts.

    python tests/bench/growth.py --rows 1000000 --puts 10000

`--rows`: pictures in a large index, without thumbnails, in segments of 100,000, held open as a
server holds it; then puts, deletes and refreshes, each with the bytes read for it.
`--puts`: as many records, a picture and a caption each, put one by one, beside the same records
built at once: how many segments are left, and what a search takes in both. Vectors are random unit
rows of `--dim` dimensions and the model costs nothing, so that only the store's own work is timed.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from fakes import ColourEncoder, solid  # noqa: E402
from indexes import build  # noqa: E402

from indexer.format.items import Item, NewRow  # noqa: E402
from indexer.maintain.edit import Editor  # noqa: E402
from indexer.search.holder import SnapshotHolder  # noqa: E402
from indexer.search.options import SearchOptions  # noqa: E402
from indexer.search.relevance_file import embed_background  # noqa: E402
from indexer.search.snapshot import Snapshot, open_snapshot  # noqa: E402
from indexer.store.writer import IndexWriter  # noqa: E402
from models.encoder import PreparedImage, PreparedText  # noqa: E402
from models.sources.records import Record  # noqa: E402
from models.vectors import Vectors, unit_rows  # noqa: E402

SEGMENT = 100_000
BLOCK = 5000
PICTURE = solid("red", size=(8, 8))


class RandomEncoder(ColourEncoder):
    def __init__(self, dim: int) -> None:
        super().__init__(name="random")
        self.dim = dim
        self._rng = np.random.default_rng(1)

    def embed_images(self, images: Sequence[PreparedImage]) -> Vectors:
        return self.rows(len(images))

    def embed_texts(self, texts: Sequence[PreparedText]) -> Vectors:
        return self.rows(len(texts))

    def rows(self, count: int) -> Vectors:
        return unit_rows(self._rng.standard_normal((count, self.dim)).astype(np.float32))


def make(out: Path, rows: int, encoder: RandomEncoder) -> None:
    """Pictures without thumbnails, by the writer alone."""
    with IndexWriter(out, encoder.fingerprint) as writer:
        queries_QD = embed_background(encoder)
        assert queries_QD is not None
        writer.use_background(queries_QD, "0" * 64)
        for start in range(0, rows, SEGMENT):
            segment = writer.new_segment("image")
            for low in range(start, min(rows, start + SEGMENT), BLOCK):
                numbers = range(low, min(low + BLOCK, start + SEGMENT, rows))
                new = [
                    NewRow(
                        f"picture-{i:08}.jpg",
                        Item(f"picture-{i:08}.jpg", "image", f"file:///somewhere/{i:08}.jpg",
                             None, None, None, None, {"n": i}, f"{i:064x}"),
                    )
                    for i in numbers
                ]  # fmt: skip
                segment.add(encoder.rows(len(new)), new)
            writer.commit([segment])


def bytes_read() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def costs(call: Callable[[int], object], repeats: int) -> dict[str, float]:
    """Milliseconds and bytes read of a call."""
    spans, read = [], []
    for number in range(repeats):
        before, started = bytes_read(), time.perf_counter()
        call(number)
        spans.append((time.perf_counter() - started) * 1e3)
        read.append(bytes_read() - before)
    spans.sort()
    return {
        "median_ms": round(statistics.median(spans), 2),
        "p95_ms": round(spans[int(0.95 * len(spans))], 2),
        "median_bytes_read": int(statistics.median(read)),
    }


def thing(number: int, text: str = "thing") -> Record:
    words = {"en": (f"{text} {number}",)}
    return Record(f"k{number:06}", f"file:///k{number:06}.png", PICTURE, words)


def large(home: Path, rows: int, dim: int) -> dict[str, Any]:
    encoder, out = RandomEncoder(dim), home / "large.index"
    started = time.perf_counter()
    make(out, rows, encoder)
    made = time.perf_counter() - started
    editor = Editor(out, encoder)
    with SnapshotHolder(out, fingerprint=encoder.fingerprint) as held:
        editor.put([thing(0)])
        held.refresh()
        time.sleep(0.1)
        found: dict[str, Any] = {"put": {}, "refresh": {}}
        refreshes: list[float] = []

        def refresh(_: int) -> None:
            started = time.perf_counter()
            held.refresh()
            refreshes.append((time.perf_counter() - started) * 1e3)

        def put(number: int) -> None:
            editor.put([thing(1 + number)])

        def put_seen(number: int) -> None:
            editor.put([thing(1000 + number)])
            refresh(number)

        found["put"] = costs(put, 100)
        refresh(0)
        refreshes.clear()
        found["put_and_refresh"] = costs(put_seen, 100)
        found["refresh"] = {"median_ms": round(statistics.median(refreshes), 2)}
        found["delete"] = costs(lambda number: editor.delete([f"picture-{number:08}.jpg"]), 50)
        held.refresh()
        with held.use() as snapshot:
            info = snapshot.info()
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {
        "rows": rows,
        "dim": dim,
        "bytes": size,
        "make_s": round(made, 1),
        "segments": info.segments,
        **found,
    }


def singly(home: Path, puts: int, dim: int) -> dict[str, Any]:
    encoder, out, fresh = RandomEncoder(dim), home / "puts.index", home / "fresh.index"
    build([thing(0)], out, encoder, thumbnails=False)
    editor = Editor(out, encoder)
    most, started, spans = 0, time.perf_counter(), []
    for number in range(1, puts):
        began = time.perf_counter()
        editor.put([thing(number)])
        spans.append((time.perf_counter() - began) * 1e3)
        if number % 100 == 0:
            most = max(most, len(list((out / "segments").iterdir())))
            print(f"{number} puts, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    seconds = time.perf_counter() - started
    build([thing(number) for number in range(puts)], fresh, encoder, thumbnails=False)
    queries_QD = encoder.rows(200)
    with (
        open_snapshot(out, fingerprint=encoder.fingerprint) as one,
        open_snapshot(fresh, fingerprint=encoder.fingerprint) as other,
    ):
        found = {
            "puts": puts,
            "dim": dim,
            "segments": one.info().segments,
            "segments_fresh": other.info().segments,
            "most_directories": most,
            "put_median_ms": round(statistics.median(spans), 2),
            "put_worst_ms": round(max(spans), 1),
            "seconds": round(seconds, 1),
        }
        for target in ("images", "texts"):
            for hybrid in (0.0, 0.4):
                options = SearchOptions(k=10, target=target, hybrid=hybrid)  # type: ignore[arg-type]
                found[f"search_{target}_{hybrid}_ms"] = compared(one, other, queries_QD, options)
    return found


def compared(
    one: Snapshot, other: Snapshot, queries_QD: Vectors, options: SearchOptions
) -> list[float]:
    """Median milliseconds a query in each, taken in turns, and their ratio."""
    spans: dict[str, list[float]] = {"one": [], "other": []}
    for number, query_D in enumerate(queries_QD):
        for name, snapshot in (("one", one), ("other", other)):
            started = time.perf_counter()
            snapshot.search(query_D[None], options, [f"thing {number}"])
            spans[name].append((time.perf_counter() - started) * 1e3)
    first, second = (statistics.median(some[10:]) for some in spans.values())
    return [round(first, 3), round(second, 3), round(first / second, 2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--puts", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=64)
    options = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home:
        if options.puts:
            result["puts"] = singly(Path(home), options.puts, options.dim)
        if options.rows:
            result["large"] = large(Path(home), options.rows, options.dim)
    result["machine"] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    result["versions"] = {"python": platform.python_version(), "numpy": np.__version__}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
