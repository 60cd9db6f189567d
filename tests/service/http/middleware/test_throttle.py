"""Token buckets per address, on a clock of the test's own."""

from __future__ import annotations

import pytest
from clocks import Clock

from service.http.middleware.auth import Throttle


def test_a_burst_then_a_rate() -> None:
    clock = Clock()
    throttle = Throttle(rate=2.0, burst=5, clock=clock)
    assert [throttle.spend("192.0.2.1") for _ in range(5)] == [0.0] * 5
    assert throttle.spend("192.0.2.1") == pytest.approx(0.5)
    assert throttle.spend("192.0.2.2") == 0.0, "another address has its own"
    clock.now += 0.5
    assert throttle.spend("192.0.2.1") == 0.0
    assert throttle.spend("192.0.2.1") > 0.0
    clock.now += 1e6
    assert [throttle.spend("192.0.2.1") for _ in range(6)].count(0.0) == 5, "it never overflows"


def test_a_steady_flood_is_let_through_at_the_rate() -> None:
    clock = Clock()
    throttle = Throttle(rate=1.0, burst=10, clock=clock)
    passed = 0
    for _ in range(10_000):
        clock.now += 0.01
        passed += throttle.spend("192.0.2.1") == 0.0
    assert 108 <= passed <= 111, "100 seconds and the burst"


def test_addresses_that_are_one_caller_share_a_bucket() -> None:
    throttle = Throttle(burst=1, clock=Clock())
    assert throttle.spend("2001:db8:1:2::1") == 0.0
    assert throttle.spend("2001:db8:1:2:ffff::9") > 0.0, "one /64"
    assert throttle.spend("2001:db8:1:3::1") == 0.0
    assert throttle.spend("::ffff:192.0.2.1") == 0.0
    assert throttle.spend("192.0.2.1") > 0.0
    assert throttle.spend("fe80::1%eth0") == 0.0
    assert throttle.spend("fe80::2%eth1") > 0.0
    assert throttle.spend("testclient") == 0.0


def test_memory_is_bounded() -> None:
    throttle = Throttle(capacity=100, clock=Clock())
    for number in range(5_000):
        throttle.spend(f"10.{number >> 8 & 255}.{number & 255}.1")
    assert len(throttle) == 100
