"""From JPEG files to a finished index: Diptych beside clip-retrieval and rclip, in one run.

    tests/bench/peers_setup.sh FOLDER
    python tests/bench/embed_peers.py --peers FOLDER [--count 300] [--rounds 1] [--out FILE]

Same pictures (photographs.py), same open_clip ViT-B/32 at 256 pixels of random weights, batches of
32, every core. Each indexes all pictures in a process of its own, taking turns; rclip answers one
query too, because it has no command that only indexes. `images_s` is from the command's start to
its end; `steady_images_s` leaves out the start-up, which a run over a tenth of them measures.
`peak_mib` is the largest sum of proportional set sizes of the process and its children.

The peers run in fp32, all they have on a CPU. Diptych runs as it comes (`auto`: bf16 where the
processor multiplies it) and in fp32; it also makes thumbnails, sums and a committed index, which
clip-retrieval's `inference` does not: its second step, `clip-retrieval index`, is not counted. The
first rows of all are compared, so that it is known to be the same model. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "bench")]

from photographs import make  # noqa: E402
from serve import cpu  # noqa: E402

BATCH = "32"
Vectors = dict[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True, slots=True)
class System:
    """`command` of the pictures' folder and a fresh one for what it writes; `read` its vectors."""

    name: str
    precision: str
    command: Callable[[Path, Path], list[str]]
    read: Callable[[Path], Vectors]
    environment: Callable[[Path], dict[str, str]] = field(default=lambda _out: {})
    prepare: Callable[[Path], None] = field(default=lambda _out: None)


def systems(peers: Path) -> list[System]:
    model = peers / "embed-model"
    weights = model / "open_clip" / "open_clip_model.safetensors"

    def ours(precision: str) -> Callable[[Path, Path], list[str]]:
        return lambda pictures, out: [
            sys.executable, "-m", "service.cli.main", "index", "build", str(pictures),
            "--out", str(out / "x.index"), "--model", f"local-dir:{model / 'open_clip'}",
            "--precision", precision, "--batch-size", BATCH,
        ]  # fmt: skip

    def inference(pictures: Path, out: Path) -> list[str]:
        return [
            str(peers / "clip-retrieval/bin/python"), "-c",
            "from clip_retrieval.cli import main; main()", "inference",
            "--input_dataset", str(pictures), "--output_folder", str(out / "embeddings"),
            "--enable_text", "False", "--batch_size", BATCH,
            "--num_prepro_workers", str(os.cpu_count()),
            "--clip_model", f"open_clip:ViT-B-32-256/{weights.resolve()}",
        ]  # fmt: skip

    def rclip(_pictures: Path, _out: Path) -> list[str]:
        python = str((peers / "rclip/bin/python").absolute())
        return [python, "-m", "rclip", "--indexing-batch-size", BATCH, "a photo"]

    def link(out: Path) -> None:
        for part in (model / "rclip").resolve().iterdir():
            (out / part.name).symlink_to(part)

    return [
        System("diptych", "auto", ours("auto"), _ours),
        System("diptych fp32", "fp32", ours("fp32"), _ours),
        System("clip-retrieval", "fp32", inference, _theirs),
        System("rclip", "fp32", rclip, _rclips, lambda out: {"RCLIP_DATADIR": str(out)}, link),
    ]


def _ours(out: Path) -> Vectors:
    from indexer.format.version import open_version

    opened = open_version(out / "x.index")
    found = {}
    for segment in opened.segments:
        items = segment.items.items(range(segment.entry.rows))
        found |= {Path(items[row].id).name: segment.vectors_ND[row] for row in items}
    opened.close()
    return found


def _theirs(out: Path) -> Vectors:
    import pyarrow.parquet

    folder = out / "embeddings"
    found = {}
    for number, path in enumerate(sorted((folder / "img_emb").glob("*.npy"))):
        table = pyarrow.parquet.read_table(sorted((folder / "metadata").glob("*.parquet"))[number])
        names = table.column("image_path").to_pylist()
        found |= {
            Path(name).stem + ".jpg": row for name, row in zip(names, np.load(path), strict=True)
        }
    return found


