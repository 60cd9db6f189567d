"""Diptych beside infinity and clip-retrieval: one model, one load, one run.

    tests/bench/peers_setup.sh FOLDER
    python tests/bench/serve_peers.py --peers FOLDER [--seconds 5] [--keep WORK]

Each server runs alone, with one thread on one core; this process sends from another core. Texts are
captions of 8 to 14 words, none sent twice to a server. A closed loop of 1, 8 and 32 callers gives
throughput; the *bar* is the peer's p99 at the concurrency of its best throughput. Then Diptych gets
an open-loop ladder of rates (latency counted from when a request was due): `ratio` is the highest
rate whose p99 stays at or under the bar, over the peer's best throughput. Diptych runs as it comes
(`auto`: bf16 where the processor multiplies it) and in fp32, as both peers do on a CPU.

First every server embeds or ranks the same text, so that it is known to be the same model and the
same vectors. The last line is JSON.

Shapes: N rows, D embedding.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "bench")]

from openloop import Load, Outcome, percentiles  # noqa: E402
from serve import cpu  # noqa: E402

K = 10
LADDER = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of Diptych's own best throughput
WORDS = [
    ["a photo of", "a picture of", "a close view of", "somebody looking at", "a painting of"],
    ["a small", "an old", "a bright red", "a very large", "the last", "one more", "a wet"],
    ["dog", "bicycle", "fishing boat", "kitchen table", "train", "cat", "street lamp", "horse"],
    ["that stands near", "in front of", "far away from", "lying under", "on top of", "beside"],
    ["a stone bridge", "the harbour", "two houses", "a green hill", "the market", "a river"],
    ["in the rain", "at night", "on a sunny day in winter", "early in the morning", "in fog"],
]
Request = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    command: list[str]
    ready: str
    environment: dict[str, str]
    precision: str
    port: int


def captions() -> Iterator[str]:
    texts = [" ".join(parts) for parts in itertools.product(*WORDS)]
    random.Random(0).shuffle(texts)  # an order, not a secret
    for number in itertools.count():
        yield from (text if number == 0 else f"{text} {number}" for text in texts)


def post(path: str, document: dict[str, Any]) -> bytes:
    body = json.dumps(document).encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def embed(path: str, **more: str) -> Request:
    return lambda text: post(path, {"input": [text], **more})


def knn(text: str) -> bytes:
    document = {"text": text, "modality": "image", "num_images": K, "indice_name": "vectors"}
    return post("/knn-service", document)


def search(text: str) -> bytes:
    return post("/v1/search/text-to-image", {"text": text, "k": K})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(server: Server, core: int, log: Path) -> Iterator[None]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with log.open("w") as out:
        process = subprocess.Popen(
            server.command, stdout=out, stderr=out, cwd=log.parent, start_new_session=True,
            env={**os.environ, **threads, **server.environment},
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )  # fmt: skip
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{server.port}{server.ready}", timeout=5)
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(
                        f"{server.name} did not start:\n{log.read_text()[-3000:]}"
                    ) from None
                time.sleep(0.3)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def closed(port: int, request: Request, texts: Iterator[str], callers: int, seconds: float) -> Any:
    async def run() -> tuple[list[Outcome], float]:
        load = Load(port)
        began = time.perf_counter()
        await load.loop(callers, seconds, lambda _: request(next(texts)))
        took = time.perf_counter() - began
        load.close()
        return load.outcomes, took

    return figures(*asyncio.run(run()))


def at_rate(port: int, request: Request, texts: Iterator[str], rate: float, seconds: float) -> Any:
    async def run() -> tuple[list[Outcome], float]:
        load = Load(port)
        began = time.perf_counter()
        await load.run(rate, seconds, lambda _: request(next(texts)))
        took = time.perf_counter() - began
        load.close()
        return load.outcomes, took

    return {"rate": round(rate, 1), **figures(*asyncio.run(run()))}


def figures(outcomes: list[Outcome], took_s: float) -> dict[str, Any]:
    good = [one.took_s * 1000 for one in outcomes if one.status == 200]
    return {
        "per_s": round(len(good) / took_s, 1),
        "failed": len(outcomes) - len(good),
        **{name: value for name, value in percentiles(good).items() if name != "p95"},
    }


def answer(port: int, request: Request, text: str) -> Any:
    async def run() -> bytes:
        load = Load(port)
        await load.run(1000, 0.001, lambda _: request(text))
        load.close()
        [one] = load.outcomes
        assert one.status == 200, one
        return one.body

    return json.loads(asyncio.run(run()))


def make_vectors(work: Path, rows: int, dim: int = 512) -> Path:
    """Random unit vectors in clip-retrieval's layout, each with a path and a caption."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = work / "embeddings"
    if source.exists():
        return source
    for name in ("img_emb", "metadata"):
        (source / name).mkdir(parents=True)
    rows_ND = np.random.default_rng(0).standard_normal((rows, dim), dtype=np.float32)
    rows_ND /= np.sqrt((rows_ND**2).sum(axis=1, keepdims=True))
    np.save(source / "img_emb" / "img_emb_0.npy", rows_ND.astype(np.float16))
    names = [f"/photos/{number:06}.jpg" for number in range(rows)]
    words = list(itertools.islice(captions(), rows))
    pq.write_table(
        pa.table({"image_path": names, "caption": words}),
        source / "metadata" / "metadata_0.parquet",
    )
    return source


