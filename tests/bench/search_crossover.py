"""Filtered search of a large index: in its ANN structure, or an exact scan of the selected rows?

    python tests/bench/search_crossover.py --work DIR [--rows 1000000]

Takes the index that `search.py prepare` left and selects random rows of it, from half of them down
to one in ten thousand. For each share: latency of one query both ways on one thread, recall@10 of
the structure at the effort that `indexer.search.scanners` asks for, recall of searching without
the filter and dropping afterwards, and how often fewer than k came back so that the scan had to
help. `indexer.search.scanners.FEWEST_SHARE` is where the two latencies cross. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from indexer.search.ranking import candidates
from indexer.search.scanners import FEWEST_SHARE, RowScan
from indexer.search.snapshot import open_snapshot

K = 10
QUERIES = 200
SHARES = (0.5, 0.25, 0.125, 1 / 16, 1 / 32, 0.01, 0.001, 0.0001)


def milliseconds(call: Callable[[int], object], repeats: int) -> float:
    call(0)
    spans = []
    for number in range(repeats):
        started = time.perf_counter()
        call(number)
        spans.append((time.perf_counter() - started) * 1e3)
    return round(float(np.median(spans)), 3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--noise", default="neighbours")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    queries_QD = np.load(arguments.work / "data" / "queries.npy")[:QUERIES]
    rng = np.random.default_rng(0)
    results = []
    path = arguments.work / f"{arguments.rows}-{arguments.noise}.index"
    with open_snapshot(path, fingerprint=None) as snapshot:
        [part] = snapshot.searcher.segments["image"]
        assert part.ann is not None
        vectors = [part.segment.vectors_ND]
        unfiltered = [
            set(one.rows.tolist()) for one in candidates([part.ann], vectors, queries_QD, K)
        ]
        for share in SHARES:
            rows_M = np.sort(rng.choice(arguments.rows, int(arguments.rows * share), replace=False))
            chosen_N = np.zeros(arguments.rows, dtype=np.bool_)
            chosen_N[rows_M] = True
            bitmap = part.index.restricted(chosen_N)
            inside = part.ann.restricted(chosen_N, bitmap)
            listed = RowScan(vectors[0], rows_M)

            def ask(scanner: object, number: int) -> object:
                return candidates([scanner], vectors, queries_QD[number][None], K)  # type: ignore[list-item]

            truth, found = [], []
            chosen_DM = vectors[0][rows_M].astype(np.float32).T
            for query_D in queries_QD:
                scores_M = query_D @ chosen_DM
                truth.append(set(rows_M[np.argpartition(scores_M, -K)[-K:]].tolist()))
            for one in candidates([inside], vectors, queries_QD, K):
                best = np.argsort(-one.scores, kind="stable")[:K]
                found.append(set(one.rows[best].tolist()))
            short = inside._index.search(queries_QD, K, inside._effort_for(K), inside._refine)
            results.append({
                "share": share,
                "rows": len(rows_M),
                "effort": inside._effort_for(K),
                "ann_ms": milliseconds(lambda n, s=inside: ask(s, n), 60),
                "bitmap_ms": milliseconds(lambda n, s=bitmap: ask(s, n), 8),
                "listed_ms": milliseconds(lambda n, s=listed: ask(s, n), 8)
                if len(rows_M) <= 20_000 else None,
                "ann_recall": round(float(np.mean(
                    [len(a & b) / K for a, b in zip(truth, found, strict=True)])), 4),
                "recall_dropping_afterwards": round(float(np.mean(
                    [len(a & b) / K for a, b in zip(truth, unfiltered, strict=True)])), 4),
                "too_few": round(float(((short >= 0).sum(axis=1) < K).mean()), 4),
                "hits": min(len(one) for one in found),
            })  # fmt: skip
            print(results[-1])
    summary = {
        "benchmark": "search_crossover",
        "rows": arguments.rows,
        "queries": QUERIES,
        "threads": 1,
        "crossover": FEWEST_SHARE["ivf"],
        "shares": results,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "faiss": faiss.__version__,
    }
    out = Path(__file__).parent / "results" / f"search-crossover-{arguments.rows}.json"
    out.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
