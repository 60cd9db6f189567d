"""How often one address may fail: a token bucket each, in bounded memory. Knows nothing of HTTP.

Addresses are those of connections. What a header claims about them counts only where the operator
named the proxies that may claim it, and then the server has already replaced the address.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic


class Throttle:
    """`burst` failures at once, then `rate` a second, per address (IPv6: per /64)."""

    def __init__(
        self,
        *,
        rate: float = 1.0,
        burst: float = 20.0,
        capacity: int = 4096,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        assert rate > 0, "a bucket fills"
        assert burst >= 1, "a bucket holds a token"
        self._rate, self._burst, self._capacity, self._clock = rate, burst, capacity, clock
        # bucket -> (tokens, when), the one touched longest ago first
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def spend(self, address: str) -> float:
        """Count one failure: 0 if it was allowed, else the seconds until one will be."""
        now = self._clock()
        bucket = _bucket(address)
        tokens, when = self._buckets.pop(bucket, (self._burst, now))
        tokens = min(self._burst, tokens + (now - when) * self._rate)
        wait = 0.0 if tokens >= 1.0 else (1.0 - tokens) / self._rate
        # what is refused is not charged, or a steady flood would never be let up
        self._buckets[bucket] = (tokens if wait else tokens - 1.0, now)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return wait


def _bucket(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv6Address):
        # whoever has one IPv6 address has its whole /64
        return str(found.ipv4_mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))
    return str(found)
