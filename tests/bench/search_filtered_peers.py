"""Filtered search of a million rows: ours against FAISS's HNSW with a selector, and hnswlib's.

    python tests/bench/search_filtered_peers.py --work DIR [--rows 1000000] [--site-packages DIR]

Takes the index and the peers' files that `search.py` and `search_peers.py` left, selects random
rows of it, and asks each library, one query at a time on one thread, for the cheapest of its search
parameters that reaches recall@10 of 0.95 among the selected rows; where none does, its best recall
is shown with what that costs. Ours has nothing to choose: it is the product's own decision, at the
operating point `optimize` recorded, including when to scan instead. `--site-packages` names an
environment that has hnswlib; without it that row is left out. usearch filters nothing in Python.
The last line is JSON, kept under `tests/bench/results/`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from indexer.search.ranking import candidates
from indexer.search.scanners import _SELECTIVE, RowScan
from indexer.search.snapshot import open_snapshot

K = 10
FLOOR = 0.95
SHARES = (0.5, 0.01, 0.0001)
EFFORTS = (16, 64, 128, 256, 512, 1024, 2048)
# a query of a graph that finds too little may take a second: bound the whole
BUDGET_S = 20.0
Ask = Callable[[Any], Any]
"""(query [1, D]) -> rows [K]."""


def measure(ask: Ask, queries_QD: Any, truth: list[set[int]]) -> tuple[float, float, float]:
    """(recall@10, median ms, share of queries with fewer than k hits), within the budget."""
    spans, recalls, short = [], [], 0
    began = time.perf_counter()
    for number, wanted in enumerate(truth):
        started = time.perf_counter()
        found = {int(row) for row in ask(queries_QD[number : number + 1]) if row >= 0}
        spans.append((time.perf_counter() - started) * 1e3)
        recalls.append(len(found & wanted) / len(wanted))
        short += len(found) < len(wanted)
        if time.perf_counter() - began > BUDGET_S and number >= 9:
            break
    return float(np.mean(recalls)), float(np.median(spans)), short / len(recalls)


def cheapest(make: Callable[[int], Ask], queries_QD: Any, truth: list[set[int]]) -> dict[str, Any]:
    best: dict[str, Any] = {}
    for effort in EFFORTS:
        recall, ms, short = measure(make(effort), queries_QD, truth)
        point = {"effort": effort, "recall": round(recall, 4), "ms": round(ms, 3), "short": short}
        if not best or recall > best["recall"]:
            best = point
        if recall >= FLOOR or ms > 500:
            break
    return best


def ours(part: Any, chosen_N: Any, rows_M: Any) -> tuple[str, Ask]:
    """What `indexer.search.scanners` decides for these rows."""
    vectors = part.segment.vectors_ND
    if len(rows_M) * _SELECTIVE <= len(chosen_N):
        scan: Any = RowScan(vectors, rows_M)
        name = "rows listed"
    else:
        scan = part.index.restricted(chosen_N)
        name = "exact, selected inside FAISS"
        if len(rows_M) >= part.ann.fewest * len(chosen_N):
            scan = part.ann.restricted(chosen_N, scan)
            name = "structure, selected inside FAISS"

    def ask(query_1D: Any) -> Any:
        [one] = candidates([scan], [vectors], query_1D, K)
        return one.rows[np.argsort(-one.scores, kind="stable")[:K]]

    return name, ask


def faiss_hnsw(index: Any, chosen_N: Any) -> Callable[[int], Ask]:
    bits = np.packbits(chosen_N, bitorder="little")
    selector = faiss.IDSelectorBitmap(bits)

    def at(effort: int) -> Ask:
        parameters = faiss.SearchParametersHNSW(efSearch=effort, sel=selector)
        return lambda query_1D: index.search(query_1D, K, params=parameters)[1][0]

    at.keep = (bits, selector)  # type: ignore[attr-defined]  # FAISS holds a bare pointer
    return at


def hnswlib_filtered(index: Any, chosen_N: Any) -> Callable[[int], Ask]:
    def at(effort: int) -> Ask:
        def ask(query_1D: Any) -> Any:
            index.set_ef(effort)
            try:
                rows_QK, _ = index.knn_query(
                    query_1D, K, num_threads=1, filter=lambda label: bool(chosen_N[label])
                )
            except RuntimeError:  # it found fewer than k and gives none
                return np.full(K, -1)
            return rows_QK[0]

        return ask

    return at


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--noise", default="neighbours")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--site-packages", type=Path)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    queries_QD = np.load(arguments.work / "data" / "queries.npy")[: arguments.queries]
    graph = faiss.read_index(str(arguments.work / "peers" / "faiss-hnsw"))
    labels: Any = None
    if arguments.site_packages:
        sys.path.append(str(arguments.site_packages))
        import hnswlib

        labels = hnswlib.Index(space="ip", dim=queries_QD.shape[1])
        labels.load_index(str(arguments.work / "peers" / "hnswlib"))
    results = []
    path = arguments.work / f"{arguments.rows}-{arguments.noise}.index"
    rng = np.random.default_rng(0)
    with open_snapshot(path, fingerprint=None) as snapshot:
        [part] = snapshot.searcher.segments["image"]
        for share in SHARES:
            count = int(arguments.rows * share)
            rows_M = np.sort(rng.choice(arguments.rows, count, replace=False))
            chosen_N = np.zeros(arguments.rows, dtype=np.bool_)
            chosen_N[rows_M] = True
            chosen_DM = part.segment.vectors_ND[rows_M].astype(np.float32).T
            truth = [
                {int(row) for row in rows_M[np.argsort(-(query_D @ chosen_DM))[:K]]}
                for query_D in queries_QD
            ]
            del chosen_DM
            name, ask = ours(part, chosen_N, rows_M)
            measure(ask, queries_QD[:8], truth[:8])
            recall, ms, short = measure(ask, queries_QD, truth)
            row: dict[str, Any] = {
                "share": share,
                "rows": count,
                "ours": {"way": name, "recall": round(recall, 4), "ms": round(ms, 3),
                         "short": short},
                "faiss-hnsw": cheapest(faiss_hnsw(graph, chosen_N), queries_QD, truth),
            }  # fmt: skip
            if labels is not None:
                row["hnswlib"] = cheapest(hnswlib_filtered(labels, chosen_N), queries_QD, truth)
            results.append(row)
            print(json.dumps(row), flush=True)
    summary = {
        "benchmark": "search_filtered_peers",
        "rows": arguments.rows,
        "queries": arguments.queries,
        "threads": 1,
        "floor": FLOOR,
        "shares": results,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "faiss": faiss.__version__,
    }
    out = Path(__file__).parent / "results" / f"search-filtered-peers-{arguments.rows}.json"
    out.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
