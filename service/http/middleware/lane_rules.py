"""Which requests wait together, and how much of each kind the service takes on. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.http.middleware.lanes import LaneRule

_COST_BYTES = 32 << 10
_MAX_COST = 64
# answered whatever happens: they are how one finds out what happens
_ALWAYS = frozenset({"/healthz", "/readyz"})
_LONG = (
    "/v1/search/batch",
    "/v1/classify",
    "/v1/explain",
    "/v1/label-sets",
    "/v1/embeddings",
    "/embeddings",
)


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What the service takes on.

    Attributes:
        timeout_s: time allowed to a search that asks for no other.
        long_timeout_s: the same for classification, explanations, batches and writes.
        most_s: the most that `X-Request-Timeout` can ask for.
        body_bytes: of all request bodies in memory together.
        capacity: cost that a lane may have accepted and not answered.
    """

    timeout_s: float = 2.0
    long_timeout_s: float = 30.0
    most_s: float = 120.0
    body_bytes: int = 256 << 20
    capacity: int = 1000


def lane_rules(limits: AdmissionLimits) -> Mapping[str, LaneRule]:
    """Requests by what they cost: texts, pictures, long work, changes, and looking things up."""
    short, long, room = (
        limits.timeout_s,
        max(limits.timeout_s, limits.long_timeout_s),
        limits.capacity,
    )
    rules = (
        LaneRule("search", short, slots=48, capacity=room),
        LaneRule("pictures", short, slots=32, capacity=room),
        LaneRule("long", long, slots=16, capacity=room),
        LaneRule("write", long, slots=4, capacity=room),
        LaneRule("light", short, slots=32, capacity=room),
    )
    return {rule.name: rule for rule in rules}


def threads(limits: AdmissionLimits) -> int:
    """Handlers that may run at once, so that none waits for a thread once it has its turn."""
    return sum(rule.slots for rule in lane_rules(limits).values())


def lane_of(method: str, path: str, content_type: str) -> str | None:
    """The lane of a request by its head; None for health, which never waits."""
    if path in _ALWAYS:
        return None
    if method in ("GET", "HEAD", "OPTIONS"):
        return "light"
    if path.startswith("/v1/items"):
        return "write"
    if path.startswith(_LONG):
        return "long"
    return "search" if content_type.startswith("application/json") else "pictures"


def cost_of(body_bytes: int) -> int:
    """A text is one unit; a picture, or a pile of texts, is more by its size."""
    return min(_MAX_COST, 1 + body_bytes // _COST_BYTES)
