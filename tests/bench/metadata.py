"""Metadata by id and by row, from one segment's `items.sqlite`: microseconds, and many threads.

    python tests/bench/metadata.py [--rows 1000000] [--seconds 2] [--threads 8] [--out FILE]

The file is synthetic: paths of photographs, captions, three attributes; 384 bytes an item or so.
Ids and rows are drawn uniformly, so every lookup lands on another page; the file is in the page
cache of the operating system, as it is after opening (every byte was hashed). The last line is
JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from indexer.format.items import Item, ItemsReader, ItemsWriter, NewRow

WORDS = "a man dog red shirt on the beach two children play with ball snow mountain bike"


def item_id(row: int) -> str:
    return f"holiday/{row % 997:03}/IMG_{row:07}.jpg"


def fill(path: Path, rows: int) -> None:
    rng = random.Random(0)
    digest = hashlib.sha256(b"bench").hexdigest()
    writer = ItemsWriter(path)
    for row in range(rows):
        name = item_id(row)
        text = " ".join(rng.choices(WORDS.split(), k=11))
        about = {"year": 2000 + row % 25, "camera": "X100V", "place": f"place {row % 1000}"}
        item = Item(name, "image", f"file:///{name}", text, "en", None, None, about, digest)
        writer.add(NewRow(name, item))
    writer.close()


def measured(call: Callable[[random.Random], object], seconds: float) -> dict[str, float]:
    """Microseconds a call: median and 99th percentile."""
    rng, spans = random.Random(1), []
    for _ in range(200):
        call(rng)
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        started = time.perf_counter_ns()
        call(rng)
        spans.append((time.perf_counter_ns() - started) / 1e3)
    spans.sort()
    return {
        "p50_us": round(spans[len(spans) // 2], 2),
        "p99_us": round(spans[len(spans) * 99 // 100], 2),
    }


def together(
    call: Callable[[random.Random], object], threads: int, seconds: float
) -> dict[str, float]:
    """Calls a second of so many threads at once, and their 99th percentile."""
    counts, spans, stop = [0] * threads, [], time.perf_counter() + seconds

    def work(number: int) -> None:
        rng, own = random.Random(number), []
        while time.perf_counter() < stop:
            started = time.perf_counter_ns()
            call(rng)
            own.append((time.perf_counter_ns() - started) / 1e3)
        counts[number] = len(own)
        spans.extend(own)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    spans.sort()
    return {
        "calls_per_s": round(sum(counts) / seconds),
        "p99_us": round(spans[len(spans) * 99 // 100], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--file", type=Path, help="Use this items.sqlite; made if missing.")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder) / "items.sqlite"
        started = time.perf_counter()
        if not path.exists():
            fill(path, options.rows)
        written = time.perf_counter() - started
        path.read_bytes()
        started = time.perf_counter()
        reader = ItemsReader(path, "image")
        opened = (time.perf_counter() - started) * 1e3
        rows = reader.count()

        def by_id(rng: random.Random) -> Item:
            row = reader.find(item_id(rng.randrange(rows)))
            assert row is not None
            return reader.items([row])[row]

        def page(size: int) -> Callable[[random.Random], object]:
            return lambda rng: reader.items([rng.randrange(rows) for _ in range(size)])

        def names(size: int) -> Callable[[random.Random], object]:
            return lambda rng: reader.ids([rng.randrange(rows) for _ in range(size)])

        calls: dict[str, Callable[[random.Random], object]] = {
            "random_numbers": lambda rng: item_id(rng.randrange(rows)),
            "row_of_id": lambda rng: reader.find(item_id(rng.randrange(rows))),
            "item_by_id": by_id,
            "page_of_10": page(10),
            "page_of_100": page(100),
            "ids_of_200": names(200),
        }
        report: dict[str, Any] = {
            "benchmark": "metadata",
            "rows": rows,
            "bytes_per_item": round(path.stat().st_size / rows, 1),
            "write_s": round(written, 1),
            "open_ms": round(opened, 2),
        }
        for name, call in calls.items():
            report[name] = measured(call, options.seconds)
            print(name, report[name], flush=True)
        for name in ("item_by_id", "page_of_10"):
            for count in (1, options.threads):
                found = together(calls[name], count, options.seconds)
                report[f"{name}_{count}_threads"] = found
                print(f"{name}, {count} threads", found, flush=True)
        reader.close()
    report |= {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
    print(json.dumps(report))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
