"""The libraries that `search.py` is compared with: build an index file each, open it, search it.

    python tests/bench/search_peers.py LIBRARY ROWS.npy OUT [--threads 2]

builds one (float16 [N, D] unit rows) and writes OUT and OUT.json (wall and CPU seconds). Each
library has its own defaults for building, except as said here; the benchmark sweeps its search
parameter. `autofaiss` wants an older numpy than we do, so the builder runs in an environment of its
own (`search_peers.sh`) and what it leaves is an ordinary FAISS file. This file imports nothing of
the project, so that every environment can run it.

Shapes: N rows, Q queries, K neighbours, D embedding.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 20_000
Search = Callable[[Any, int, int], Any]
"""(queries [Q, D], k, effort) -> rows [Q, K]."""


def blocks(rows_ND: Any) -> Iterator[tuple[int, Any]]:
    for start in range(0, len(rows_ND), BLOCK):
        yield start, rows_ND[start : start + BLOCK].astype(np.float32)


def build_hnswlib(rows_ND: Any, out: Path, threads: int) -> dict[str, Any]:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=rows_ND.shape[1])
    index.init_index(max_elements=len(rows_ND), M=16, ef_construction=200, random_seed=0)
    for start, part in blocks(rows_ND):
        index.add_items(part, np.arange(start, start + len(part)), num_threads=threads)
    index.save_index(str(out))
    version = importlib.metadata.version("hnswlib")
    return {"library": f"hnswlib {version}", "recipe": "M=16 ef_construction=200 f32"}


def build_usearch(rows_ND: Any, out: Path, threads: int) -> dict[str, Any]:
    import usearch
    from usearch.index import Index

    # its own defaults (connectivity 16, expansion_add 128), and the half precision of the data
    index = Index(ndim=rows_ND.shape[1], metric="ip", dtype="f16")
    for start, part in blocks(rows_ND):
        index.add(np.arange(start, start + len(part)), part.astype(np.float16), threads=threads)
    index.save(str(out))
    return {"library": f"usearch {usearch.__version__}", "recipe": "M=16 expansion_add=128 f16"}


def build_faiss_hnsw(rows_ND: Any, out: Path, threads: int) -> dict[str, Any]:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexHNSWFlat(rows_ND.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    for _, part in blocks(rows_ND):
        index.add(part)
    faiss.write_index(index, str(out))
    return {"library": f"faiss {faiss.__version__}", "recipe": "HNSW32,Flat efConstruction=40"}


def build_autofaiss(rows_ND: Any, out: Path, threads: int) -> dict[str, Any]:
    import autofaiss
    import faiss

    faiss.omp_set_num_threads(threads)
    index, about = autofaiss.build_index(
        rows_ND.astype(np.float32),
        save_on_disk=False,
        metric_type="ip",
        max_index_memory_usage="16G",
        current_memory_available="20G",
        nb_cores=threads,
        verbose=30,
    )
    faiss.write_index(index, str(out))
    version = importlib.metadata.version("autofaiss")
    return {"library": f"autofaiss {version}", "recipe": about["index_key"],
            "chosen": about["index_param"]}  # fmt: skip


BUILDERS = {
    "hnswlib": build_hnswlib,
    "usearch": build_usearch,
    "faiss-hnsw": build_faiss_hnsw,
    "autofaiss": build_autofaiss,
}


def open_hnswlib(path: Path, dim: int, threads: int) -> tuple[Search, list[int]]:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=dim)
    index.load_index(str(path))
    index.set_num_threads(threads)

    def search(queries_QD: Any, k: int, effort: int) -> Any:
        index.set_ef(effort)
        return index.knn_query(queries_QD, k, num_threads=threads)[0]

    return search, EFFORTS


def open_usearch(path: Path, dim: int, threads: int) -> tuple[Search, list[int]]:
    from usearch.index import Index

    index = Index.restore(str(path))

    def search(queries_QD: Any, k: int, effort: int) -> Any:
        index.expansion_search = effort
        return index.search(queries_QD.astype(np.float16), k, threads=threads).keys.reshape(-1, k)

    return search, EFFORTS


def open_faiss(path: Path, dim: int, threads: int) -> tuple[Search, list[int]]:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.read_index(str(path))
    inverted = "IVF" in json.loads(path.with_name(path.name + ".json").read_text())["recipe"]

    def search(queries_QD: Any, k: int, effort: int) -> Any:
        if inverted:
            faiss.ParameterSpace().set_index_parameters(index, f"nprobe={effort}")
            return index.search(queries_QD, k)[1]
        return index.search(queries_QD, k, params=faiss.SearchParametersHNSW(efSearch=effort))[1]

    return search, NPROBES if inverted else EFFORTS


EFFORTS = [10, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 768]
NPROBES = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
OPENERS = {"hnswlib": open_hnswlib, "usearch": open_usearch,
           "faiss-hnsw": open_faiss, "autofaiss": open_faiss}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=BUILDERS)
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    rows_ND = np.load(arguments.rows, mmap_mode="r")
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    about = BUILDERS[arguments.library](rows_ND, arguments.out, arguments.threads)
    used = resource.getrusage(resource.RUSAGE_SELF)
    about |= {
        "rows": len(rows_ND),
        "threads": arguments.threads,
        "build_wall_s": round(time.perf_counter() - started, 1),
        "build_cpu_s": round(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime, 1),
        "bytes_per_vector": round(arguments.out.stat().st_size / len(rows_ND), 1),
    }
    arguments.out.with_name(arguments.out.name + ".json").write_text(json.dumps(about, indent=1))
    print(json.dumps(about))


if __name__ == "__main__":
    main()
