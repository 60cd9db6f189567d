"""Queries per second at recall@10 >= 0.95: our index against hnswlib, usearch, FAISS and autofaiss.

    bash tests/bench/search_peers.sh ENVS         # once: the peers, each in its environment
    python tests/bench/search.py prepare --data SOURCE... --work DIR [--rows 1000000]
    for each peer: ENV/bin/python tests/bench/search_peers.py LIBRARY ROWS.npy DIR/peers/LIBRARY
    python tests/bench/search.py time --work DIR --peers ENV/bin/python --threads 1   # and 2
    python tests/bench/search.py report --work DIR

`prepare` makes the data (`search_data.py`), an index of them as `diptych index build` would leave
it, and runs `optimize` on it: the structure and its operating point are chosen with other captions
than those that are timed. `time` loads every index in a process of its own, one after the other,
and sweeps each library's search parameter: all queries in one call (`batch`) and one call a query
(`single`). Peers get the cheapest setting that meets the recall on
the very queries that are timed; ours is also timed at the operating point that it recorded without
them. `ours` are rows and cosines from `indexer.search.ranking`, scored again from the stored
rows; what `Snapshot.search` adds by loading items is shown apart. The last line is JSON, kept with
the Pareto plot under `tests/bench/results/`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import search_data
import search_peers

HERE = Path(__file__).resolve().parent
COLOURS = ["ours", "hnswlib", "usearch", "faiss-hnsw", "autofaiss"]
SEGMENT = 131_072
SINGLE = 300


def prepare(arguments: argparse.Namespace) -> None:
    from indexer.format.items import Item, NewRow
    from indexer.maintain.optimize import optimize
    from indexer.store.writer import IndexWriter
    from models.encoder import Fingerprint

    data = load(arguments)
    path = arguments.work / f"{arguments.rows}-{arguments.noise}.index"
    dim = data.rows_ND.shape[1]
    digest = hashlib.sha256(b"bench").hexdigest()
    if not path.exists():
        with IndexWriter(path, Fingerprint("bench", "-", "-", "-", "-", "-", dim)) as writer:
            parts: list[Any] = []
            for modality, rows_ND in (("image", data.rows_ND), ("text", data.captions_CD)):
                for start in range(0, len(rows_ND), SEGMENT):
                    part = writer.new_segment(modality)  # type: ignore[arg-type]
                    for first in range(start, min(start + SEGMENT, len(rows_ND)), 4096):
                        block = rows_ND[first : min(first + 4096, start + SEGMENT)]
                        names = [f"{modality}/{first + i:08}" for i in range(len(block))]
                        part.add(block.astype(np.float32), [
                            NewRow(name, Item(name, modality, f"file:///{name}", None, None,  # type: ignore[arg-type]
                                              None, None, {}, digest))
                            for name in names
                        ])  # fmt: skip
                    parts.append(part)
            writer.commit(parts)
    before = time.process_time()
    report = optimize(path, on_progress=lambda what, done, total: print(what, done, total))
    about = report.to_dict() | {"cpu_s": round(time.process_time() - before, 1), **data.about}
    if report.images.changed:
        (arguments.work / f"{arguments.rows}-{arguments.noise}.json").write_text(json.dumps(about))
    print(json.dumps(about))


def load(arguments: argparse.Namespace) -> search_data.Data:
    arguments.work.mkdir(parents=True, exist_ok=True)
    base = arguments.work / "base.npz"
    if not base.exists():
        search_data.embed_sources(arguments.data, base)
    return search_data.load(
        base, arguments.rows, arguments.queries, arguments.noise, arguments.work / "data"
    )


def one(arguments: argparse.Namespace) -> None:
    """Time one library with one number of threads; a line of JSON."""
    stored = arguments.work / "data" / f"rows-{arguments.rows}-{arguments.noise}-0"
    queries_QD = np.load(arguments.work / "data" / "queries.npy")
    truth_QK = np.load(f"{stored}-truth-{len(queries_QD)}.npy")
    started = time.perf_counter()
    size = None
    if arguments.library == "ours":
        search, efforts, about = ours(arguments)
        size = about.pop("bytes_per_vector")
    else:
        path = arguments.work / "peers" / arguments.library
        search, efforts = search_peers.OPENERS[arguments.library](
            path, queries_QD.shape[1], arguments.threads
        )
        about = json.loads(path.with_name(path.name + ".json").read_text())
        size = about.pop("bytes_per_vector")
        about["package"], about["build_threads"] = about.pop("library"), about.pop("threads")
    about["open_s"] = round(time.perf_counter() - started, 2)
    search(queries_QD[:200], 10, efforts[-1])  # the pages of the file, once
    points: list[dict[str, Any]] = []
    if chosen := about.get("chosen"):  # autofaiss picks an efSearch for a latency, not a recall
        efforts = sorted({*efforts, int(chosen.split("=")[1])})
    for effort in efforts:
        started = time.perf_counter()
        rows_QK = search(queries_QD, 10, effort)
        batch = (time.perf_counter() - started) / len(queries_QD)
        started = time.perf_counter()
        for query_D in queries_QD[:SINGLE]:
            search(query_D[None], 10, effort)
        single = (time.perf_counter() - started) / SINGLE
        recall = search_data.recall(rows_QK, truth_QK)
        points.append({"effort": effort, "recall": round(recall, 4),
                       "batch_qps": round(1 / batch), "single_qps": round(1 / single)})  # fmt: skip
        if recall > 0.985 and not chosen:
            break
    resident = {
        line.split()[0].rstrip(":"): int(line.split()[1]) >> 10
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(("VmRSS", "RssAnon", "RssFile"))
    }
    print(json.dumps({"library": arguments.library, "threads": arguments.threads,
                      "bytes_per_vector": size, **about, "resident_mib": resident,
                      "points": points}))  # fmt: skip


def ours(arguments: argparse.Namespace) -> tuple[search_peers.Search, list[int], dict[str, Any]]:
    import faiss

    from indexer.search.options import SearchOptions
    from indexer.search.ranking import candidates
    from indexer.search.snapshot import open_snapshot

    faiss.omp_set_num_threads(arguments.threads)
    snapshot = open_snapshot(
        arguments.work / f"{arguments.rows}-{arguments.noise}.index", fingerprint=None
    )
    [part] = snapshot.searcher.segments["image"]
    assert part.ann is not None
    entry = part.segment.entry.ann
    assert entry is not None
    # rows of the merged segment are in the order of the data
    vectors_ND = part.segment.vectors_ND

    def search(queries_QD: Any, k: int, effort: int) -> Any:
        # the bench sweeps both of our parameters as one number: effort, and refine below a comma
        scan = part.ann.at(effort // 100)  # type: ignore[union-attr]
        scan._refine = effort % 100
        found = candidates([scan], [vectors_ND], queries_QD, k)
        return np.stack([one.rows[np.argsort(-one.scores, kind="stable")[:k]] for one in found])

    point = entry.operating
    sweep = {
        "ivf": [
            (effort, refine) for effort in (16, 24, 28, 32, 36, 40, 48, 64) for refine in (6, 8, 16)
        ],
        "hnsw": [(effort, 1) for effort in (16, 24, 32, 48, 64, 96, 128, 192, 256)],
    }[entry.structure]
    sweep = sorted({*sweep, (point.effort, point.refine)})
    report = json.loads((arguments.work / f"{arguments.rows}-{arguments.noise}.json").read_text())
    queries_QD = np.load(arguments.work / "data" / "queries.npy")[:200]
    snapshot.search(queries_QD[:8], SearchOptions(k=10))
    started = time.perf_counter()
    for query_D in queries_QD:
        snapshot.search(query_D[None], SearchOptions(k=10))
    whole = (time.perf_counter() - started) / len(queries_QD)
    about = {
        "recipe": entry.recipe,
        "refine": point.refine,
        "recorded": {"effort": point.effort, "recall": point.recall, "queries": point.queries},
        "build_wall_s": round(report["images"]["build_seconds"], 1),
        "optimize_cpu_s": report["cpu_s"],
        "bytes_per_vector": round(point.bytes_per_vector, 1),
        "snapshot_search_ms": round(whole * 1e3, 3),
    }
    return search, [100 * effort + refine for effort, refine in sweep], about


def timing(arguments: argparse.Namespace) -> None:
    """Time some libraries, each in a process of its own; kept until `report`."""
    data = load(arguments)
    np.save(arguments.work / "data" / "queries.npy", data.queries_QD)
    (arguments.work / "timed").mkdir(exist_ok=True)
    for library in arguments.libraries:
        python = arguments.peers if library in ("hnswlib", "usearch") else sys.executable
        command = [python, __file__, "one", "--library", library,
                   "--threads", str(arguments.threads), "--work", str(arguments.work),
                   "--rows", str(arguments.rows), "--noise", arguments.noise]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
        answer = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
        result = json.loads(answer.stdout.splitlines()[-1])
        result["at_recall"] = best_at(result["points"], arguments.recall)
        result["timed"] = time.strftime("%H:%M")
        print(arguments.threads, library, result["at_recall"], file=sys.stderr)
        name = f"{arguments.rows}-{arguments.noise}-{library}-{arguments.threads}.json"
        (arguments.work / "timed" / name).write_text(json.dumps(result))


def report(arguments: argparse.Namespace) -> None:
    """Everything timed so far, as JSON and as a plot."""
    data = load(arguments)
    found = sorted((arguments.work / "timed").glob(f"{arguments.rows}-{arguments.noise}-*.json"))
    results = [json.loads(path.read_text()) for path in found]
    results.sort(key=lambda one: (one["threads"], COLOURS.index(one["library"])))
    summary = {
        "benchmark": "search",
        "rows": arguments.rows,
        "dim": data.rows_ND.shape[1],
        "queries": len(data.queries_QD),
        "recall_wanted": arguments.recall,
        **data.about,
        "results": results,
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    out = HERE / "results"
    name = f"search-{arguments.rows}-{arguments.noise}"
    (out / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    plot(results, arguments.rows, out / f"{name}.png")
    print(json.dumps(summary))


def best_at(points: list[dict[str, Any]], recall: float) -> dict[str, Any] | None:
    """The fastest point, by its batch, that meets the recall."""
    meeting = [point for point in points if point["recall"] >= recall]
    return max(meeting, key=lambda point: point["batch_qps"], default=None)


def plot(results: list[dict[str, Any]], rows: int, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), sharey=True)
    for axis, kind in zip(axes, ("batch_qps", "single_qps"), strict=True):
        for result in results:
            points: list[dict[str, Any]] = []
            for point in sorted(result["points"], key=lambda one: (-one["recall"], -one[kind])):
                if not points or point[kind] > points[-1][kind]:
                    points.append(point)
            label = f"{result['library']} ({result['bytes_per_vector']:.0f} B/vector)"
            style = "-o" if result["threads"] == 1 else "--s"
            axis.plot(
                [point["recall"] for point in points],
                [point[kind] for point in points],
                style, markersize=3, color=f"C{COLOURS.index(result['library'])}",
                label=label if result["threads"] == 1 else None,
            )  # fmt: skip
        axis.axvline(0.95, color="grey", linewidth=0.8)
        axis.set(yscale="log", xlim=(0.8, 1.0), xlabel="recall@10 of texts asking for pictures",
                 title=f"{kind.split('_')[0]}, {rows:,} rows")  # fmt: skip
    axes[0].set_ylabel("queries per second (solid: one thread, dashed: two)")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=["prepare", "time", "one", "report"])
    parser.add_argument("--data", nargs="*", default=[])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--noise", choices=["neighbours", "isotropic"], default="neighbours")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--library")
    parser.add_argument("--libraries", nargs="*", default=COLOURS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", default=sys.executable)
    arguments = parser.parse_args()
    {"prepare": prepare, "time": timing, "one": one, "report": report}[arguments.stage](arguments)


if __name__ == "__main__":
    main()
