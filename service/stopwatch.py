"""Milliseconds per stage of one request, on the monotonic clock."""

from __future__ import annotations

from time import perf_counter


class Stopwatch:
    """`lap` names the stage that just ended; `stop` adds `total` and gives all of them."""

    def __init__(self) -> None:
        self._start = self._last = perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = perf_counter()
        self._laps[stage] = round((now - self._last) * 1000, 3)
        self._last = now

    def stop(self) -> dict[str, float]:
        return {**self._laps, "total": round((perf_counter() - self._start) * 1000, 3)}
