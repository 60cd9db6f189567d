"""Where the time of a build goes: what it waited for, what every stage worked, how fast it went.

The thread that embeds is the spine of a build. At any moment it waits for the reader, waits for a
picture being decoded, embeds, or waits for the writer: four shares that sum to the whole, and the
largest names the bottleneck. It measures, and knows nothing of what the stages do.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

StageName: TypeAlias = Literal["read", "decode", "embed", "write"]
STAGES: Final[tuple[StageName, ...]] = ("read", "decode", "embed", "write")
_POINTS: Final = 240
"""Points of the timeline; when they are used up, every second one goes."""
_WINDOW_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Pace:
    """The last seconds of a build: pictures a second, and what it waited for most."""

    images_per_s: float
    bottleneck: StageName


class Stages:
    """Safe from any thread. `clock` is for tests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._started = clock()
        self._held = dict.fromkeys(STAGES, 0.0)
        self._worked = dict.fromkeys(STAGES, 0.0)
        self._images = 0
        self._every = 1.0
        self._line: list[tuple[float, int]] = [(0.0, 0)]
        self._recent: deque[tuple[float, int, dict[StageName, float]]] = deque()
        self._note(0.0)

    @contextmanager
    def held_by(self, stage: StageName) -> Iterator[None]:
        """The embedding thread waits for this stage, or does it."""
        start = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._held[stage] += self._clock() - start

    @contextmanager
    def work(self, stage: StageName) -> Iterator[None]:
        """A thread of a stage works; several at once count several times."""
        start = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._worked[stage] += self._clock() - start

    def embedded(self, images: int) -> None:
        """So many pictures more have their vectors."""
        with self._lock:
            self._images += images
            self._note(self._clock() - self._started)

    def pace(self) -> Pace:
        """Of the last ten seconds, or since the start."""
        with self._lock:
            now = self._clock() - self._started
            then, images, held = self._recent[0]
            spent = {name: self._held[name] - held[name] for name in STAGES}
            return Pace((self._images - images) / max(now - then, 1e-9), _largest(spent))

    def summary(self) -> dict[str, Any]:
        """JSON-compatible: the shares, seconds of work, throughput, and the timeline.

        `timeline` is [seconds since the start, pictures embedded until then], about evenly spaced.
        """
        with self._lock:
            seconds = self._clock() - self._started
            accounted = max(sum(self._held.values()), 1e-9)
            return {
                "bottleneck": _largest(self._held) if self._images else None,
                "images_embedded": self._images,
                "images_per_s": round(self._images / max(seconds, 1e-9), 2),
                "stages": {
                    name: {
                        "share": round(self._held[name] / accounted, 4),
                        "work_s": round(self._worked[name], 3),
                    }
                    for name in STAGES
                },
                "timeline": [
                    [round(at, 2), count] for at, count in [*self._line, (seconds, self._images)]
                ],
            }

    def _note(self, now: float) -> None:
        while self._recent and now - self._recent[0][0] > _WINDOW_S:
            self._recent.popleft()
        if not self._recent or now - self._recent[-1][0] > _WINDOW_S / 20:
            self._recent.append((now, self._images, dict(self._held)))
        if now - self._line[-1][0] >= self._every:
            self._line.append((now, self._images))
        if len(self._line) > _POINTS:
            self._line = self._line[::2]
            self._every *= 2


def _largest(seconds: dict[StageName, float]) -> StageName:
    return max(STAGES, key=lambda name: seconds[name])
