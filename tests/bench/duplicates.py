"""Near-duplicates of many pictures: every pair compared, against neighbours from a structure.

    python tests/bench/duplicates.py [--rows 100000] [--dim 512] [--structure ivf] [--out FILE]

Synthetic: pictures around a thousand centres, one in twenty a slightly changed copy of another, and
one picture with 500 copies. Recall is the share of the pictures named by comparing every pair that
are named through the structure, too. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from indexer.format.items import Item, NewRow
from indexer.format.version import open_version
from indexer.maintain.optimize import OptimizeOptions, optimize
from indexer.search.duplicates import find_duplicates
from indexer.store.writer import IndexWriter
from models.encoder import Fingerprint
from models.vectors import Vectors, unit_rows

CROWD = 500


def around(count: int, dim: int, rng: np.random.Generator) -> Vectors:
    centres = np.random.default_rng(7).standard_normal((1000, dim), dtype=np.float32)
    noise = rng.standard_normal((count, dim), dtype=np.float32)
    return unit_rows(centres[rng.integers(0, 1000, count)] + 0.6 * noise)


def fill(path: Path, rows: int, dim: int) -> None:
    rng = np.random.default_rng(0)
    vectors_ND = around(rows, dim, rng)
    originals, copies = np.split(rng.permutation(rows - CROWD)[: rows // 10], 2)
    vectors_ND[copies] = vectors_ND[originals]
    vectors_ND[rows - CROWD :] = vectors_ND[0]
    noise = rng.standard_normal(vectors_ND.shape, dtype=np.float32) * (0.2 / dim**0.5)
    vectors_ND = unit_rows(vectors_ND + noise)
    with IndexWriter(path, Fingerprint("b", "b", "b", "b", "b", "b", dim)) as writer:
        segment = writer.new_segment("image")
        for start in range(0, rows, 1000):
            part = range(start, min(start + 1000, rows))
            items = [
                Item(f"p{n}", "image", f"file:///{n}", None, None, None, None, {}, "00" * 32)
                for n in part
            ]
            segment.add(vectors_ND[start : part.stop], [NewRow(one.id, one) for one in items])
        writer.commit([segment])


def compared(path: Path, *, exact: bool) -> tuple[set[str], float]:
    """Who is superfluous, and the seconds it took."""
    version = open_version(path)
    try:
        started = time.perf_counter()
        groups = list(find_duplicates(version, exact=exact))
        return {one.id for g in groups for one in g.others}, time.perf_counter() - started
    finally:
        version.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--structure", choices=["ivf", "hnsw"], default="ivf")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.index"
        fill(path, options.rows, options.dim)
        queries_QD = around(400, options.dim, np.random.default_rng(9))
        report = optimize(path, OptimizeOptions(structure=options.structure, queries_QD=queries_QD))
        images = report.images
        print(images.recipe, images.recall, images.notes, f"{report.seconds:.0f} s", flush=True)
        by_structure, fast = compared(path, exact=False)
        print(f"{options.structure}: {len(by_structure)} named in {fast:.1f} s", flush=True)
        by_pairs, slow = compared(path, exact=True)
        print(f"every pair: {len(by_pairs)} named in {slow:.1f} s", flush=True)
    result: dict[str, Any] = {
        "benchmark": "duplicates",
        "rows": options.rows,
        "dim": options.dim,
        "structure": images.structure,
        "recipe": images.recipe,
        "effort": images.effort,
        "search_recall_at_10": round(images.recall or 0.0, 4),
        "every_pair_s": round(slow, 1),
        "structure_s": round(fast, 1),
        "named": len(by_pairs),
        "recall": round(len(by_pairs & by_structure) / max(len(by_pairs), 1), 5),
        "wrongly_named": len(by_structure - by_pairs),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "faiss": version_of("faiss-cpu"),
    }
    print(json.dumps(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
