"""Where the milliseconds of a request go: a stopwatch for the engine, `Server-Timing` for HTTP.

    Server-Timing: queue;dur=0.1, prepare;dur=0.03, embed;dur=2.6, search;dur=0.3, total;dur=3.6

Stages (W3C Server Timing): `queue` waiting for a tower or the index, `decode` a picture, `prepare`
it (or a text) for the model, `embed`, `search` the index, `meta` what is told about the hits; of
classification also `classes` (of labels not seen before), `judge` and, where asked, `explain`; of
explanations `explain` and `render`. `total` is the whole request from its head on, so that what the
stages leave is HTTP's: parsing, admission, the answer's JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from starlette.types import Scope

    from models.encoder import PreparedImage

HEADER: Final = "Server-Timing"
_STAGES: Final = "stages_ms"


class Stopwatch:
    """Milliseconds by stage of one request, on the monotonic clock.

    `lap` names the stage that just ended; `stop` adds `total` and gives all of them.
    """

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


def report(scope: Scope, timings_ms: Mapping[str, float]) -> None:
    """Leave the stages of an answer with its request, and count them.

    `RequestFrame` tells them in the header, the log line and the span.
    """
    # here, so that the command line, which has the stopwatch too, loads no metrics
    from service.operations import metrics

    metrics.observe_stages(timings_ms)
    scope["state"][_STAGES] = {
        stage: took_ms for stage, took_ms in timings_ms.items() if stage != "total"
    }


def stages_of(scope: Scope) -> Mapping[str, float]:
    """What `report` left."""
    found: Mapping[str, float] = scope["state"].get(_STAGES, {})
    return found


def header(scope: Scope, began: float | None) -> str:
    """The header's value; with the total since `began` (of `perf_counter`) where that is told."""
    stages = [f"{stage};dur={took_ms:g}" for stage, took_ms in stages_of(scope).items()]
    if began is not None:
        stages.append(f"total;dur={(perf_counter() - began) * 1000:.3f}")
    return ", ".join(stages)
