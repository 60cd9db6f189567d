"""What HTTP adds to a text search, and what 32 callers at once gain over one.

Starts `diptych serve` over an index as a process of its own and asks it over keep-alive connections
on the loopback. The bare figure, tokenise + embed + search, is taken in this process with the same
pair and the same texts, in turns with the service so that a noisy machine is unfair to both.

    python tests/bench/serve_latency.py --index photos.index [--texts captions.txt]

The client is one thread over raw sockets: some 30 microseconds a request, part of the figure.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
K = 10


class Caller:
    """One keep-alive connection that always has one request under way."""

    def __init__(self, address: tuple[str, int], bodies: Iterator[bytes]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._bodies = bodies
        self._received = b""
        self._began = 0.0
        self.server_timing = ""

    def send(self) -> None:
        body = next(self._bodies)
        head = (
            "POST /v1/search/text-to-image HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._began = time.perf_counter()
        self.socket.sendall(head.encode() + body)

    def receive(self) -> float | None:
        """Seconds the answer took, once all of it is here."""
        self._received += self.socket.recv(1 << 18)
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return None
        lines = head.decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        if len(rest) < int(headers["content-length"]):
            return None
        took = time.perf_counter() - self._began
        assert lines[0].split()[1] == "200", self._received[:2000]
        self.server_timing = headers.get("server-timing", "")
        self._received = b""
        return took


def closed_loop(callers: list[Caller], seconds: float) -> tuple[list[float], float]:
    """Every caller asks again as soon as it is answered -> (seconds each, answers a second)."""
    took: list[float] = []
    with selectors.DefaultSelector() as selector:
        for caller in callers:
            selector.register(caller.socket, selectors.EVENT_READ, caller)
            caller.send()
        began = time.perf_counter()
        while len(selector.get_map()):
            for key, _ in selector.select():
                caller = key.data
                one = caller.receive()
                if one is None:
                    continue
                took.append(one)
                if time.perf_counter() - began < seconds:
                    caller.send()
                else:
                    selector.unregister(caller.socket)
        return took, len(took) / (time.perf_counter() - began)


@contextmanager
def service(index: Path, threads: int) -> Iterator[tuple[str, int]]:
    command = [sys.executable, "-m", "service.cli.main", "serve", "--index", str(index)]
    command += ["--port", "0", "--json", "--device", "cpu", "--threads", str(threads)]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        document = ""
        assert process.stdout is not None
        while not document.endswith("}\n"):
            line = process.stdout.readline()
            assert line, "the service did not start"
            document += line
        url = urlsplit(json.loads(document)["url"])
        assert url.hostname is not None
        assert url.port is not None
        yield url.hostname, url.port
    finally:
        process.terminate()
        process.wait(30)


def quantiles(took: list[float]) -> dict[str, float]:
    ordered = sorted(took)
    return {
        f"p{q}_ms": round(ordered[min(len(ordered) - 1, len(ordered) * q // 100)] * 1000, 3)
        for q in (50, 95, 99)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--texts", type=Path, help="one query a line; else captions of the index")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    from indexer.search.options import SearchOptions
    from indexer.search.snapshot import open_snapshot
    from models.encoders.registry import load_encoder

    snapshot = open_snapshot(arguments.index, fingerprint=None)
    encoder = load_encoder(snapshot.fingerprint.model, device="cpu", threads=arguments.threads)
    if arguments.texts:
        texts = arguments.texts.read_text(encoding="utf-8").splitlines()
    else:
        some = encoder.embed_texts([encoder.prepare_text("a photo")])
        texts = [
            hit.item.text or ""
            for hit in snapshot.search(some, SearchOptions(k=500, target="texts"))[0]
        ]
    bodies = cycle([json.dumps({"text": text, "k": K}).encode() for text in texts])
    stages: dict[str, list[float]] = {"encode": [], "search": []}

    def bare(seconds: float) -> list[float]:
        took = []
        end = time.perf_counter() + seconds
        for text in cycle(texts):
            began = time.perf_counter()
            vector = encoder.embed_texts([encoder.prepare_text(text)])
            middle = time.perf_counter()
            snapshot.search(vector, SearchOptions(k=K))
            now = time.perf_counter()
            stages["encode"].append(middle - began)
            stages["search"].append(now - middle)
            took.append(now - began)
            if now > end:
                return took
        raise AssertionError

    rounds = []
    with service(arguments.index, arguments.threads) as address:
        callers = [Caller(address, bodies) for _ in range(arguments.callers)]
        closed_loop(callers, 1.0)  # both sides warm
        bare(0.5)
        for _ in range(arguments.rounds):
            plain = bare(arguments.seconds)
            one, one_rate = closed_loop(callers[:1], arguments.seconds)
            timing = callers[0].server_timing
            many, many_rate = closed_loop(callers, arguments.seconds)
            rounds.append(
                {
                    "bare": quantiles(plain),
                    "one": {**quantiles(one), "rate": round(one_rate, 1)},
                    "many": {**quantiles(many), "rate": round(many_rate, 1)},
                    "added_p50_ms": round(
                        (statistics.median(one) - statistics.median(plain)) * 1000, 3
                    ),
                    "gain": round(many_rate / one_rate, 2),
                    "server_timing": timing,
                }
            )
            print(json.dumps(rounds[-1]), file=sys.stderr)
    middle = {
        name: round(statistics.median(one[name] for one in rounds), 3)  # type: ignore[type-var]
        for name in ("added_p50_ms", "gain")
    }
    result = {
        "bench": "serve_latency",
        **middle,
        "targets": {"added_p50_ms": 1.0, "gain": 3.0},
        "bare_ms": {
            name: round(statistics.median(values) * 1000, 3) for name, values in stages.items()
        },
        "callers": arguments.callers,
        "k": K,
        "pictures": snapshot.info().images,
        "model": snapshot.fingerprint.model,
        "rounds": rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {
            name: version(name) for name in ("diptych", "numpy", "torch", "fastapi", "uvicorn")
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
