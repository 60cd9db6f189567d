"""How far a build is and where its time goes: counts, pace, and whom it tells.

`Stages` measures. The thread that embeds is the spine of a build: at any moment it waits for the
reader, waits for a picture being decoded, embeds, or waits for the writer. Four shares that sum to
the whole, and the largest names the bottleneck. `Tally` adds up and reports. Neither decides
anything, nor knows what the stages do.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from indexer.ingest.options import STAGES, BuildProgress, BuildReport, Stage, StageName
from indexer.ingest.side_files import Rejects
from models.sources.records import Reject

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


Counter: TypeAlias = Literal[
    "added",
    "updated",
    "moved",
    "unchanged",
    "removed",
    "erased",
    "resumed",
    "conflicts",
    "overtaken",
]

Outcomes: TypeAlias = dict[str, dict[Counter, int]]
"""By key what a record was counted as, and how often."""


class Tally:
    """Counts of one build; safe from any thread, and tells of progress from one at a time."""

    def __init__(
        self,
        rejects: Rejects,
        stages: Stages,
        total: int | None,
        on_progress: Callable[[BuildProgress], None] | None,
        outcomes: Outcomes | None = None,
    ) -> None:
        """`outcomes` takes down what became of each record, for who hands over few."""
        self.report = BuildReport()
        self._outcomes = outcomes
        self._rejects = rejects
        self._stages = stages
        self._total = total
        self._on_progress = on_progress
        self._done = 0
        self._lock = threading.RLock()

    @property
    def rejected(self) -> int:
        return self._rejects.count

    @property
    def stopped(self) -> bool:
        """Whether there were so many rejects that the build ends."""
        return self.report.stopped

    def count(self, what: Counter, by: int = 1, key: str | None = None) -> None:
        """Add to a counter; of the record of a key, whose outcome that is."""
        with self._lock:
            if self._outcomes is not None and key is not None and by:
                self._outcomes.setdefault(key, {})[what] = by
            setattr(self.report, what, getattr(self.report, what) + by)

    def handled(self, what: Counter | None = None, key: str | None = None) -> None:
        """One record more is done with, and counted as `what`."""
        with self._lock:
            if what is not None:
                self.count(what, key=key)
            self._done += 1
            self.tell("embedding")

    def refuse(self, reject: Reject, *, whole: bool = True) -> None:
        """List a reject; of a whole record, or of one of its texts."""
        with self._lock:
            self._rejects.add(reject)
            if whole:
                self.handled()

    def tell(self, stage: Stage) -> None:
        if self._on_progress is None:
            return
        with self._lock:
            pace = self._stages.pace()
            self._on_progress(
                BuildProgress(
                    stage,
                    self._done,
                    self._total,
                    self._rejects.count,
                    pace.images_per_s,
                    pace.bottleneck,
                )
            )
