"""The `Server-Timing` header (W3C Server Timing): where the milliseconds of an answer went.

    Server-Timing: queue;dur=0.1, prepare;dur=0.03, embed;dur=2.6, search;dur=0.3, total;dur=3.6

Stages: `queue` waiting for a tower or the index, `decode` a picture, `prepare` it (or a text) for
the model, `embed`, `search` the index, `meta` what is told about the hits; of classification also
`classes` (of labels not seen before), `judge` and, where asked, `explain`; of explanations
`explain` and `render`. `total` is the whole request from its head on, so that what the stages leave
is HTTP's: parsing, admission, the answer's JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

from starlette.responses import Response

from service.operations import metrics

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