def _rclips(out: Path) -> Vectors:
    with sqlite3.connect(out / "db.sqlite3") as base:
        rows = base.execute("SELECT filepath, vector FROM images").fetchall()
    return {Path(path).name: np.frombuffer(vector, np.float32) for path, vector in rows}


def run(system: System, pictures: Path, out: Path) -> tuple[float, float]:
    """Seconds and the peak in MiB."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    system.prepare(out)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    if system.name.startswith("diptych"):
        environment["PYTHONPATH"] = str(ROOT)
    else:
        environment.pop("PYTHONPATH", None)
    log = out.with_suffix(".log")
    began, peak = time.perf_counter(), 0
    with log.open("w") as told:
        process = psutil.Popen(
            system.command(pictures, out), stdout=told, stderr=told, cwd=pictures,
            env={**environment, **system.environment(out)},
        )  # fmt: skip
        while process.poll() is None:
            peak = max(peak, _memory(process))
            time.sleep(0.1)
    took = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(
            f"{system.name} ended with {process.returncode}:\n{log.read_text()[-3000:]}"
        )
    return took, peak / 2**20


def _memory(process: psutil.Process) -> int:
    total = 0
    for one in [process, *_children(process)]:
        try:
            rollup = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
        except OSError:
            continue  # ended meanwhile
        total += sum(1024 * int(s.split()[1]) for s in rollup.splitlines() if s.startswith("Pss:"))
    return total


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def measure(options: Any, work: Path) -> dict[str, Any]:
    all_, few = work / "all", work / "few"
    make(all_, options.count)
    small = max(options.count // 10, 16)
    make(few, small)
    runs: dict[str, dict[str, list[float]]] = {}
    vectors: dict[str, Vectors] = {}
    chosen = [one for one in systems(options.peers) if one.name in options.only] or systems(
        options.peers
    )
    for _ in range(options.rounds):
        for system in chosen:
            out = work / "out" / system.name.replace(" ", "-")
            start, _ = run(system, few, out)
            took, peak = run(system, all_, out)
            vectors[system.name] = system.read(out)
            found = runs.setdefault(system.name, {"took": [], "start": [], "peak": []})
            for key, value in (("took", took), ("start", start), ("peak", peak)):
                found[key].append(value)
            print(f"{system.name:16} {took:6.1f} s, {peak:6.0f} MiB", file=sys.stderr)
    report: dict[str, Any] = {}
    base = vectors[chosen[0].name]
    for system in chosen:
        found = runs[system.name]
        took, start = statistics.median(found["took"]), statistics.median(found["start"])
        mine = vectors[system.name]
        cosines = [_cosine(mine[name], row) for name, row in base.items() if name in mine]
        report[system.name] = {
            "precision": system.precision,
            "images": len(mine),
            "images_s": round(options.count / took, 2),
            "steady_images_s": round((options.count - small) / max(took - start, 1e-3), 2),
            "peak_mib": round(max(found["peak"])),
            "cosine_to_ours": [
                round(min(cosines, default=0), 4),
                round(float(np.mean(cosines)), 4),
            ],
        }
    return report


def _cosine(one: Any, other: Any) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], help="names; default all")
    parser.add_argument("--work", type=Path, help="keep pictures and indexes here")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.peers = options.peers.absolute()
    with tempfile.TemporaryDirectory() as folder:
        work = (options.work or Path(folder)).absolute()
        report = {
            "benchmark": "embed_peers", "pictures": options.count, "rounds": options.rounds,
            "cpu": cpu(), "cores": os.cpu_count(), "python": platform.python_version(),
            "load": os.getloadavg()[0],
            "versions": {
                **{name: version(name) for name in ("torch", "open_clip_torch", "pillow")},
                **{name: _pinned(name) for name in ("clip-retrieval", "rclip")},
            },
            "systems": measure(options, work),
        }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


def _pinned(name: str) -> str:
    lines = (ROOT / "tests" / "bench" / "peers" / f"{name}.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))


if __name__ == "__main__":
    main()
