"""A snapshot that is replaced while others search it: reference counts and one swap.

    holder = SnapshotHolder(path, fingerprint=encoder.fingerprint)
    with holder.use() as snapshot:      # from any thread; the version stays open until left
        snapshot.search(...)
    holder.refresh()                    # from a watcher: another version, if `CURRENT` names one

Searching takes a lock for the time of one addition. A newer version is opened, verified and warmed
beside the old one, which answers meanwhile, then one reference is swapped; the old version closes
when its last reader leaves. Segments that both have stay open and are not read again. It starts no
thread: when to refresh is the caller's business.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from indexer.format.integrity import Verify
from indexer.format.manifest import Head, read_head
from indexer.search.reader import IndexHolder
from indexer.search.snapshot import Snapshot, open_snapshot
from models.encoder import Fingerprint
from models.errors import IndexCorruptError, StoreError

# a damaged version is not read again by every poll: that would keep a disk busy for ever
_AGAIN_AFTER: Final = 30.0


@dataclass(slots=True, eq=False)
class _Held:
    """A snapshot and how many hold it; the holder itself counts as one."""

    snapshot: Snapshot
    head: Head
    holders: int = 1


@dataclass(frozen=True, slots=True)
class _Refused:
    """A version found damaged: what was wrong, and when (monotonic seconds) it may be retried."""

    head: Head
    error: IndexCorruptError
    until: float


class SnapshotHolder(IndexHolder):
    """See the module. Every method may be called from several threads."""

    def __init__(
        self,
        path: Path,
        *,
        fingerprint: Fingerprint | None,
        verify: Verify = "fast",
        warm: Callable[[Snapshot], None] | None = None,
    ) -> None:
        """Open, verify and warm the current version.

        Args:
            fingerprint: as `open_snapshot`; later versions must match it too.
            verify: how later versions and this one are checked, as `open_snapshot`.
            warm: called with a snapshot before anyone else sees it; what it raises refuses it.

        Raises:
            IndexNotFoundError, IndexCorruptError, EncoderMismatchError, StoreError: as
                `open_snapshot`.
        """
        self.path = path
        self._fingerprint = fingerprint
        self._verify = verify
        self._warm = warm
        self._counting = threading.Lock()
        self._refreshing = threading.Lock()
        self._refused: _Refused | None = None
        self._held: _Held | None = self._open(read_head(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def version(self) -> int:
        """The version that `use` hands out now.

        Raises:
            StoreError: the holder is closed.
        """
        with self._counting:
            return self._current().snapshot.version

    @contextmanager
    def use(self) -> Iterator[Snapshot]:
        """The current snapshot, open at least until the block is left.

        Raises:
            StoreError: the holder is closed.
        """
        with self._counting:
            held = self._current()
            held.holders += 1
        try:
            yield held.snapshot
        finally:
            self._release(held)

    def refresh(self) -> bool:
        """Take up the version that `CURRENT` names, if it is another than the one held.

        Reads one small file when there is nothing to do. Whatever it raises, the version held
        before keeps serving. A version found damaged is not read again for half a minute, only
        refused again, unless `CURRENT` changes meanwhile.

        Returns:
            Whether another version was taken up.

        Raises:
            IndexNotFoundError, IndexCorruptError, EncoderMismatchError, StoreError: as
                `open_snapshot`; and whatever `warm` raises.
        """
        with self._refreshing:
            head = read_head(self.path)
            with self._counting:
                if self._current().head == head:
                    return False
            refused = self._refused
            if refused is not None and refused.head == head and time.monotonic() < refused.until:
                raise IndexCorruptError(
                    refused.error.file, refused.error.why, hint=refused.error.hint
                )
            try:
                with self.use() as before:
                    fresh = self._open(head, before)
            except IndexCorruptError as error:
                self._refused = _Refused(head, error, time.monotonic() + _AGAIN_AFTER)
                raise
            self._refused = None
            with self._counting:
                old = self._held
                if old is not None:
                    self._held = fresh
            # closed meanwhile: nobody will use the new one
            self._release(fresh if old is None else old)
            return old is not None

    def close(self) -> None:
        """Hand out no snapshot any more; the last reader to leave closes the one held."""
        with self._counting:
            held, self._held = self._held, None
        if held is not None:
            self._release(held)

    def _current(self) -> _Held:
        if self._held is None:
            raise StoreError(f"{self.path} is no longer served", code="index-closed")
        return self._held

    def _open(self, head: Head, before: Snapshot | None = None) -> _Held:
        snapshot = open_snapshot(
            self.path, fingerprint=self._fingerprint, verify=self._verify, before=before
        )
        try:
            if snapshot.version != head.version:  # committed since `head` was read
                newest = read_head(self.path)
                # if it moved on again, the next refresh sees that
                head = newest if newest.version == snapshot.version else head
            if self._warm is not None:
                self._warm(snapshot)
        except BaseException:
            snapshot.close()
            raise
        return _Held(snapshot, head)

    def _release(self, held: _Held) -> None:
        with self._counting:
            held.holders -= 1
            last = held.holders == 0
        if last:  # outside the lock: closing a large version takes a while
            held.snapshot.close()
