"""How long it takes to open an index: verification in full and fast, cold and warm, and memory.

    python tests/bench/open_index.py --work /tmp/open-bench --json

Makes an index of 1,000,000 x 512 float16 rows in one segment (random unit vectors; ids, uris,
texts and attributes as a photo collection has them), keeps it under --work, and opens it in
processes of their own. Cold means that every file's pages were dropped from the page cache
(posix_fadvise DONTNEED after an fsync); how many bytes then came from the disk is reported, so that
a cache that was not dropped shows. The last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

BATCH = 20_000


def make(path: Path, rows: int, dim: int) -> None:
    """One image segment of `rows` rows, written through the project's own writer."""
    import numpy as np

    from indexer.format.items import Item, NewRow
    from indexer.store.writer import IndexWriter
    from models.encoder import Fingerprint
    from models.vectors import unit_rows

    fingerprint = Fingerprint("bench", "random", "0", "none", "none", "none", dim)
    rng = np.random.default_rng(0)
    with IndexWriter(path, fingerprint) as writer:
        segment = writer.new_segment("image")
        for start in range(0, rows, BATCH):
            count = min(BATCH, rows - start)
            new = []
            for i in range(start, start + count):
                item = Item(
                    id=f"holiday/2019/IMG_{i:07}.jpg",
                    modality="image",
                    uri=f"file:///srv/photos/holiday/2019/IMG_{i:07}.jpg",
                    text=f"a picture of thing number {i} at some place or other",
                    language="en",
                    image_id=None,
                    label=None,
                    attributes={"year": 2000 + i % 25, "camera": "X100"},
                    content_hash=f"{i:064x}",
                )
                new.append(NewRow(item.id, item))
            segment.add(unit_rows(rng.standard_normal((count, dim), dtype=np.float32)), new)
            print(f"\r{start + count:,} rows", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        writer.commit([segment])


def child(path: Path, verify: str) -> None:
    """Open once and print what it took; runs in a process of its own."""
    import numpy as np
    import psutil

    import indexer.search.snapshot  # noqa: F401  imports are no part of opening
    from indexer.format.integrity import open_checked
    from indexer.format.manifest import read_manifest
    from indexer.search.options import SearchOptions
    from indexer.search.snapshot import open_snapshot

    process = psutil.Process()
    idle = process.memory_info().rss
    read = process.io_counters().read_bytes
    start = time.perf_counter()
    files = read_manifest(path).files()
    open_checked(path, files, verify=verify).close()  # type: ignore[arg-type]
    checked = time.perf_counter() - start
    from_disk = process.io_counters().read_bytes - read
    after_check = process.memory_info().rss
    start = time.perf_counter()
    snapshot = open_snapshot(path, fingerprint=None, verify=verify)  # type: ignore[arg-type]
    ready = time.perf_counter() - start
    query = np.ones((1, snapshot.info().dim), dtype=np.float32)
    start = time.perf_counter()
    hits = snapshot.search(query, SearchOptions(k=10))
    first = time.perf_counter() - start
    assert len(hits[0]) == 10
    print(
        json.dumps(
            {
                "check_s": checked,
                "from_disk_bytes": from_disk,
                "check_rss_mib": (after_check - idle) / 2**20,
                "ready_warm_s": ready,
                "first_search_s": first,
                "ready_rss_mib": (process.memory_info().rss - idle) / 2**20,
                "files_bytes": sum(entry.size for entry in files.values()),
            }
        )
    )


def drop(path: Path) -> None:
    for file in path.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def measure(path: Path, verify: str, *, cold: bool, repeats: int) -> dict[str, Any]:
    runs = []
    for _ in range(repeats):
        if cold:
            drop(path)
        answer = subprocess.run(
            [sys.executable, __file__, "--child", str(path), verify],
            capture_output=True,
            text=True,
            check=True,
        )
        runs.append(json.loads(answer.stdout))
    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    best = {f"best_{key}": min(run[key] for run in runs) for key in ("check_s", "ready_warm_s")}
    return {"verify": verify, "cold": cold, "runs": repeats, **middle, **best}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--work", type=Path, default=Path("open-bench"))
    parser.add_argument("--index", type=Path, help="an index to open instead")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--make-only", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("INDEX", "VERIFY"))
    options = parser.parse_args()
    if options.child:
        child(Path(options.child[0]), options.child[1])
        return
    path = options.index or options.work / f"{options.rows}x{options.dim}"
    if not (path / "CURRENT").exists():
        options.work.mkdir(parents=True, exist_ok=True)
        make(path, options.rows, options.dim)
    if options.make_only:
        return
    results = [
        measure(path, verify, cold=cold, repeats=options.repeats)
        for verify in ("full", "fast")
        for cold in (True, False)
    ]
    document = {
        "benchmark": "open_index",
        "rows": options.rows,
        "dim": options.dim,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("numpy", "xxhash", "faiss-cpu")
        },
        "results": results,
    }
    for one in results:
        print(
            f"{one['verify']:<5} {'cold' if one['cold'] else 'warm'}: "
            f"checked in {one['check_s']:.3f} s ({one['files_bytes'] / 2**20:,.0f} MiB, "
            f"{one['from_disk_bytes'] / 2**20:,.0f} from disk, "
            f"{one['check_rss_mib']:.0f} MiB resident), then ready to search in "
            f"{one['ready_warm_s']:.3f} s, {one['ready_rss_mib']:,.0f} MiB resident",
            file=sys.stderr,
        )
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
