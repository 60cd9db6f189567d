"""The service under more than it can take: overload, hot swaps, drain, slow clients, start-up.

    python tests/bench/serve.py overload|swaps|drain|slow|ready [--seconds 60] [--rows 1000000]

Load is open-loop from this process, the service is another, each on a core of its own where the
system lets us choose. The encoder's speed is set (it sleeps), so that the figures are of the
service and not of a model; `ready` opens an index of random vectors. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import scenarios
from pacing import WideEncoder


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def two_cores() -> int | None:
    """Keep this process to one core; returns another for the service, None where there is none."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return None
    os.sched_setaffinity(0, {cores[1]})
    return cores[0]


def wide_index(path: Path, rows: int) -> None:
    """Random unit vectors of 512 dimensions, with items."""
    import hashlib

    import numpy as np

    from indexer.format.items import Item, NewRow
    from indexer.store.writer import IndexWriter
    from models.vectors import unit_rows

    rng = np.random.default_rng(0)
    encoder = WideEncoder()
    digest = hashlib.sha256(b"bench").hexdigest()
    part_rows, segment_rows = 8192, 262_144
    with IndexWriter(path, encoder.fingerprint) as writer:
        segments = []
        for start in range(0, rows, part_rows):
            if start % segment_rows == 0:
                segments.append(writer.new_segment("image"))
            size = min(part_rows, rows - start)
            vectors = unit_rows(rng.standard_normal((size, encoder.dim), dtype=np.float32))
            new = []
            for position in range(start, start + size):
                name = f"photos/{position:08}.jpg"
                item = Item(name, "image", f"file:///{name}", None, None, None, None, {}, digest)
                new.append(NewRow(name, item))
            segments[-1].add(vectors, new)
        writer.commit(segments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=["overload", "swaps", "drain", "slow", "ready"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--took-ms", type=float, default=10, help="of the encoder, per text")
    parser.add_argument("--factor", type=float, default=10)
    parser.add_argument("--count", type=int, help="swaps, repeats of the drain, or slow clients")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--index", type=Path, help="of --rows, made if it is not there")
    arguments = parser.parse_args()
    scenario = arguments.scenario
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        figures: dict[str, Any]
        if scenario == "overload":
            took = arguments.took_ms / 1000
            core = two_cores()
            figures = scenarios.overload(
                path, took=took, factor=arguments.factor, seconds=arguments.seconds, core=core
            )
            figures["encoder_ms_per_text"] = arguments.took_ms
        elif scenario == "swaps":
            figures = scenarios.swaps(path, count=arguments.count or 50, rate=50, core=two_cores())
        elif scenario == "drain":
            runs = []
            for number in range(arguments.count or 10):
                (path / str(number)).mkdir()
                runs.append(scenarios.drain(path / str(number), in_flight=100, took=0.01))
                print(runs[-1])
            figures = {
                "repeats": len(runs),
                "in_flight": min(run["in_flight"] for run in runs),
                "resets": sum(run["resets"] for run in runs),
                "statuses": sorted({status for run in runs for status in run["statuses"]}),
                "exit_codes": sorted({run["exit_code"] for run in runs}),
                "readyz_meanwhile": sorted({run["readyz_meanwhile"] for run in runs}),
                "slowest_s": max(run["took_s"] for run in runs),
            }
        elif scenario == "slow":
            figures = scenarios.slow(
                path, count=arguments.count or 1000, seconds=arguments.seconds, core=two_cores()
            )
        else:
            index = arguments.index or path / "wide.index"
            if not index.exists():
                wide_index(index, arguments.rows)
            figures = {"rows": arguments.rows, "dim": 512, **scenarios.ready(path, index)}
    print(
        json.dumps(
            {
                "benchmark": f"serve_{scenario}",
                **figures,
                "cpu": cpu(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "uvicorn": version("uvicorn"),
                "h11": version("h11"),
                "fastapi": version("fastapi"),
            }
        )
    )


if __name__ == "__main__":
    main()
