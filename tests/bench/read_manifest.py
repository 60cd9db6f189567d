"""Reading manifests of which 30% of the rows are bad: rows a second, and whether memory is flat.

    python tests/bench/read_manifest.py [--rows 10000 100000 1000000] [--formats jsonl csv parquet]

Only the reader runs: rows are parsed, small pictures read from disk, nothing is decoded. Each
format and size has a process of its own, which reports its peak RSS before (interpreter and
imports) and after; `grown_mb` is the difference. The bad rows are of ten kinds. The last line is
JSON; `--out FILE` keeps it.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

PICTURES = 64


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Seven good rows, then three bad ones, ten kinds of them in turn."""
    for at in range(count):
        row: dict[str, Any] = {
            "id": f"r{at:08}",
            "image": f"pictures/{at % PICTURES:03}.png",
            "caption": f"picture {at} on a table in a room with a window",
            "year": 1990 + at % 35,
        }
        if at % 10 > 6:
            kind = at // 10 % 10
            row |= {
                0: {"image": "missing.png"},
                1: {"image": "../outside.png"},
                2: {"image": "/etc/hostname"},
                3: {"image": "link.png"},
                4: {"image": "empty.png"},
                5: {"image": "https://example.org/a.png"},
                6: {"id": "r00000000"},
                7: {"id": "x" * 3000},
                8: {"image": "fifo.png"},
                9: {"image": "", "caption": ""},
            }[kind]
        yield row


def write(folder: Path, form: str, count: int) -> Path:
    path = folder / f"rows.{form}"
    if form == "jsonl":
        with path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(count))
    elif form == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "image", "caption", "year"])
            writer.writeheader()
            writer.writerows(rows(count))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema(
            [("id", "string"), ("image", "string"), ("caption", "string"), ("year", "int32")]
        )
        with pq.ParquetWriter(path, schema) as writer:
            batch = []
            for row in rows(count):
                batch.append(row)
                if len(batch) == 50_000:
                    writer.write_table(pa.Table.from_pylist(batch, schema))
                    batch = []
            if batch:
                writer.write_table(pa.Table.from_pylist(batch, schema))
    return path


def furnish(folder: Path) -> None:
    """The files that rows name, good and bad."""
    from PIL import Image

    (folder / "pictures").mkdir()
    buffer = BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 30)).save(buffer, "PNG")
    for at in range(PICTURES):
        (folder / "pictures" / f"{at:03}.png").write_bytes(buffer.getvalue())
    (folder / "link.png").symlink_to("pictures/000.png")
    (folder / "empty.png").touch()
    os.mkfifo(folder / "fifo.png")


def peak_mb() -> float:
    # not ru_maxrss, which a process inherits from the one that started it
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def read(path: Path) -> dict[str, Any]:
    """Runs in a process of its own."""
    from models.sources import Reject, open_source

    if path.suffix == ".parquet":
        import pyarrow.parquet  # noqa: F401  (its 60 MB are not the reader's)
    before = peak_mb()
    started = time.perf_counter()
    source = open_source(str(path))
    good, codes = 0, Counter[str]()
    for row in source:
        if isinstance(row, Reject):
            codes[row.code] += 1
        else:
            good += 1
    seconds = time.perf_counter() - started
    total = good + codes.total()
    return {
        "rows": total,
        "good": good,
        "rejects": codes.total(),
        "codes": dict(codes),
        "seconds": round(seconds, 2),
        "rows_per_s": round(total / seconds),
        "before_mb": round(before, 1),
        "peak_mb": round(peak_mb(), 1),
        "grown_mb": round(peak_mb() - before, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--formats", nargs="+", default=["jsonl", "csv", "parquet"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.read)))
        return
    from search_exact import cpu  # faiss comes with it: not into the processes that are measured

    results: dict[str, list[dict[str, Any]]] = {form: [] for form in options.formats}
    with tempfile.TemporaryDirectory() as name:
        furnish(Path(name))
        for form in options.formats:
            for count in options.rows:
                path = write(Path(name), form, count)
                command = [sys.executable, __file__, "--read", str(path)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                result = json.loads(done.stdout)
                path.unlink()
                assert result["rows"] == count, result
                assert result["rejects"] == count * 3 // 10, result
                results[form].append(result)
                print(form, {k: v for k, v in result.items() if k != "codes"}, file=sys.stderr)
    document = {
        "bench": "read_manifest",
        "results": results,
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "pyarrow": importlib.metadata.version("pyarrow"),
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
