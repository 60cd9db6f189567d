"""What a service must survive, as functions with sizes: short in the tests, long in the benchmark.

Each starts `diptych serve` as a process of its own, loads it from this one, and returns figures;
whoever calls says what they should be.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from indexes import build, record
from openloop import Load, percentiles, summary
from pacing import paced_server
from stalling import answer, request

MIB = 1 << 20
BASE = 8  # pictures of an index's first version


def small_index(path: Path) -> Path:
    build([record(f"k{number}", "red") for number in range(BASE)], path)
    return path


def search(k: int = 1) -> bytes:
    body = json.dumps({"text": "red", "k": k}).encode()
    return (
        b"POST /v1/search/text-to-image HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    ) + body


def _port(announced: dict[str, Any]) -> int:
    port = urlsplit(announced["url"]).port
    assert port is not None
    return port


def overload(
    path: Path,
    *,
    took: float,
    factor: float,
    seconds: float,
    calm_s: float = 6,
    core: int | None = None,
) -> dict[str, Any]:
    """`factor` times the peak for so long, then half the peak: what was answered, and how."""
    index = small_index(path / "small.index")
    with paced_server(index, path / "log", took, core=core) as (process, announced):
        memory = psutil.Process(process.pid)

        async def run() -> dict[str, Any]:
            first = Load(_port(announced))
            await first.loop(32, max(2.0, seconds / 10), lambda _: search())
            peak = summary(first.outcomes, max(2.0, seconds / 10))["good_per_s"]
            await asyncio.sleep(1)
            before = memory.memory_info().rss
            highest = before
            load = Load(_port(announced))

            async def watch() -> None:
                nonlocal highest
                while True:
                    highest = max(highest, memory.memory_info().rss)
                    await asyncio.sleep(0.5)

            watcher = asyncio.create_task(watch())
            began = time.monotonic()
            await load.run(factor * peak, seconds, lambda _: search())
            busy = time.monotonic() - began
            watcher.cancel()
            after = Load(_port(announced))
            await after.run(peak / 2, calm_s, lambda _: search())
            late = [one.due_s for one in after.outcomes if one.status != 200]
            refused = [one for one in load.outcomes if one.status in (429, 503)]
            for each in (first, load, after):
                each.close()
            during = [one for one in load.outcomes if one.due_s + one.took_s <= seconds]
            return {
                "peak_per_s": peak,
                "offered_per_s": round(factor * peak, 1),
                "seconds": seconds,
                "seconds_until_the_last_answer": round(busy, 2),
                **summary(load.outcomes, seconds),
                "goodput_of_peak": round(summary(during, seconds)["good_per_s"] / peak, 3),
                "retry_after_on_all": all(one.headers.get("retry-after", "").isdigit()
                                          for one in refused),
                "problem_on_all": all(one.headers.get("content-type") == "application/problem+json"
                                      for one in refused),
                "rss_growth_mib": round((highest - before) / MIB, 1),
                "recovered_after_s": round(max(late, default=0.0), 2),
                "after": summary(after.outcomes, calm_s),
            }  # fmt: skip

        return asyncio.run(run())


def swaps(
    path: Path, *, count: int, rate: float, calm_s: float = 5, core: int | None = None
) -> dict[str, Any]:
    """So many new versions while searches go on; each version has one picture more."""
    index = small_index(path / "small.index")
    period = 0.5
    more = ("--poll", "0.1", "--timeout", "10")
    with paced_server(index, path / "log", 0.001, *more, core=core) as (process, announced):
        server = psutil.Process(process.pid)

        async def run() -> dict[str, Any]:
            load = Load(_port(announced))
            quiet = Load(_port(announced))
            await quiet.run(rate, calm_s, lambda _: search(1000))
            files = server.num_fds()

            def commit() -> None:
                for number in range(count):
                    began = time.monotonic()
                    build([record(f"new{number}", "red")], index)
                    time.sleep(max(0.0, period - (time.monotonic() - began)))

            writer = asyncio.create_task(asyncio.to_thread(commit))
            parts = 0
            while not writer.done():
                await load.run(rate, 1, lambda _: search(1000))
                parts += 1
            await writer
            await load.run(rate, 2, lambda _: search(1000))
            torn, versions = 0, set()
            for one in load.outcomes:
                if one.status == 200:
                    document = json.loads(one.body)
                    version = int(one.headers["index-version"])
                    versions.add(version)
                    torn += document["index_version"] != version
                    torn += len(document["hits"]) != BASE + version - 1
            load.close()
            quiet.close()
            return {
                "swaps": count,
                **summary(load.outcomes, parts + 2),
                "before_ms": percentiles([one.took_s * 1000 for one in quiet.outcomes]),
                "versions_seen": len(versions),
                "last_version": max(versions),
                "answers_of_two_versions": torn,
                "files_before": files,
                "files_after": server.num_fds(),
            }

        return asyncio.run(run())


def drain(path: Path, *, in_flight: int, took: float) -> dict[str, Any]:
    """SIGTERM with so many requests under way: every one is answered, then the process ends."""
    index = small_index(path / "small.index")
    more = ("--timeout", "60")
    with paced_server(index, path / "log", took, *more) as (process, announced):

        async def one(ready: asyncio.Event) -> tuple[int, str]:
            reader, writer = await asyncio.open_connection("127.0.0.1", _port(announced))
            await ready.wait()
            writer.write(request())
            try:
                status, headers, _ = await asyncio.wait_for(answer(reader), 60)
                ended = await asyncio.wait_for(reader.read(), 60)
                assert ended == b""
                return status, headers.get("connection", "")
            except (OSError, EOFError, TimeoutError) as error:
                return 0, type(error).__name__
            finally:
                writer.close()

        async def health() -> int:
            reader, writer = await asyncio.open_connection("127.0.0.1", _port(announced))
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            status, _, _ = await asyncio.wait_for(answer(reader), 10)
            writer.close()
            return status

        async def run() -> dict[str, Any]:
            ready = asyncio.Event()
            tasks = [asyncio.create_task(one(ready)) for _ in range(in_flight)]
            await asyncio.sleep(0.2)
            ready.set()
            await asyncio.sleep(0.2)
            done_before = sum(task.done() for task in tasks)
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            await asyncio.sleep(0.25)
            unready = await health()
            ended = await asyncio.gather(*tasks)
            code = await asyncio.to_thread(process.wait, 60)
            return {
                "in_flight": in_flight - done_before,
                "statuses": sorted({status for status, _ in ended}),
                "resets": sum(status == 0 for status, _ in ended),
                "closed_with_the_answer": sum(how == "close" for _, how in ended),
                "readyz_meanwhile": unready,
                "exit_code": code,
                "took_s": round(time.monotonic() - began, 2),
            }

        return asyncio.run(run())


@contextmanager
def _stalled(port: int, count: int, data: bytes) -> Iterator[list[socket.socket]]:
    """Connections that have sent this much and no more."""
    sockets = []
    try:
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", port))
            one.sendall(data)
            sockets.append(one)
        yield sockets
    finally:
        for one in sockets:
            one.close()


def slow(
    path: Path, *, count: int, seconds: float, calm_s: float = 5, core: int | None = None
) -> dict[str, Any]:
    """`count` half heads and as many dripping bodies beside honest callers."""
    index = small_index(path / "small.index")
    with paced_server(index, path / "log", 0.002, core=core) as (_, announced):
        port = _port(announced)

        async def honest(duration: float) -> Load:
            load = Load(port)
            await load.run(20, duration, lambda _: search())
            load.close()
            return load

        async def drip(sockets: list[socket.socket]) -> None:
            while True:
                for one in sockets:
                    try:
                        one.send(b" ")
                    except OSError:  # closed on us, as it should be
                        continue
                await asyncio.sleep(1)

        async def run(heads: list[socket.socket], bodies: list[socket.socket]) -> Load:
            dripping = asyncio.create_task(drip(bodies))
            load = await honest(seconds)
            dripping.cancel()
            return load

        quiet = asyncio.run(honest(calm_s))
        half_head = b"POST /v1/search/text-to-image HTTP/1.1\r\nHost: localhost\r\nX-A: "
        no_body = (
            half_head + b"b\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"
        )
        with _stalled(port, count, half_head) as heads, _stalled(port, count, no_body) as bodies:
            load = asyncio.run(run(heads, bodies))
        return {
            "slow_heads": count,
            "slow_bodies": count,
            **summary(load.outcomes, seconds),
            "before_ms": percentiles([one.took_s * 1000 for one in quiet.outcomes]),
            "honest_failures": sum(one.status != 200 for one in load.outcomes),
        }


def ready(path: Path, index: Path) -> dict[str, Any]:
    """From starting the process to its first answer."""
    began = time.monotonic()
    with paced_server(index, path / "log", 0) as (process, announced):
        announced_s = time.monotonic() - began

        async def first() -> int:
            reader, writer = await asyncio.open_connection("127.0.0.1", _port(announced))
            writer.write(search())
            status, _, _ = await answer(reader)
            writer.close()
            return status

        status = asyncio.run(first())
        return {
            "status": status,
            "announced_s": round(announced_s, 2),
            "answered_s": round(time.monotonic() - began, 2),
            "rss_mib": round(psutil.Process(process.pid).memory_info().rss / MIB, 1),
        }
