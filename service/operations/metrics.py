"""Every figure the service reports about itself, in one Prometheus registry.

Whoever has something to count imports it from here; only `service/http/metrics_port.py` reads it
out, on a port of its own. Labels are our own words (route templates, towers, index names, reasons),
never a caller's text. Counters belong to the process: tests compare before and after.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.process_collector import ProcessCollector

# twice the series, and no dashboard of ours reads them
disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)  # process_resident_memory_bytes, process_open_fds, ...

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128)

# -- requests ---------------------------------------------------------------------------------

REQUESTS = Counter(
    "diptych_requests",
    "Requests answered.",
    ("route", "method", "status"),
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "diptych_request_seconds",
    "From the head of a request to the end of its answer.",
    ("route",),
    buckets=_SECONDS,
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "diptych_stage_seconds",
    "Time in one stage of a request: wait, prepare, decode, embed, search, ...",
    ("stage",),
    buckets=_SECONDS,
    registry=REGISTRY,
)

# -- admission --------------------------------------------------------------------------------

REJECTED = Counter(
    "diptych_rejected",
    "Requests and connections refused to protect the others, by reason.",
    ("reason",),
    registry=REGISTRY,
)
IN_FLIGHT = Gauge(
    "diptych_in_flight",
    "Requests being answered or waiting, by lane.",
    ("lane",),
    registry=REGISTRY,
)
QUEUED_COST = Gauge(
    "diptych_queued_cost", "Cost of the requests in flight, by lane.", ("lane",), registry=REGISTRY
)
COST_SECONDS = Gauge(
    "diptych_cost_seconds",
    "Moving average of seconds per unit of cost: what admission estimates waits with.",
    ("lane",),
    registry=REGISTRY,
)
BODY_BYTES = Gauge("diptych_body_bytes", "Bytes of request bodies in memory.", registry=REGISTRY)
CONNECTIONS = Gauge("diptych_connections", "Open connections.", registry=REGISTRY)
CONNECTIONS_CLOSED = Counter(
    "diptych_connections_closed",
    "Connections closed on a client: head-timeout, write-timeout, evicted.",
    ("reason",),
    registry=REGISTRY,
)

# -- batching and decoding --------------------------------------------------------------------

QUEUE_DEPTH = Gauge(
    "diptych_queue_depth", "Items waiting for a tower.", ("tower",), registry=REGISTRY
)
BATCH_SIZE = Histogram(
    "diptych_batch_size",
    "Items per call of a tower.",
    ("tower",),
    buckets=_ITEMS,
    registry=REGISTRY,
)
SKIPPED = Counter(
    "diptych_skipped",
    "Queued items never started, because their time had passed or their caller had gone.",
    ("tower",),
    registry=REGISTRY,
)
DECODE_RESTARTS = Counter(
    "diptych_decode_worker_restarts",
    "Picture decoding processes replaced, by reason.",
    ("reason",),
    registry=REGISTRY,
)

# -- indexes ----------------------------------------------------------------------------------

INDEX_VERSION = Gauge(
    "diptych_index_version", "Version of the index that answers.", ("index",), registry=REGISTRY
)
INDEX_SWAPS = Counter(
    "diptych_index_swaps",
    "New index versions taken into use (ok) or refused (refused).",
    ("index", "outcome"),
    registry=REGISTRY,
)
READY = Gauge("diptych_ready", "1 while /readyz says yes.", registry=REGISTRY)


def observe_stages(timings_ms: Mapping[str, float]) -> None:
    """A request's `timings` (milliseconds by stage, as `operations.stopwatch` gives them)."""
    for stage, took_ms in timings_ms.items():
        if stage != "total":
            stage_seconds(stage).observe(took_ms / 1000)


@cache
def stage_seconds(stage: str) -> Histogram:
    """The histogram of one of our stages; `labels` looks it up under a lock."""
    return STAGE_SECONDS.labels(stage)