def make_indexes(work: Path, peers: Path, rows: int) -> None:
    source = make_vectors(work, rows)
    ours = {**os.environ, "PYTHONPATH": str(ROOT)}
    if not (work / "vectors.index").exists():
        subprocess.run(
            [sys.executable, "-m", "service.cli.main", "index", "import", str(source), "--out",
             str(work / "vectors.index"), "--model", f"local-dir:{peers}/model/open_clip",
             "--threads", "1"],
            check=True, env=ours, stdout=sys.stderr,
        )  # fmt: skip
    theirs = work / "clip-retrieval-index"
    if not (work / "indices.json").exists():
        theirs.mkdir(exist_ok=True)
        subprocess.run(
            [str(peers / "clip-retrieval/bin/clip-retrieval"), "index", str(source), str(theirs),
             "--nb_cores", "1"],
            check=True, stdout=sys.stderr,
        )  # fmt: skip
        (work / "indices.json").write_text(json.dumps({"vectors": str(theirs)}))


def servers(peers: Path, work: Path) -> dict[str, Server]:
    hf = str((peers / "model/hf").resolve())
    port = free_port()
    infinity = [str(peers / "infinity/bin/infinity_emb"), "v2", "--model-id", hf, "--port",
                str(port), "--host", "127.0.0.1", "--device", "cpu", "--engine", "torch",
                "--no-bettertransformer", "--no-compile", "--no-vector-disk-cache",
                "--served-model-name", "clip", "--log-level", "warning"]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    found = {"infinity": Server("infinity", infinity, "/health", offline, "fp32", port)}
    port = free_port()
    back = [str(peers / "clip-retrieval/bin/clip-retrieval"), "back", "--clip_model",
            f"hf_clip:{hf}", "--use_jit", "False", "--enable_mclip_option", "False",
            "--provide_aesthetic_embeddings", "False", "--port", str(port),
            "--indices-paths", str(work / "indices.json")]  # fmt: skip
    found["clip-retrieval"] = Server("clip-retrieval", back, "/indices-list", offline, "fp32", port)
    for precision in ("auto", "fp32"):
        port = free_port()
        ours = [sys.executable, "-m", "service.cli.main", "serve", "--index",
                f"vectors={work}/vectors.index", "--port", str(port), "--device", "cpu",
                "--threads", "1", "--precision", precision, "--label-sets", str(work / "sets"),
                "--log-level", "warning"]  # fmt: skip
        name = f"diptych {precision}"
        environment = {"PYTHONPATH": str(ROOT)}
        found[name] = Server(name, ours, "/readyz", environment, precision, port)
    return found


PAIRS: dict[str, tuple[str, Request, dict[str, Request]]] = {
    "embeddings": (
        "infinity",
        embed("/embeddings", model="clip"),
        {"/v1/embeddings": embed("/v1/embeddings")},
    ),
    "search": (
        "clip-retrieval",
        knn,
        {"/v1/search/text-to-image": search, "/knn-service": knn},
    ),
}


def measure_peer(server: Server, request: Request, seconds: float) -> dict[str, Any]:
    texts = captions()
    closed(server.port, request, texts, 8, min(2.0, seconds))  # warm
    loops = {
        str(callers): closed(server.port, request, texts, callers, seconds)
        for callers in (1, 8, 32)
    }
    best = max(loops.values(), key=lambda one: float(one["per_s"]))
    return {"callers": loops, "best_per_s": best["per_s"], "p99_at_best_ms": best["p99"]}


