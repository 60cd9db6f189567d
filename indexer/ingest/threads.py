"""The threads of a build's pipeline: a bounded queue filled ahead of use, and calls made in order.

`Ahead` consumes an iterator into a bounded queue; `Following` executes calls one after the other.
Both hand the exception of their thread to whoever uses them. `AheadHere` and `FollowingHere` do the
same in the caller's thread: for a few records, and on a machine so busy that every hand-over waits
its turn, that is several times faster. They know nothing of what passes.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def size(self) -> int:
        """Bytes that waiting costs."""
        ...


T = TypeVar("T", bound=Sized)
_PATIENCE_S = 2.0
_LOOK_S = 0.5
"""How often a waiting thread looks by itself: a Ctrl-C in the middle of another thread's notifying
(CPython's conditions are Python code) loses the notification."""


class Ahead(Generic[T]):
    """Items of an iterable, made in a thread ahead of their use.

    Args:
        items: iterated in the thread; an exception of it is raised where the next item would be.
        most, most_bytes: how many items, and of what size together, wait at most; one always may.
    """

    def __init__(self, items: Iterable[T], *, most: int, most_bytes: int, name: str) -> None:
        self._items = items
        self._most = most
        self._most_bytes = most_bytes
        self._changed = threading.Condition()
        self._waiting: deque[T] = deque()
        self._bytes = 0
        self._ended = self._closed = False
        self._error: BaseException | None = None
        # a daemon: a reader that waits on a terminal or a network must not keep a process alive
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                while not (self._waiting or self._ended):
                    self._changed.wait(_LOOK_S)
                if not self._waiting:
                    break
                item = self._waiting.popleft()
                self._bytes -= item.size
                self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Have the thread stop before its next item; waits for it, though not for ever."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(_PATIENCE_S)

    def _run(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    while not (self._closed or self._fits(item)):
                        self._changed.wait(_LOOK_S)
                    if self._closed:
                        return
                    self._waiting.append(item)
                    self._bytes += item.size
                    self._changed.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _fits(self, item: T) -> bool:
        if not self._waiting:
            return True
        room = self._bytes + item.size <= self._most_bytes
        return room and len(self._waiting) < self._most


class AheadHere(Generic[T]):
    """As `Ahead`, in the caller's thread: it gets as far ahead whenever an item is asked for."""

    def __init__(self, items: Iterable[T], *, most: int, most_bytes: int) -> None:
        self._items = items
        self._most = most
        self._most_bytes = most_bytes

    def __iter__(self) -> Iterator[T]:
        waiting: deque[T] = deque()
        size = 0
        for item in self._items:
            waiting.append(item)
            size += item.size
            while len(waiting) >= self._most or size > self._most_bytes:
                size -= waiting[0].size
                yield waiting.popleft()
        yield from waiting

    def close(self) -> None:
        """Nothing to stop."""


class FollowingHere:
    """As `Following`, at once."""

    def do(self, call: Callable[[], object]) -> None:
        call()

    def finish(self) -> None:
        """Nothing is left."""

    stop = drop = finish


class Following:
    """Calls executed one after the other in a thread, at most `most` of them waiting.

    After the first that fails the others are dropped; `do` and `finish` raise what it raised.
    """

    def __init__(self, *, most: int, name: str) -> None:
        self._calls: queue.Queue[Callable[[], object]] = queue.Queue(most)
        self._error: BaseException | None = None
        self._ending = False
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def do(self, call: Callable[[], object]) -> None:
        self._raise()
        self._calls.put(call)

    def finish(self) -> None:
        """Wait until all is done."""
        self.stop()
        self._raise()

    def stop(self) -> None:
        """Wait until all is done, or after a failure; raises nothing. May be called again."""
        self._ending = True
        with suppress(queue.Full):  # it is at work then, and will see
            self._calls.put_nowait(lambda: None)
        self._thread.join()

    def drop(self) -> None:
        """Execute no more of the calls."""
        self._error = self._error or InterruptedError()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while not (self._ending and self._calls.empty()):
            with suppress(queue.Empty):
                call = self._calls.get(timeout=_LOOK_S)
                self._execute(call)

    def _execute(self, call: Callable[[], object]) -> None:
        if self._error is None:
            try:
                call()
            except BaseException as error:
                self._error = error
