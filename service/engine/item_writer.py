"""Items put and deleted while the service answers: one write at a time, seen before it is answered.

An `ItemWriter` belongs to one served index. Its writes take turns, each is one commit of
`indexer.maintain.edit`, and the new version is in use when the call returns, so that a search
after a write finds what was written. Puts that wait for their turn are written with the next one,
in one commit: a commit costs the same for all of them. The index's lock is held only during a
commit: other programs may write in between, and while they do, ours waits a moment and then says
so.

A write that has begun is finished, whatever the caller's time: half of one does not exist.
Knows nothing of HTTP.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Final, Literal, TypeVar

from indexer.format.erasures import read_erasures
from indexer.format.manifest import read_manifest
from indexer.maintain.edit import Editor, PutReport
from indexer.search.reader import IndexHolder
from models.errors import DeadlineError, IndexLockedError, NotFoundError
from models.sources.records import Record
from service.engine import deadline
from service.operations import metrics

_PATIENCE_S: Final = 1.0
_AGAIN_S: Final = 0.02
_RECORDS: Final = 256
"""Of other callers that are written with one; its own may be more."""
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a delete did; `version` is the first in which the item is gone."""

    version: int
    images: int
    texts: int


Outcome = Literal["added", "updated", "unchanged", "refused"]


@dataclass(slots=True, eq=False)
class _Put:
    """What one caller puts, and what became of it."""

    records: Sequence[Record]
    report: PutReport | None = None
    error: BaseException | None = None

    def write(self, put: Callable[[Sequence[Record]], PutReport]) -> None:
        try:
            self.report = put(self.records)
        except Exception as error:
            self.error = error


class ItemWriter:
    """See the module. Safe to call from several threads."""

    def __init__(
        self, editor: Editor, holder: IndexHolder, name: str, *, patience_s: float = _PATIENCE_S
    ) -> None:
        """
        Args:
            editor: writes the index that `holder` serves.
            name: the index's, for metrics.
            patience_s: how long to wait while another program writes.
        """
        self._editor = editor
        self._holder = holder
        self._name = name
        self._patience_s = patience_s
        self._turn = threading.Lock()
        self._queueing = threading.Lock()
        self._queue: list[_Put] = []

    def put(self, records: Sequence[Record]) -> PutReport:
        """Store records in one commit, each replacing what the index has under its key.

        Ids that were deleted may come back: whoever puts one by its id asks for that.

        Raises:
            DeadlineError: its turn did not come in time; nothing was stored.
            IndexLockedError: another program writes; nothing was stored.
            OverloadedError, ModelError, EncoderMismatchError, NoSpaceError, StoreError: nothing
                was stored; or, StoreError only, what was stored cannot be opened.
        """
        mine = _Put(records)
        with self._queueing:
            self._queue.append(mine)
        try:
            self._write(lambda: self._put_with_others(mine), lambda: self._withdraw(mine))
        finally:
            self._withdraw(mine)
        if mine.error is not None:
            raise mine.error
        assert mine.report is not None
        self._take_up()
        return mine.report

    def delete(self, item_id: str) -> Deleted:
        """Delete an item: a picture with its texts, a text alone, the texts of a record.

        One that was deleted before is as gone as asked for: that is no error.

        Raises:
            NotFoundError: the index never had it, as far as it remembers.
            DeadlineError, IndexLockedError, NoSpaceError, StoreError: as `put`.
        """
        report = self._write(lambda: self._patiently(lambda: self._editor.delete([item_id])))
        self._take_up()
        if report.missing and not report.erased:
            root = self._editor.root
            if item_id not in read_erasures(root, read_manifest(root)):
                raise NotFoundError("no item has this id")
        return Deleted(report.version, report.removed_images, report.removed_texts)

    def _put_with_others(self, mine: _Put) -> None:
        """Write a put, unless another has taken it along, and those that wait with other keys."""
        with self._queueing:
            if mine not in self._queue:
                return
            group, keys = [mine], {one.key for one in mine.records}
            rest: list[_Put] = []
            for one in self._queue:
                own = {record.key for record in one.records}
                room = len(keys) + len(own) <= _RECORDS
                if one is not mine:
                    (group if room and not own & keys else rest).append(one)
                # of one id the later put comes later
                keys |= own
            self._queue = rest
        try:
            if len(group) > 1 and self._all_at_once(group):
                return
            for one in group:
                one.write(lambda some: self._patiently(lambda: self._one_put(some)))
        except BaseException as error:
            for one in group:
                if one.report is None and one.error is None:
                    one.error = error
            raise

    def _all_at_once(self, group: Sequence[_Put]) -> bool:
        """Whether one commit could take them all; one that cannot be written spoils it for all."""
        puts = [one.records for one in group]
        try:
            reports = self._patiently(lambda: self._editor.put_all(puts, allow_erased=True))
        except IndexLockedError:
            raise
        except Exception:
            return False
        for one, report in zip(group, reports, strict=True):
            one.report = report
        return True

    def _one_put(self, records: Sequence[Record]) -> PutReport:
        return self._editor.put(records, allow_erased=True)

    def _withdraw(self, mine: _Put) -> bool:
        """Whether nobody has begun to write it, and now nobody will."""
        with self._queueing:
            if mine not in self._queue:
                return False
            self._queue.remove(mine)
            return True

    def _write(self, work: Callable[[], R], give_up: Callable[[], bool] = lambda: True) -> R:
        """In turn; what another has begun to write is waited for, so `give_up` may be refused."""
        allowed = deadline.current()
        left = allowed.left()
        if not self._turn.acquire(timeout=-1 if left is None else left):
            if give_up():
                raise DeadlineError("other writes took all the time allowed")
            self._turn.acquire()
        try:
            if allowed.left() == 0 and give_up():
                allowed.check()
            # embedding is part of it, and would stop at the caller's deadline
            with deadline.until(math.inf):
                return work()
        finally:
            self._turn.release()

    def _patiently(self, work: Callable[[], R]) -> R:
        until = monotonic() + self._patience_s
        while True:
            try:
                return work()
            except IndexLockedError:
                if monotonic() >= until:
                    raise
            sleep(_AGAIN_S)

    def _take_up(self) -> None:
        if self._holder.refresh():
            metrics.INDEX_SWAPS.labels(self._name, "ok").inc()
        metrics.INDEX_VERSION.labels(self._name).set(self._holder.version)


def outcome(report: PutReport) -> Outcome:
    """What a put of one record did with it."""
    if report.added:
        return "added"
    if report.updated or report.moved:
        return "updated"
    return "unchanged" if report.unchanged else "refused"
