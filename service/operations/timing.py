"""The `Server-Timing` header (W3C Server Timing): where the milliseconds of an answer went.

    Server-Timing: queue;dur=0.1, prepare;dur=0.03, embed;dur=2.6, search;dur=0.3, total;dur=3.6

Stages: `queue` waiting for a tower or the index, `decode` a picture, `prepare` it (or a text) for
the model, `embed`, `search` the index, `meta` what is told about the hits; of classification also
`classes` (of labels not seen before), `judge` and, where asked, `explain`; of explanations
`explain` and `render`. `total` is the whole request from its head on, so that what the stages leave
is HTTP's: parsing, admission, the answer's JSON.

Milliseconds per stage of one request, on the monotonic clock.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from models.encoder import PreparedImage
from collections.abc import Mapping

from starlette.responses import Response

from service.operations import metrics


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


HEADER = "Server-Timing"


def report(response: Response, timings_ms: Mapping[str, float]) -> None:
    """Put the stages of an answer into its header, and into the histograms."""
    metrics.observe_stages(timings_ms)
    response.headers[HEADER] = ", ".join(
        f"{stage};dur={took_ms:g}" for stage, took_ms in timings_ms.items() if stage != "total"
    )


def with_total(stages: str | None, began: float) -> str:
    """The header's value once the answer is ready; `began` is of `perf_counter`."""
    total = f"total;dur={(perf_counter() - began) * 1000:.3f}"
    return f"{stages}, {total}" if stages else total