def measure_ours(
    server: Server, request: Request, seconds: float, peer: dict[str, Any]
) -> dict[str, Any]:
    found = measure_peer(server, request, seconds)
    texts = itertools.islice(captions(), 5000, None)
    rungs, highest = [], 0.0
    for share in LADDER:
        rung = at_rate(server.port, request, texts, max(1.0, share * found["best_per_s"]), seconds)
        rungs.append(rung)
        if not rung["failed"] and rung.get("p99", 1e9) <= peer["p99_at_best_ms"]:
            highest = min(rung["rate"], rung["per_s"])
            break
    best = found["best_per_s"] / peer["best_per_s"]
    return {**found, "open_loop": rungs, "rate_at_peers_p99": highest,
            "ratio": round(highest / peer["best_per_s"], 2),
            "ratio_of_best": round(best, 2)}  # fmt: skip


def embedding_of(port: int, request: Request, text: str) -> Any:
    vector_D = np.array(answer(port, request, text)["data"][0]["embedding"])
    return vector_D / np.sqrt((vector_D**2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, required=True, help="made by peers_setup.sh")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--keep", type=Path, help="where the indexes are made, and found again")
    parser.add_argument("--only", choices=[*PAIRS])
    parser.add_argument("--prepare", action="store_true", help="make the indexes and stop")
    arguments = parser.parse_args()
    peers = arguments.peers.absolute()  # not resolved: a virtual environment may be a link
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two cores are needed, one for the server and one for its load")
    with tempfile.TemporaryDirectory() as directory:
        work = (arguments.keep or Path(directory)).absolute()
        work.mkdir(exist_ok=True)
        make_indexes(work, peers, arguments.rows)
        if arguments.prepare:
            return
        os.sched_setaffinity(0, {cores[1]})
        known = servers(peers, work)
        results: dict[str, Any] = {}
        vectors: dict[str, Any] = {}
        ranks: dict[str, list[str]] = {}
        one, other = "a very large horse beside the harbour at night", "one more cat in fog"
        for task, (name, request, ours) in PAIRS.items():
            if arguments.only not in (None, task):
                continue
            peer = known[name]
            with running(peer, cores[0], work / f"{name}.log"):
                if task == "embeddings":
                    vectors[name] = embedding_of(peer.port, request, one)
                    vectors["another text"] = embedding_of(peer.port, request, other)
                else:
                    hits = answer(peer.port, request, one)
                    ranks[name] = [hit["caption"] for hit in hits]
                theirs = measure_peer(peer, request, arguments.seconds)
            print(name, json.dumps(theirs), file=sys.stderr)
            results[task] = {name: {"precision": peer.precision, **theirs}}
            for precision in ("auto", "fp32"):
                server = known[f"diptych {precision}"]
                with running(server, cores[0], work / f"diptych-{precision}.log"):
                    vectors[server.name] = embedding_of(server.port, embed("/v1/embeddings"), one)
                    hits = answer(server.port, knn, one)
                    ranks[server.name] = [hit["caption"] for hit in hits]
                    for path, asked in ours.items():
                        if precision == "fp32" and path == "/knn-service":
                            continue
                        found = measure_ours(server, asked, arguments.seconds, theirs)
                        print(server.name, path, json.dumps(found), file=sys.stderr)
                        results[task][f"{server.name} {path}"] = found
    check: dict[str, Any] = {}
    if "infinity" in vectors:
        check["cosine_to_infinity"] = {
            key: round(float(vector_D @ vectors["infinity"]), 5)
            for key, vector_D in vectors.items()
            if key != "infinity"
        }
    if "clip-retrieval" in ranks:
        check[f"of_clip_retrievals_{K}_hits"] = {
            key: len({*hits} & {*ranks["clip-retrieval"]}) for key, hits in ranks.items()
        }
    print(
        json.dumps(
            {
                "benchmark": "serve_peers",
                "target": {"ratio": 2.0},
                **results,
                "same_model_and_vectors": check,
                "rows": arguments.rows,
                "k": K,
                "seconds": arguments.seconds,
                "server": "one core, one thread; load from another core",
                "cpu": cpu(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "versions": {
                    name: version(name) for name in ("torch", "open_clip_torch", "uvicorn")
                },
                "peers": {"infinity_emb": "0.0.78", "clip-retrieval": "2.45.0"},
            }
        )
    )


if __name__ == "__main__":
    main()
