"""Searches of an index that share a run: whatever queued while the last one ran.

Only searches that ask the same of the same version run together: equal target, filter, k, offset
and manner, so each gets exactly what it would get alone. FAISS reads the rows once for all of them,
which is what a large index spends its time on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from models.vectors import Vectors
from service.engine.batch_queue import BatchQueue, QueueLimits
from service.engine.call import Call

if TYPE_CHECKING:
    from indexer.filters.language import Filter
    from indexer.search.snapshot import Hit, Snapshot
    from service.engine.queries import Manner, Target

# at 64 queries FAISS's own scan falls behind (tests/bench/search_exact.py)
SEARCH_LIMITS: Final = QueueLimits(batch=32, waiting=4096)


@dataclass(frozen=True, slots=True)
class Ask:
    """What searches must have in common to run together.

    Filters were checked against the index before, so that those which compare equal are equal.
    """

    snapshot: Snapshot
    k: int
    offset: int
    target: Target
    filter: Filter | None
    manner: Manner

    def __call__(self, queries_QD: Vectors, words_Q: Sequence[str | None]) -> list[list[Hit]]:
        manner = self.manner
        return self.snapshot.search(
            queries_QD,
            self.k,
            target=self.target,
            offset=self.offset,
            filter=self.filter,
            exact=manner.exact,
            effort=manner.effort,
            texts=words_Q if manner.hybrid else None,
            hybrid=manner.hybrid,
            deduplicate=manner.deduplicate,
        )


_Payload: TypeAlias = tuple[Ask, Vectors, str | None]


class DirectSearch:
    """Every search runs in its caller's thread, at once."""

    def submit(self, ask: Ask, query_1D: Vectors, words: str | None = None) -> Call[list[Hit]]:
        """The hits of one query, float32 [1, D]; errors as `Snapshot.search`, in the call."""
        return Call.at_once(lambda: ask(query_1D, [words])[0])


class BatchedSearch(DirectSearch):
    """One thread searches for all callers, of any number of indexes.

    A second one would only take turns with it: FAISS spreads the queries of a run over the cores.
    """

    def __init__(self, limits: QueueLimits = SEARCH_LIMITS) -> None:
        self._queue: BatchQueue[_Payload, list[Hit]] = BatchQueue("search", _run, limits)

    def submit(self, ask: Ask, query_1D: Vectors, words: str | None = None) -> Call[list[Hit]]:
        """As `DirectSearch`, and OverloadedError or DeadlineError as `BatchQueue.submit`."""
        # the snapshot is the caller's, and may be closed once it has left
        return self._queue.submit((ask, query_1D, words), key=ask, must_end=True)

    def stop(self, timeout: float | None = None) -> bool:
        """Finish what waits, refuse what comes -> whether it ended in time."""
        return self._queue.stop(timeout)


def _run(payloads: Sequence[_Payload]) -> Sequence[list[Hit] | Exception]:
    ask = payloads[0][0]
    queries_QD = np.concatenate([query_1D for _, query_1D, _ in payloads])
    return ask(queries_QD, [words for _, _, words in payloads])
