"""Exact search: latency and throughput for single queries and batches, and its cost to open.

    python tests/bench/search_exact.py [--rows 100000] [--dim 512] [--threads N]

Compares what we use (FAISS's fp16 scalar quantiser) with the obvious other way of being exact
(float16 chunks upcast to float32 and multiplied), with and without dead rows, and measures the
whole `Snapshot.search`, items included, on an index of that size. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from indexer.format.items import Item, NewRow
from indexer.search.options import SearchOptions
from indexer.search.snapshot import open_snapshot
from indexer.search.vector_index import ExactIndex
from indexer.store.writer import IndexWriter
from models.encoder import Fingerprint
from models.vectors import Vectors, unit_rows

K = 10
SEGMENT = 8192


def timed(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Milliseconds per call: median and 99th percentile."""
    call()
    spans = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        spans.append((time.perf_counter() - started) * 1e3)
    return {
        "p50_ms": round(float(np.median(spans)), 2),
        "p99_ms": round(float(np.percentile(spans, 99)), 2),
    }


def upcast_and_multiply(rows_ND: np.ndarray, queries_QD: Vectors) -> None:
    for start in range(0, len(rows_ND), SEGMENT):
        scores_QN = queries_QD @ rows_ND[start : start + SEGMENT].astype(np.float32).T
        np.argpartition(scores_QN, -K, axis=1)


def fill(path: Path, vectors_ND: Vectors) -> None:
    dim = vectors_ND.shape[1]
    fingerprint = Fingerprint("bench", "none", "none", "none", "none", "none", dim)
    digest = hashlib.sha256(b"bench").hexdigest()
    with IndexWriter(path, fingerprint) as writer:
        segments = []
        for start in range(0, len(vectors_ND), SEGMENT):
            segment = writer.new_segment("image")
            part = vectors_ND[start : start + SEGMENT]
            rows = []
            for position in range(start, start + len(part)):
                name = f"photos/{position:08}.jpg"
                item = Item(name, "image", f"file:///{name}", None, None, None, None, {}, digest)
                rows.append(NewRow(name, item))
            segment.add(part, rows)
            segments.append(segment)
        writer.commit(segments)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    vectors_ND = unit_rows(rng.standard_normal((arguments.rows, arguments.dim), dtype=np.float32))
    half_ND = vectors_ND.astype(np.float16)
    live_N = rng.random(arguments.rows) > 0.1
    everything = ExactIndex(half_ND, np.ones(arguments.rows, dtype=bool))
    some = ExactIndex(half_ND, live_N)
    results: dict[str, object] = {}
    for batch in (1, 16, 64):
        queries_QD = unit_rows(rng.standard_normal((batch, arguments.dim)))
        repeats = max(5, 60 // batch)
        entry: dict[str, object] = {
            "faiss_fp16": timed(lambda q=queries_QD: everything.search(q, K), repeats),
            "faiss_fp16_10pct_dead": timed(lambda q=queries_QD: some.search(q, K), repeats),
            "upcast_multiply": timed(lambda q=queries_QD: upcast_and_multiply(half_ND, q), 5),
        }
        results[f"batch_{batch}"] = entry
        print(f"batch {batch}: {entry}")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bench.index"
        started = time.perf_counter()
        fill(path, vectors_ND)
        results["write_s"] = round(time.perf_counter() - started, 2)
        started = time.perf_counter()
        snapshot = open_snapshot(path, fingerprint=None)
        results["verify_and_open_s"] = round(time.perf_counter() - started, 2)
        results["index_bytes"] = snapshot.info().bytes
        for batch in (1, 16):
            queries_QD = unit_rows(rng.standard_normal((batch, arguments.dim)))
            entry = timed(
                lambda q=queries_QD: snapshot.search(q, SearchOptions(k=K)), max(5, 60 // batch)
            )
            entry["queries_per_s"] = round(batch / float(entry["p50_ms"]) * 1e3, 1)
            results[f"snapshot_search_{batch}"] = entry
            print(f"Snapshot.search, batch {batch}: {entry}")
        snapshot.close()
    print(
        json.dumps(
            {
                "benchmark": "search_exact",
                "rows": arguments.rows,
                "dim": arguments.dim,
                "k": K,
                "threads": arguments.threads,
                **results,
                "cpu": cpu(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "numpy": np.__version__,
                "faiss": faiss.__version__,
                "faiss_build": faiss.get_compile_options().strip(),
            }
        )
    )


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
