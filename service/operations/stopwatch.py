"""Milliseconds per stage of one request, on the monotonic clock."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from models.encoder import PreparedImage


class Stopwatch:
    """`lap` names the stage that just ended; `stop` adds `total` and gives all of them."""

    def __init__(self) -> None:
        self._start = self._last = perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, stage: str, *, waited: float = 0.0) -> None:
        """End a stage, of which `waited` seconds passed in a queue and are counted as `queue`.

        A stage that ends twice counts both times.
        """
        now = perf_counter()
        if waited:
            self._add("queue", waited)
        self._add(stage, now - self._last - waited)
        self._last = now

    def stop(self) -> dict[str, float]:
        return {**self._laps, "total": round((perf_counter() - self._start) * 1000, 3)}

    def _add(self, stage: str, seconds: float) -> None:
        self._laps[stage] = round(self._laps.get(stage, 0.0) + seconds * 1000, 3)


class Prepare(Protocol):
    """A picture's bytes -> the encoder's input; what decoding took is put down on the watch."""

    def __call__(self, data: bytes, watch: Stopwatch | None = None, /) -> PreparedImage: ...
