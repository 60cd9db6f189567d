"""What a build counts while it runs, from all of its threads, and whom it tells.

It adds up and reports; it decides nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, TypeAlias

from indexer.ingest.options import BuildProgress, BuildReport, Stage
from indexer.ingest.pace import Stages
from indexer.ingest.rejects import Rejects
from models.sources.records import Reject

Counter: TypeAlias = Literal[
    "added", "updated", "moved", "unchanged", "removed", "erased", "resumed"
]


class Tally:
    """Counts of one build; safe from any thread, and tells of progress from one at a time."""

    def __init__(
        self,
        rejects: Rejects,
        stages: Stages,
        total: int | None,
        on_progress: Callable[[BuildProgress], None] | None,
    ) -> None:
        self.report = BuildReport()
        self._rejects = rejects
        self._stages = stages
        self._total = total
        self._on_progress = on_progress
        self._done = 0
        self._lock = threading.RLock()

    @property
    def rejected(self) -> int:
        return self._rejects.count

    def count(self, what: Counter, by: int = 1) -> None:
        with self._lock:
            setattr(self.report, what, getattr(self.report, what) + by)

    def handled(self, what: Counter | None = None) -> None:
        """One record more is done with, and counted as `what`."""
        with self._lock:
            if what is not None:
                self.count(what)
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
