"""Filtered search: latency and recall by selectivity, and what filtering afterwards loses.

    python tests/bench/search_filtered.py [--rows 100000] [--dim 512] [--threads N]

Recall is against a brute-force loop over the rows that a Python predicate selects; it is 1 by
construction, so anything else is a defect. `first_ms` is a filter's first use (SQL and mask),
`p50_ms` its later ones. The comparison takes the k best of everything and drops what does not fit,
as services without filtered search do. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
from search_exact import SEGMENT, K, cpu, timed

from indexer.filters.declared import parse_fields, values_of
from indexer.filters.language import Filter, parse_filter
from indexer.format.items import Item, NewRow
from indexer.search.options import SearchOptions
from indexer.search.snapshot import Snapshot, open_snapshot
from indexer.store.writer import IndexWriter
from models.encoder import Fingerprint
from models.vectors import Vectors, unit_rows

FIELDS = parse_fields(["rank:int,shelf,tags:str[]"])
SHARES = {"50%": 0.5, "1%": 0.01, "0.01%": 0.0001, "none": 0.0}
QUERIES = 20


def fill(path: Path, vectors_ND: Vectors, ranks_N: np.ndarray) -> None:
    dim = vectors_ND.shape[1]
    fingerprint = Fingerprint("bench", "none", "none", "none", "none", "none", dim)
    digest = hashlib.sha256(b"bench").hexdigest()
    with IndexWriter(path, fingerprint, fields=FIELDS) as writer:
        segments = []
        for start in range(0, len(vectors_ND), SEGMENT):
            segment = writer.new_segment("image")
            part = vectors_ND[start : start + SEGMENT]
            rows = []
            for position in range(start, start + len(part)):
                name = f"photos/{position:08}.jpg"
                rank = int(ranks_N[position])
                attributes = {"rank": rank, "shelf": f"s{rank % 100}", "tags": [f"t{rank % 7}"]}
                values, _ = values_of(attributes, FIELDS)
                item = Item(name, "image", f"file:///{name}", None, None, None, None, {}, digest)
                rows.append(NewRow(name, item, values=values))
            segment.add(part, rows)
            segments.append(segment)
        writer.commit(segments)


def brute_force(stored_ND: np.ndarray, chosen: np.ndarray, query_D: Vectors) -> set[str]:
    scores = stored_ND[chosen].astype(np.float64) @ query_D.astype(np.float64)
    return {f"photos/{row:08}.jpg" for row in chosen[np.argsort(-scores, kind="stable")[:K]]}


def recall(snapshot: Snapshot, wanted: Filter, stored_ND: np.ndarray, chosen: np.ndarray,
           queries_QD: Vectors) -> dict[str, float]:  # fmt: skip
    """Share of the true k best that come back: filtered inside, and dropped afterwards."""
    inside = after = possible = 0
    allowed = {f"photos/{row:08}.jpg" for row in chosen}
    for query_D in queries_QD:
        truth = brute_force(stored_ND, chosen, query_D)
        hits = snapshot.search(query_D[None], SearchOptions(k=K, filter=wanted))[0]
        found = {hit.item.id for hit in hits}
        assert len(hits) == len(truth), "k hits come back whenever k exist"
        unfiltered = {hit.item.id for hit in snapshot.search(query_D[None], SearchOptions(k=K))[0]}
        inside += len(found & truth)
        after += len(unfiltered & allowed & truth)
        possible += len(truth)
    return {
        "recall": inside / possible if possible else 1.0,
        "recall_dropping_afterwards": round(after / possible, 4) if possible else 1.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    vectors_ND = unit_rows(rng.standard_normal((arguments.rows, arguments.dim), dtype=np.float32))
    ranks_N = rng.permutation(arguments.rows)
    queries_QD = unit_rows(rng.standard_normal((QUERIES, arguments.dim)))
    stored_ND = vectors_ND.astype(np.float16)
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "bench.index"
        started = time.perf_counter()
        fill(path, vectors_ND, ranks_N)
        results["write_s"] = round(time.perf_counter() - started, 2)
        snapshot = open_snapshot(path, fingerprint=None)
        started = time.perf_counter()
        snapshot.facets()
        results["facets_ms"] = round((time.perf_counter() - started) * 1e3, 1)
        query_1D = queries_QD[:1]
        results["unfiltered"] = timed(lambda: snapshot.search(query_1D, SearchOptions(k=K)), 30)
        for name, share in SHARES.items():
            bound = int(arguments.rows * share)
            wanted = parse_filter({"field": "rank", "lt": bound})
            chosen = np.flatnonzero(ranks_N < bound)
            started = time.perf_counter()
            snapshot.search(query_1D, SearchOptions(k=K, filter=wanted))
            first = round((time.perf_counter() - started) * 1e3, 2)
            later = timed(
                lambda w=wanted: snapshot.search(query_1D, SearchOptions(k=K, filter=w)), 30
            )
            entry = {"rows": len(chosen), "first_ms": first, **later}
            entry |= recall(snapshot, wanted, stored_ND, chosen, queries_QD)
            results[name] = entry
            print(f"{name}: {entry}")
        snapshot.close()
    print(
        json.dumps(
            {
                "benchmark": "search_filtered",
                "rows": arguments.rows,
                "dim": arguments.dim,
                "k": K,
                "queries": QUERIES,
                "threads": arguments.threads,
                **results,
                "cpu": cpu(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "numpy": np.__version__,
                "faiss": faiss.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
